"""Shards as numpy sees them: one flat array of values over the mapped file, and where rows start.

A plain local shard is mapped where it lies. What is remote or encoded is decoded once per node into
the bounded cache (temporary name, content hash checked, atomic rename), or into memory where there
is no cache, and mapped there: after that every gather is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.errors import CorruptStore
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.schemas.shard import ContentHasher
from tokenmill.store.access import Access
from tokenmill.store.cache import LocalCache
from tokenmill.store.columns import from_batch
from tokenmill.store.shards import ShardReader

_COLUMNS = ("id", "verdict", "ids", "shape")
_PLAIN = "plain"
# Record batches of a decoded copy: 64 rows, as zstd shards have, would cost a lookup each.
_COPY_ROWS = 1024
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRef:
    """A shard as the snapshot names it."""

    path: str
    content_hash: bytes
    encoding: str
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardRows:
    """values: the mapped file as a flat array of the ids' dtype; row i is
    values[starts[i]:starts[i] + lengths[i]]. has: bool[n], whether a row has tokens. shapes:
    int32[n, ndim], zeros without tokens, or None."""

    values: NDArray[Any]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    has: NDArray[np.bool_]
    batches: tuple[pa.RecordBatch, ...]

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8[len(rows), 16]: the sample ids of these rows."""
        if not len(rows):
            return np.zeros((0, ID_BYTES), np.uint8)
        data = self.values.view(np.uint8)
        shape = (max(0, len(data) - ID_BYTES + 1), ID_BYTES)
        table = np.lib.stride_tricks.as_strided(data, shape, (1, 1), writeable=False)
        batch, at = np.divmod(rows, self.batches[0].num_rows)
        found: NDArray[np.uint8] = table[self._id_bases[batch] + at * ID_BYTES]
        return found

    @cached_property
    def _id_bases(self) -> NDArray[np.int64]:
        """Where the ids of each record batch begin in the file."""
        origin = self.values.__array_interface__["data"][0]
        return np.array(
            [b.column("id").buffers()[1].address - origin for b in self.batches], np.int64
        )

    @cached_property
    def shapes(self) -> NDArray[np.int32] | None:
        if not self.batches or "shape" not in self.batches[0].schema.names:
            return None
        columns = [batch.column("shape") for batch in self.batches]
        lengths = np.concatenate([np.asarray(c.value_lengths().fill_null(0)) for c in columns])
        shapes = np.zeros((len(lengths), int(lengths.max(initial=0))), np.int32)
        flat = np.concatenate([c.flatten().to_numpy() for c in columns])
        full = lengths == shapes.shape[1]
        if shapes.shape[1] and len(flat) == int(full.sum()) * shapes.shape[1]:
            shapes[full] = flat.reshape(-1, shapes.shape[1])
        return shapes


def open_rows(access: Access, shard: ShardRef, cache: LocalCache | None) -> ShardRows:
    """Raises CorruptStore where the shard is not what the snapshot says, StoreUnavailable."""
    if access.local and shard.encoding == _PLAIN:
        with ShardReader(access, shard.path, columns=("id", "ids", "shape")) as reader:
            region = reader.region
            batches = tuple(reader.unchecked())
            dtype = reader.meta.dtype
        assert region is not None  # it is local
        return _rows(region, batches, np.dtype(dtype), shard)
    if cache is None:
        sink = pa.BufferOutputStream()
        dtype = _decode(access, shard, sink)
        return _open_copy(sink.getvalue(), shard)
    name = f"{shard.content_hash.hex()}.arrow"
    path = cache.made(name, lambda target: _decode_file(access, shard, target))
    with pa.memory_map(str(path)) as mapped:
        region = mapped.read_buffer()
    return _open_copy(region, shard)


def _decode_file(access: Access, shard: ShardRef, target: Path) -> None:
    with pa.OSFile(str(target), "wb") as sink:
        _decode(access, shard, sink)


def _decode(access: Access, shard: ShardRef, sink: Any) -> str:
    """Write what a loader needs of a shard, plain, and check its content hash. -> its dtype."""
    with ShardReader(access, shard.path, columns=_COLUMNS) as reader:
        hasher = ContentHasher(reader.meta.dtype)
        writer: Any = None
        for group in _grouped(reader.batches()):
            for batch in group.to_batches():
                hasher.update(from_batch(batch))
                if writer is None:
                    writer = pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
        if writer is None:
            raise CorruptStore("a shard has no rows", where=access.full(shard.path))
        writer.close()
        if hasher.digest() != shard.content_hash:
            raise CorruptStore(
                "a shard is not what the snapshot says",
                where=access.full(shard.path),
                why="its content hash is another one",
                remedy="`tokenmill verify STORE` says how far the damage goes",
            )
        return reader.meta.dtype


def _grouped(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.Table]:
    """Small record batches put together: tables of one chunk."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= _COPY_ROWS:
            yield pa.Table.from_batches(held).combine_chunks()
            held = []
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def _open_copy(region: pa.Buffer, shard: ShardRef) -> ShardRows:
    with pa.ipc.open_file(pa.BufferReader(region), options=_OPTIONS) as reader:
        batches = tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
        value_type = reader.schema.field("ids").type.value_type
    return _rows(region, batches, np.dtype(value_type.to_pandas_dtype()), shard)


def _rows(
    region: pa.Buffer, batches: tuple[pa.RecordBatch, ...], dtype: np.dtype[Any], shard: ShardRef
) -> ShardRows:
    """All batches checked at once: every row lies within the ids of its batch, they in the file."""
    count = region.size // dtype.itemsize
    sizes = np.array([b.num_rows for b in batches], np.int64)
    offsets = np.zeros(int(sizes.sum()) + len(batches), np.int32)
    has = np.ones(int(sizes.sum()), bool)
    ends = np.cumsum(sizes)
    places = np.zeros(len(batches), np.int64)  # where each batch's ids begin, and how many
    limits = np.zeros(len(batches), np.int64)
    for i, (batch, row) in enumerate(zip(batches, (ends - sizes).tolist(), strict=True)):
        lists, n = batch.column("ids"), batch.num_rows
        flat, buffers = lists.values, lists.buffers()
        limits[i] = len(flat)
        if len(flat):
            places[i] = flat.buffers()[1].address + flat.offset * dtype.itemsize - region.address
        if n:
            offsets[row + i : row + i + n + 1] = np.frombuffer(
                buffers[1], np.int32, n + 1, lists.offset * 4
            )
        if lists.null_count:
            has[row : row + n] = np.asarray(lists.is_valid())
    first = offsets[np.arange(len(has)) + np.repeat(np.arange(len(batches)), sizes)]
    last = offsets[np.arange(len(has)) + np.repeat(np.arange(len(batches)), sizes) + 1]
    _check_bounds(shard, places, limits, dtype, count, (first < 0) | (last < first))
    if (last > np.repeat(limits, sizes)).any() or len(has) != shard.rows:
        raise _disagrees(shard, f"it has {len(has)} rows, the snapshot says {shard.rows}")
    return ShardRows(
        values=np.frombuffer(region, dtype, count),
        starts=first.astype(np.int64) + np.repeat(places // dtype.itemsize, sizes),
        lengths=np.where(has, last - first, 0).astype(np.int32),
        has=has,
        batches=batches,
    )


def _check_bounds(
    shard: ShardRef,
    places: NDArray[np.int64],
    limits: NDArray[np.int64],
    dtype: np.dtype[Any],
    count: int,
    wrong: NDArray[np.bool_],
) -> None:
    used = limits > 0
    at = places[used]
    if wrong.any() or (at < 0).any() or (at % dtype.itemsize).any():
        raise _disagrees(shard, "its offsets are not those of lists in the file")
    if (at // dtype.itemsize + limits[used] > count).any():
        raise _disagrees(shard, "its ids lie outside the file")


def _disagrees(shard: ShardRef, why: str) -> CorruptStore:
    return CorruptStore(
        "a shard cannot be believed",
        where=shard.path,
        why=why,
        remedy="`tokenmill verify STORE` says how far the damage goes",
    )
