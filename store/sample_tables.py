"""Aligned samples as Arrow tables: a row per sample, a list column per stream.

Columns id, key, source, pipeline; per stream its ids as a list (null: no tokens) and, where shapes
vary, `<stream>.shape`. A stream called like one of ours becomes `<stream>.ids`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.store.dataset import Dataset, StreamType
from tokenmill.store.export_facts import lineage
from tokenmill.store.rows import Batch, Column

_OWN = ("id", "key", "source", "pipeline")


def column_name(stream: str) -> str:
    return f"{stream}.ids" if stream in _OWN else stream


def samples_schema(
    dataset: Dataset, types: Mapping[str, StreamType], *, fixed_ids: bool = True
) -> pa.Schema:
    """The lineage lies in the metadata under `tokenmill`. fixed_ids: `id` is 16 bytes by type;
    else plain binary, for readers that know no fixed size.

    Raises JobError where two columns would have one name.
    """
    fields = [
        pa.field("id", pa.binary(ID_BYTES) if fixed_ids else pa.binary()),
        pa.field("key", pa.string()),
        pa.field("source", pa.string()),
        pa.field("pipeline", pa.string()),
    ]
    for stream, kind in types.items():
        fields.append(pa.field(column_name(stream), pa.list_(pa.from_numpy_dtype(kind.dtype))))
        if kind.shaped:
            fields.append(pa.field(f"{stream}.shape", pa.list_(pa.int32())))
    names = [field.name for field in fields]
    if len(set(names)) != len(names):
        raise JobError(
            "two columns of the export would have one name",
            why=f"the columns are {', '.join(names)}",
            remedy="export the streams one by one (--stream)",
        )
    return pa.schema(fields, metadata={"tokenmill": json.dumps(lineage(dataset), sort_keys=True)})


def samples_record(
    batch: Batch, types: Mapping[str, StreamType], schema: pa.Schema
) -> pa.RecordBatch:
    """A batch in the columns of `samples_schema`; ids are not copied where their dtype is the
    stream's."""
    n = len(batch)
    arrays = [
        _ids(batch, schema.field("id").type),
        pa.array(batch.keys, pa.string()),
        pa.array(batch.sources, pa.string()),
        pa.repeat(pa.scalar(batch.pipeline), n),
    ]
    for stream, kind in types.items():
        column = batch.columns.get(stream)
        arrays.append(_lists(column, kind, n))
        if kind.shaped:
            arrays.append(_shapes(column, n))
    return pa.record_batch(arrays, schema=schema)


def _ids(batch: Batch, kind: pa.DataType) -> pa.Array:
    n, data = len(batch), pa.py_buffer(batch.ids)
    if kind == pa.binary(ID_BYTES):
        return pa.FixedSizeBinaryArray.from_buffers(kind, n, [None, data])
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * np.int32(ID_BYTES))
    return pa.Array.from_buffers(kind, n, [None, offsets, data])


def _lists(column: Column | None, kind: StreamType, n: int) -> pa.Array:
    element = pa.from_numpy_dtype(kind.dtype)
    if column is None:
        return pa.nulls(n, pa.list_(element))
    values = pa.array(column.values.astype(kind.dtype, copy=False))
    offsets = pa.array(column.offsets.astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(column.verdicts != 0))


def _shapes(column: Column | None, n: int) -> pa.Array:
    if column is None or column.shapes is None:
        return pa.nulls(n, pa.list_(pa.int32()))
    ndim = column.shapes.shape[1]
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * ndim)
    values = pa.array(np.ascontiguousarray(column.shapes).ravel())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(column.verdicts != 0))
