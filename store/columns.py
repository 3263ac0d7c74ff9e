"""Rows of tokens to Arrow and back: flat buffers all the way, no object per sample.

A shard's columns: id fixed_size_binary(16), key string, source dictionary<int32, string>,
verdict uint8, ids list<uintN> or packed bits (null where there are no tokens), and where they are
given: span string, shape list<int32>, n_valid int32, media_valid int64. Continuous latents are
`ids` of floats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.identity import ID_BYTES
from tokenmill.schemas.shard import TokenRows, Verdict
from tokenmill.store import packed

# What `ids` may hold; bfloat16 needs an Arrow extension type, which is to come.
DTYPES = ("uint8", "uint16", "uint32", "uint64", "float16", "float32")
MAX_OFFSET = 2**31 - 1  # list offsets are int32 per batch
ROW_BYTES = 40  # id, verdict, offsets, source index, a little more: for the size of a batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which columns a shard file has; `dtype` is that of `ids`, `bits` their width if packed."""

    dtype: str
    span: bool
    shape: bool
    n_valid: bool
    media_valid: bool = False
    bits: int | None = None

    @classmethod
    def of(cls, rows: TokenRows, dtype: str) -> Layout:
        return cls(
            dtype=dtype,
            span=rows.spans is not None,
            shape=rows.shapes is not None,
            n_valid=rows.n_valid is not None,
            media_valid=rows.media_valid is not None,
        )

    def schema(self, metadata: dict[bytes, bytes]) -> pa.Schema:
        fields = [
            pa.field("id", pa.binary(ID_BYTES), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("verdict", pa.uint8(), nullable=False),
            self._ids(),
        ]
        fields += [pa.field("span", pa.string())] if self.span else []
        fields += [pa.field("shape", pa.list_(pa.int32()))] if self.shape else []
        fields += [pa.field("n_valid", pa.int32())] if self.n_valid else []
        fields += [pa.field("media_valid", pa.int64())] if self.media_valid else []
        return pa.schema(fields, metadata=metadata)

    def _ids(self) -> pa.Field:
        if self.bits is not None:
            return packed.field(self.bits, self.dtype)
        return pa.field("ids", pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype))))


def checked(rows: TokenRows, dtype: str) -> TokenRows:
    """`rows` with ids of exactly `dtype`.

    Raises ValueError where columns disagree or an id does not fit: a fault of the caller's.
    """
    n = rows.n
    optional = (rows.spans, rows.shapes, rows.n_valid, rows.media_valid)
    per_row = (rows.keys, rows.sources, rows.lengths, *optional)
    if len(rows.ids) != n * ID_BYTES or any(c is not None and len(c) != n for c in per_row):
        raise ValueError(f"columns of unequal length: {n} verdicts, {len(rows.ids)} bytes of ids")
    lengths = np.asarray(rows.lengths, dtype=np.int64)
    if n and (lengths.min() < 0 or lengths.sum() != len(rows.values)):
        raise ValueError(f"lengths sum to {lengths.sum()}, but there are {len(rows.values)} ids")
    if np.any(lengths[rows.verdicts != Verdict.TOKENS]):
        raise ValueError("a row without tokens has a length")
    if n and lengths.max() > MAX_OFFSET:
        raise ValueError("a sample of more than 2^31 ids does not fit into a shard")
    return replace(rows, lengths=lengths, values=_as(rows.values, np.dtype(dtype)))


def _as(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if values.dtype == dtype:
        return np.ascontiguousarray(values)
    fits = np.can_cast(values.dtype, dtype, "safe") or not len(values)
    if not fits and dtype.kind == "u" and values.dtype.kind in "ui":
        fits = bool(values.min() >= 0 and values.max() <= np.iinfo(dtype).max)
    if not fits:
        raise ValueError(f"ids of {values.dtype} do not fit into {dtype}")
    return values.astype(dtype)


class RowBuffer:
    """Rows waiting to fill a batch: appended in any portions, taken in any other.

    Keeps views of what was appended, so the caller's arrays must not change afterwards.
    """

    def __init__(self) -> None:
        self._chunks: deque[_Chunk] = deque()
        self.rows = 0
        self.size = 0  # bytes, near enough

    def add(self, rows: TokenRows) -> None:
        if rows.n:
            chunk = _Chunk(rows)
            self._chunks.append(chunk)
            self.rows += rows.n
            self.size += int(chunk.sizes[-1])

    def fits(self, size: int) -> int:
        """How many of the first rows stay within `size` bytes; at least one."""
        count = 0
        for chunk in self._chunks:
            within = chunk.within(size)
            count += within
            if chunk.at + within < chunk.rows.n:
                break
            size -= chunk.size_of(within)
        return max(1, count)

    def head(self, rows: int, size: int) -> bytes:
        """The ids of the first `rows`, at most `size` bytes of them: to try compression on."""
        parts = []
        for chunk in self._chunks:
            n = min(rows, chunk.rows.n - chunk.at)
            values = chunk.rows.values[chunk.lengths[chunk.at] : chunk.lengths[chunk.at + n]]
            parts.append(values[: size // values.dtype.itemsize].tobytes())
            rows, size = rows - n, size - len(parts[-1])
            if rows <= 0 or size <= 0:
                break
        return b"".join(parts)

    def take(self, count: int) -> TokenRows:
        """The first `count` rows, removed; count is at most `self.rows`."""
        taken: list[TokenRows] = []
        self.rows -= count
        while count:
            chunk = self._chunks[0]
            n = min(count, chunk.rows.n - chunk.at)
            self.size -= chunk.size_of(n)
            taken.append(chunk.take(n))
            if chunk.at == chunk.rows.n:
                self._chunks.popleft()
            count -= n
        return taken[0] if len(taken) == 1 else _joined(taken)


class _Chunk:
    """One appended portion, with prefix sums so that a cut costs only the rows it takes."""

    def __init__(self, rows: TokenRows) -> None:
        keys = np.fromiter(map(len, rows.keys), dtype=np.int64, count=rows.n)
        self.rows = rows
        self.at = 0
        self.lengths = _prefix_sums(rows.lengths)
        self.sizes = _prefix_sums(rows.lengths * rows.values.dtype.itemsize + keys + ROW_BYTES)

    def size_of(self, n: int) -> int:
        return int(self.sizes[self.at + n] - self.sizes[self.at])

    def within(self, size: int) -> int:
        end = np.searchsorted(self.sizes, self.sizes[self.at] + size, side="right")
        return int(end) - 1 - self.at

    def take(self, n: int) -> TokenRows:
        start, self.at = self.at, self.at + n
        if n == self.rows.n:
            return self.rows
        return _slice(self.rows, start, self.at, self.lengths)


def _prefix_sums(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    sums = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def _slice(rows: TokenRows, start: int, stop: int, ends: NDArray[np.int64]) -> TokenRows:
    at = slice(start, stop)
    return TokenRows(
        ids=rows.ids[start * ID_BYTES : stop * ID_BYTES],
        keys=rows.keys[at],
        sources=rows.sources[at],
        verdicts=rows.verdicts[at],
        values=rows.values[ends[start] : ends[stop]],
        lengths=rows.lengths[at],
        shapes=None if rows.shapes is None else rows.shapes[at],
        spans=None if rows.spans is None else rows.spans[at],
        n_valid=None if rows.n_valid is None else rows.n_valid[at],
        media_valid=None if rows.media_valid is None else rows.media_valid[at],
    )


def _joined(parts: Sequence[TokenRows]) -> TokenRows:
    return TokenRows(
        ids=b"".join(p.ids for p in parts),
        keys=[key for p in parts for key in p.keys],
        sources=[source for p in parts for source in p.sources],
        verdicts=np.concatenate([p.verdicts for p in parts]),
        values=np.concatenate([p.values for p in parts]),
        lengths=np.concatenate([p.lengths for p in parts]),
        shapes=_concatenated([p.shapes for p in parts]),
        spans=_chained([p.spans for p in parts]),
        n_valid=_concatenated([p.n_valid for p in parts]),
        media_valid=_concatenated([p.media_valid for p in parts]),
    )


def _concatenated(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if len(present) == len(parts) else None


def _chained(parts: Sequence[Sequence[str | None] | None]) -> list[str | None] | None:
    present = [part for part in parts if part is not None]
    return [span for part in present for span in part] if len(present) == len(parts) else None


class SourceNames:
    """The dictionary of one file's `source` column; it only grows, and grows rarely.

    A file whose sources are all known beforehand has one dictionary; a source that turns up later
    costs a delta, which pyarrow reads but not every other reader does.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._index: dict[str, int] = {}
        self._values = pa.array([], pa.string())
        self._grow(list(known))

    def _grow(self, names: Sequence[str]) -> None:
        fresh = [name for name in dict.fromkeys(names) if name not in self._index]
        if fresh:
            for name in fresh:
                self._index[name] = len(self._index)
            self._values = pa.concat_arrays([self._values, texts(fresh)])

    def encode(self, names: Sequence[str]) -> pa.DictionaryArray:
        index = self._index
        try:
            numbers = [index[name] for name in names]
        except KeyError:
            self._grow(names)
            numbers = [index[name] for name in names]
        return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), self._values)


def texts(values: Sequence[str | None]) -> pa.Array:
    """A string column; what is not valid Unicode (undecodable file names) is escaped."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        plain = [v if v is None else v.encode("utf-8", "backslashreplace") for v in values]
        return pa.array(plain, pa.string())


def to_batch(rows: TokenRows, schema: pa.Schema, names: SourceNames) -> pa.RecordBatch:
    """One record batch of `schema` (see Layout). Null ids, shape, n_valid without tokens.

    Raises ValueError where an id is too large for packed bits.
    """
    present = rows.verdicts == Verdict.TOKENS
    bits = packed.bits_of(schema.field("ids"))
    columns = {
        "id": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(ID_BYTES), rows.n, [None, pa.py_buffer(rows.ids)]
        ),
        "key": texts(rows.keys),
        "source": names.encode(rows.sources),
        "verdict": pa.array(rows.verdicts, pa.uint8()),
        "ids": _lists(rows.lengths, pa.array(rows.values), present)
        if bits is None
        else packed.lists(rows.lengths, rows.values, present, bits),
    }
    if "span" in schema.names:
        columns["span"] = texts(rows.spans if rows.spans is not None else [None] * rows.n)
    if rows.shapes is not None:
        shapes = np.ascontiguousarray(rows.shapes, dtype=np.int32)
        flat = pa.array(shapes[present].ravel())
        columns["shape"] = _lists(present * np.int64(shapes.shape[1]), flat, present)
    if rows.n_valid is not None:
        columns["n_valid"] = pa.array(rows.n_valid, pa.int32(), mask=~present)
    if rows.media_valid is not None:
        columns["media_valid"] = pa.array(rows.media_valid, pa.int64(), mask=~present)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _lists(
    lengths: NDArray[np.int64], values: pa.Array, present: NDArray[np.bool_]
) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = None if present.all() else pa.array(~present)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)


def hashable(rows: TokenRows) -> TokenRows:
    """`rows` as the content hash sees them: only the shapes that a shard keeps."""
    if rows.shapes is None:
        return rows
    return replace(rows, shapes=rows.shapes[rows.verdicts == Verdict.TOKENS])


def from_batch(batch: pa.RecordBatch) -> TokenRows:
    """What the content hash needs of a validated batch, keys and sources left out."""
    lists = batch.column("ids")
    valid = np.asarray(lists.is_valid())
    offsets = np.asarray(lists.offsets)
    values = lists.flatten()
    shapes: NDArray[np.int32] | None = None
    if "shape" in batch.schema.names:
        flat = np.asarray(batch.column("shape").flatten())
        shapes = flat.reshape(int(valid.sum()), -1) if valid.any() else flat.reshape(0, 1)
    ids = batch.column("id")
    start = ids.offset * ID_BYTES
    return TokenRows(
        ids=ids.buffers()[1][start : start + len(ids) * ID_BYTES].to_pybytes() if len(ids) else b"",
        keys=(),
        sources=(),
        verdicts=np.asarray(batch.column("verdict")),
        values=np.asarray(values),
        lengths=np.where(valid, np.diff(offsets), 0).astype(np.int64),
        shapes=shapes,
    )
