"""The relation `samples`: a row per enumerated sample and stream, read from the shards themselves.

The ledger knows inputs and units; which sample a token belongs to stands in the shard files only.
Read as a stream of record batches, so that memory stays bounded whatever the store holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.schemas.shard import TokenRows, Verdict
from tokenmill.store.access import Access
from tokenmill.store.columns import from_batch
from tokenmill.store.dataset import Dataset
from tokenmill.store.shards import ShardReader

SAMPLES_SCHEMA = pa.schema(
    [
        ("pipeline", pa.string()),
        ("stream", pa.string()),
        ("path", pa.string()),
        ("unit", pa.string()),  # hex
        ("row", pa.int64()),  # of the shard file
        ("unit_row", pa.int64()),  # of the (unit, stream), as in the view `quarantine`
        ("sample", pa.string()),  # hex
        ("key", pa.string()),
        ("source", pa.string()),
        ("span", pa.string()),
        ("verdict", pa.string()),
        ("first_token", pa.int64()),  # position of its first token within the shard file
        ("tokens", pa.int64()),
        ("content", pa.string()),  # hex digest of its shape and ids; null unless asked for
    ]
)
_VERDICTS = {int(verdict): verdict.name.lower() for verdict in Verdict}


def samples_reader(
    dataset: Dataset,
    *,
    path: str | None = None,
    pipeline: str | None = None,
    stream: str | None = None,
    content: bool = False,
) -> pa.RecordBatchReader:
    """SAMPLES_SCHEMA over the shards of a dataset, without superseded rows; to be read once.

    path, pipeline, stream: only these. content: also digest every sample's ids, which costs a
    pass over all tokens. Raises JobError for a path that the snapshot does not name.
    """
    table = dataset.snapshot_table()
    for name, value in (("path", path), ("pipeline", pipeline), ("stream", stream)):
        if value is not None:
            table = table.filter(pc.equal(table[name], value))
    if path is not None and table.num_rows == 0:
        raise JobError(
            f"this snapshot has no shard {path!r}",
            where=dataset.uri,
            remedy="`tokenmill query STORE 'select path from shards'` lists them",
        )
    rows = table.sort_by([("pipeline", "ascending"), ("path", "ascending")]).to_pylist()
    access = Access(dataset.uri)
    batches = (batch for row in rows for batch in _shard(access, row, content))
    return pa.RecordBatchReader.from_batches(SAMPLES_SCHEMA, batches)


def _shard(access: Access, file: dict[str, object], content: bool) -> Iterator[pa.RecordBatch]:
    row, token = 0, 0
    excluded = file["exclude"] or []
    assert isinstance(excluded, list)
    with ShardReader(access, str(file["path"])) as reader:
        first = reader.meta.first_row
        for record in reader.batches():
            rows = from_batch(record)
            keep = np.ones(rows.n, bool)
            for gone in excluded:
                keep[max(0, gone["start"] - first - row) : max(0, gone["end"] - first - row)] = 0
            made = _batch(record, rows, file, row, first, token)
            if content:
                digests = pa.array(_digests(rows), pa.string())
                made = made.set_column(len(SAMPLES_SCHEMA) - 1, "content", digests)
            yield made if keep.all() else made.filter(pa.array(keep))
            row += rows.n
            token += len(rows.values)


def _batch(
    record: pa.RecordBatch,
    rows: TokenRows,
    file: dict[str, object],
    row: int,
    first: int,
    token: int,
) -> pa.RecordBatch:
    n = rows.n
    unit = file["unit"]
    assert isinstance(unit, bytes)
    same = {name: file[name] for name in ("pipeline", "stream", "path")} | {"unit": unit.hex()}
    ids = [rows.ids[i * ID_BYTES : (i + 1) * ID_BYTES].hex() for i in range(n)]
    columns = {
        **{name: pa.repeat(pa.scalar(value, pa.string()), n) for name, value in same.items()},
        "row": pa.array(np.arange(row, row + n)),
        "unit_row": pa.array(np.arange(first + row, first + row + n)),
        "sample": pa.array(ids, pa.string()),
        "key": record.column("key").cast(pa.string()),
        "source": record.column("source").cast(pa.string()),
        "verdict": pa.array([_VERDICTS[int(v)] for v in rows.verdicts], pa.string()),
        "first_token": pa.array(token + np.cumsum(rows.lengths) - rows.lengths, pa.int64()),
        "tokens": pa.array(rows.lengths, pa.int64()),
    }
    if "span" in record.schema.names:
        columns["span"] = record.column("span").cast(pa.string())
    arrays = [columns.get(f.name, pa.nulls(n, f.type)) for f in SAMPLES_SCHEMA]
    return pa.record_batch(arrays, schema=SAMPLES_SCHEMA)


def _digests(rows: TokenRows) -> list[str | None]:
    """Of every sample with tokens: BLAKE2b over its shape and its ids as 64-bit integers, so that
    a shard's dtype (the narrowest that fits) makes no difference."""
    ends = np.cumsum(rows.lengths)
    found: list[str | None] = []
    shaped = 0  # shapes has the rows with tokens only
    for i in range(rows.n):
        if rows.verdicts[i] != Verdict.TOKENS:
            found.append(None)
            continue
        digest = hashlib.blake2b(digest_size=ID_BYTES)
        if rows.shapes is not None:
            digest.update(np.ascontiguousarray(rows.shapes[shaped], "<i4").tobytes())
            shaped += 1
        values = rows.values[ends[i] - rows.lengths[i] : ends[i]]
        digest.update(values.astype("<u8").tobytes())
        found.append(digest.hexdigest())
    return found
