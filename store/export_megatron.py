"""Megatron: a `.bin` of flat ids and an `.idx` that cuts it, per pipeline and stream.

Layout of the index as of megatron-core 0.16 (indexed_dataset), little-endian: magic, uint64 version
1, uint8 dtype code, uint64 sequences, uint64 length of the document index; int32 lengths, int64
byte offsets, int64 document index, which begins with 0 and says after which sequence each document
ends. A sample is a document of one sequence. The format has no names: `<prefix>.samples.arrow` says
which sample each document is. The index is handed over last: without it nothing is opened.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.store.dataset import Dataset, StreamType
from tokenmill.store.export_facts import lineage
from tokenmill.store.placing import Place
from tokenmill.store.rows import Batch, Column

_MAGIC = b"MMIDIDX\x00\x00"
# Stream dtype -> dtype of the .bin and its code. Megatron knows no uint32 and no uint64.
_DTYPES = {
    "uint8": ("u1", 1),
    "uint16": ("<u2", 8),
    "uint32": ("<i4", 4),
    "uint64": ("<i8", 5),
    "float32": ("<f4", 7),
}


def megatron_names(dataset: Dataset) -> tuple[str, ...]:
    parts = [f"{p}-{s}-{'[0-9]' * 5}" for p in dataset.pipelines for s in dataset.streams]
    return tuple(f"{part}.{end}" for part in parts for end in ("bin", "idx", "samples.arrow"))


def write_megatron(
    dataset: Dataset, scratch: Path, place: Place, file_bytes: int
) -> tuple[str, ...]:
    """Prefixes `<pipeline>-<stream>-<number>`, numbered by size. Samples without ids in a stream
    (no tokens, or a sequence of none) are no documents of it: Megatron has no null.

    Raises JobError for float16, or an id beyond the signed type that stands for uint32 or uint64.
    """
    types = dataset.stream_types()
    for stream, kind in types.items():
        if kind.dtype.name not in _DTYPES:
            raise JobError(
                f"Megatron has no dtype for {kind.dtype}",
                where=f"stream {stream}",
                remedy="choose the other streams (--stream)",
            )
    facts = lineage(dataset)
    open_: dict[str, _Prefix] = {}
    pipeline = ""
    try:
        for batch in dataset.batches():
            if batch.pipeline != pipeline:
                _finish(open_)
                pipeline = batch.pipeline
            for stream, column in batch.columns.items():
                if stream not in open_:
                    open_[stream] = _Prefix(
                        f"{pipeline}-{stream}", types[stream], facts, scratch, place, file_bytes
                    )
                open_[stream].write(batch, column)
        _finish(open_)
    finally:
        for prefix in open_.values():
            prefix.abandon()
    return ()


def _finish(open_: dict[str, _Prefix]) -> None:
    while open_:
        open_[next(iter(open_))].finish()
        del open_[next(iter(open_))]


class _Prefix:
    """The open files of one pipeline and stream, rolled between batches."""

    def __init__(
        self,
        name: str,
        kind: StreamType,
        facts: dict[str, Any],
        scratch: Path,
        place: Place,
        file_bytes: int,
    ) -> None:
        self._name, self._kind = name, kind
        self._dtype, self._code = np.dtype(_DTYPES[kind.dtype.name][0]), _DTYPES[kind.dtype.name][1]
        self._schema = _samples_schema(kind, facts)
        self._scratch, self._place, self._file_bytes = scratch, place, file_bytes
        self._number = 0
        self._lengths: list[NDArray[np.int32]] = []
        self._open: tuple[BinaryIO, pa.NativeFile, pa.ipc.RecordBatchFileWriter] | None = None

    def write(self, batch: Batch, column: Column) -> None:
        keep = column.lengths > 0
        if not keep.any():
            return
        ids, _, samples = self._open = self._open or self._begin()
        ids.write(self._signed(column).data)
        self._lengths.append(column.lengths[keep].astype("<i4"))
        samples.write_batch(_samples(batch, column, keep, self._schema))
        if ids.tell() >= self._file_bytes:
            self.finish()

    def _signed(self, column: Column) -> NDArray[Any]:
        values = column.values
        highest = np.iinfo(self._dtype).max if self._dtype.kind == "i" else None
        if highest is not None and len(values) and int(values.max()) > highest:
            raise JobError(
                f"id {values.max()} is too large for Megatron",
                where=f"stream {column.stream}",
                why=f"ids of {self._kind.dtype} are stored as {self._dtype.name} there",
                remedy="choose the other streams (--stream), or another format",
            )
        return np.ascontiguousarray(values.astype(self._dtype, copy=False))

    def _begin(self) -> tuple[BinaryIO, pa.NativeFile, pa.ipc.RecordBatchFileWriter]:
        sink = pa.OSFile(str(self._path("samples.arrow")), "wb")
        return self._path("bin").open("wb"), sink, pa.ipc.new_file(sink, self._schema)

    def _path(self, end: str) -> Path:
        return self._scratch / f"{self._name}-{self._number:05d}.{end}"

    def finish(self) -> None:
        """The open files, if there are any, are whole: ids first, index last."""
        if self._open is None:
            return
        ids, sink, samples = self._open
        tokens = ids.tell() // self._dtype.itemsize
        ids.close()
        samples.close()
        sink.close()
        self._open = None
        lengths = np.concatenate(self._lengths)
        self._write_index(lengths)
        self._hand_over("bin", (len(lengths), tokens))
        self._hand_over("samples.arrow", (0, 0))
        self._hand_over("idx", (0, 0))
        self._lengths = []
        self._number += 1

    def _write_index(self, lengths: NDArray[np.int32]) -> None:
        count = len(lengths)
        ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
        with self._path("idx").open("wb") as file:
            file.write(_MAGIC)
            file.write(struct.pack("<QBQQ", 1, self._code, count, count + 1))
            file.write(lengths.tobytes())
            file.write((ends - lengths.astype("<i8") * self._dtype.itemsize).tobytes())
            file.write(np.arange(count + 1, dtype="<i8").tobytes())

    def _hand_over(self, end: str, held: tuple[int, int]) -> None:
        path = self._path(end)
        self._place(path, path.name, held)

    def abandon(self) -> None:
        if self._open is not None:
            self._open[0].close()
            self._open[1].close()


def _samples_schema(kind: StreamType, facts: dict[str, Any]) -> pa.Schema:
    fields = [("id", pa.binary(ID_BYTES)), ("key", pa.string()), ("source", pa.string())]
    fields += [("shape", pa.list_(pa.int32()))] if kind.shaped else []
    return pa.schema(fields, metadata={"tokenmill": json.dumps(facts, sort_keys=True)})


def _samples(
    batch: Batch, column: Column, keep: NDArray[np.bool_], schema: pa.Schema
) -> pa.RecordBatch:
    """A row per document: the samples where `keep`."""
    where = np.flatnonzero(keep).tolist()
    data = pa.py_buffer(batch.id_array[keep].tobytes())
    arrays = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(where), [None, data]),
        pa.array([batch.keys[i] for i in where], pa.string()),
        pa.array([batch.sources[i] for i in where], pa.string()),
    ]
    if "shape" in schema.names:
        shapes = column.shapes
        shown = shapes[keep] if shapes is not None else column.lengths[keep].reshape(-1, 1)
        offsets = np.arange(len(where) + 1, dtype=np.int32) * shown.shape[1]
        values = pa.array(np.ascontiguousarray(shown, np.int32).ravel())
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values))
    return pa.record_batch(arrays, schema=schema)
