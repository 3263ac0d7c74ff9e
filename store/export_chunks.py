"""MDS and litdata: chunks of samples behind a table of offsets, and an index.json that names them.

A chunk, little-endian: uint32 n; uint32[n + 1], where in the file each sample begins and the last
ends; what the format puts before the samples; the samples. A sample: uint32 per column, its size in
bytes; the columns' bytes. Layouts as documented for mosaicml-streaming 0.13 (docs, "MDS", and the
reader) and litdata 0.2.76 (docs, "PyTreeLoader"); both are opened by these libraries in the tests.
The index is handed over last: without it neither library opens the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError
from tokenmill.store.dataset import Dataset, StreamType
from tokenmill.store.export_facts import lineage, sample_facts
from tokenmill.store.placing import Place
from tokenmill.store.rows import Row

# What both libraries write by default: a chunk is one download, and is held here in memory.
CHUNK_BYTES = 64 << 20
_WORD = 4
INDEX = "index.json"
OWN_COLUMNS = ("id", "key", "meta")
# codes of a dtype in litdata's numpy serializer
_LITDATA_DTYPES = {"uint8": 4, "uint16": 5, "uint32": 6, "uint64": 7, "float16": 8, "float32": 9}


def mds_names(dataset: Dataset) -> tuple[str, ...]:
    return (INDEX, f"shard.{'[0-9]' * 5}.mds")


def litdata_names(dataset: Dataset) -> tuple[str, ...]:
    return (INDEX, "chunk-0-[0-9]*.bin")


def write_mds(dataset: Dataset, scratch: Path, place: Place, file_bytes: int) -> tuple[str, ...]:
    """Columns id (bytes), key (str), meta (json: source, pipeline, verdicts) and each stream as an
    ndarray with its axes; a stream without tokens has zero ids, and meta says why."""
    types = dataset.stream_types()
    encodings = {"id": "bytes", "key": "str", "meta": "json"}
    encodings |= {_column(s): f"ndarray:{kind.dtype}" for s, kind in types.items()}
    names = sorted(encodings)
    limit = min(file_bytes, CHUNK_BYTES)
    config = {
        "column_encodings": [encodings[name] for name in names],
        "column_names": names,
        "column_sizes": [None] * len(names),
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": limit,
        "version": 2,
    }
    head = json.dumps(config, sort_keys=True).encode()
    chunks = _Chunks(scratch, place, limit, "shard.{:05d}.mds", head)
    for row in dataset:
        columns = _own(row, list(types))
        columns |= {_column(s): _mds_array(_array(row, s, kind)) for s, kind in types.items()}
        chunks.write([columns[name] for name in names], _tokens(row, types))
    chunks.finish()
    shards = [
        {
            **config,
            "raw_data": {"basename": name, "bytes": size, "hashes": {}},
            "samples": samples,
            "zip_data": None,
        }
        for name, samples, size in chunks.done
    ]
    _place_index({"version": 2, "shards": shards, "tokenmill": lineage(dataset)}, scratch, place)
    return ()


def write_litdata(
    dataset: Dataset, scratch: Path, place: Place, file_bytes: int
) -> tuple[str, ...]:
    """A sample is a dictionary: id (bytes), key, meta (str: JSON as in MDS) and each stream as a
    numpy array with its axes; a stream without tokens has zero ids, and meta says why."""
    types = dataset.stream_types()
    limit = min(file_bytes, CHUNK_BYTES)
    chunks = _Chunks(scratch, place, limit, "chunk-0-{}.bin", b"")
    names = [*OWN_COLUMNS, *(_column(s) for s in types)]
    for row in dataset:
        own = _own(row, list(types))
        arrays = [_litdata_array(_array(row, s, kind)) for s, kind in types.items()]
        chunks.write([*(own[name] for name in OWN_COLUMNS), *arrays], _tokens(row, types))
    chunks.finish()
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    spec = {
        "type": "builtins.dict",
        "context": json.dumps(names),
        "children_spec": [leaf] * len(names),
    }
    config = {
        "chunk_bytes": limit,
        "chunk_size": None,
        "compression": None,
        "data_format": ["bytes", "str", "str", *["numpy"] * len(types)],
        "data_spec": json.dumps([1, spec]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    found = [
        {"chunk_bytes": size, "chunk_size": samples, "dim": None, "filename": name}
        for name, samples, size in chunks.done
    ]
    # a fixed text instead of a clock: equal snapshots give equal bytes
    index = {"chunks": found, "config": config, "updated_at": dataset.snapshot}
    _place_index({**index, "tokenmill": lineage(dataset)}, scratch, place)
    return ()


def _place_index(index: dict[str, Any], scratch: Path, place: Place) -> None:
    path = scratch / INDEX
    path.write_text(json.dumps(index, sort_keys=True))
    place(path, INDEX, (0, 0))


def _column(stream: str) -> str:
    return f"{stream}.ids" if stream in OWN_COLUMNS else stream


def _own(row: Row, streams: list[str]) -> dict[str, bytes]:
    facts = sample_facts(row, streams)
    return {
        "id": row.id,
        "key": facts.pop("key").encode("utf-8", "backslashreplace"),
        "meta": json.dumps(facts, sort_keys=True).encode(),
    }


def _array(row: Row, stream: str, kind: StreamType) -> NDArray[Any]:
    """The ids with their axes; [0] where there are none."""
    ids, shape = row.get(stream), None
    if ids is not None:
        shape = row.shape(stream)
    if ids is None or shape is None:
        return np.zeros(0, kind.dtype)
    found: NDArray[Any] = ids.astype(kind.dtype, copy=False).reshape(shape)
    return found


def _tokens(row: Row, types: dict[str, StreamType]) -> int:
    return sum(len(ids) for s in types if (ids := row.get(s)) is not None)


def _mds_array(array: NDArray[Any]) -> bytes:
    """`ndarray` of a fixed dtype: a byte of (axes << 2 | log2 of a dimension's bytes), the
    dimensions, the values."""
    code = next(i for i in range(4) if max(array.shape) < 1 << (8 << i))
    dims = np.array(array.shape, f"<u{1 << code}")
    return bytes([array.ndim << 2 | code]) + dims.tobytes() + array.tobytes()


def _litdata_array(array: NDArray[Any]) -> bytes:
    """`numpy`: uint32 each of dtype code, axes, every dimension; the values."""
    head = np.array([_LITDATA_DTYPES[array.dtype.name], array.ndim, *array.shape], "<u4")
    return head.tobytes() + array.tobytes()


class _Chunks:
    """One chunk in memory, handed over when the next sample would pass the limit."""

    def __init__(self, scratch: Path, place: Place, limit: int, name: str, head: bytes) -> None:
        self._scratch, self._place, self._limit = scratch, place, limit
        self._name, self._head = name, head
        self._samples: list[bytes] = []
        self._size = self._tokens = 0
        self.done: list[tuple[str, int, int]] = []  # name, samples, bytes

    def write(self, columns: Sequence[bytes], tokens: int) -> None:
        sizes = [len(column) for column in columns]
        sample = b"".join([np.array(sizes, "<u4").tobytes(), *columns])
        fixed = 2 * _WORD + len(self._head)
        if fixed + _WORD + len(sample) >= 1 << 32:
            raise JobError(
                "a sample is too large for this format",
                why=f"{len(sample)} bytes, and offsets are of 32 bits",
                remedy="export to another format, or fewer streams",
            )
        if self._samples and fixed + self._size + _WORD + len(sample) > self._limit:
            self.finish()
        self._samples.append(sample)
        self._size += _WORD + len(sample)
        self._tokens += tokens

    def finish(self) -> None:
        """The open chunk, if it has samples, is whole."""
        if not self._samples:
            return
        count = len(self._samples)
        begin = (count + 2) * _WORD + len(self._head)
        ends = np.cumsum([begin, *map(len, self._samples)], dtype=np.int64)
        name = self._name.format(len(self.done))
        path = self._scratch / name
        with path.open("wb") as file:
            file.write(np.array([count, *ends], "<u4").tobytes())
            file.write(self._head)
            file.writelines(self._samples)
        self.done.append((name, count, path.stat().st_size))
        self._place(path, name, (count, self._tokens))
        self._samples, self._size, self._tokens = [], 0, 0
