"""The shard file: columns, metadata keys, limits, and the content hash.

A shard is an Arrow IPC file with one row per enumerated sample of one (unit, stream), null `ids`
where there are no tokens, and every constant in the schema's metadata, so that it is understood
alone. Record batches have a fixed number of rows N (all but the last), so row r is in batch r // N.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The newest that is read. 2 brought packed ids; files without them are still written as 1, so that
# an older tokenmill refuses by name what it cannot read and nothing else.
FORMAT_VERSION = 2
FORMAT_OF = {"plain": 1, "zstd": 1, "packed": 2}

# Metadata keys of the Arrow schema; values are UTF-8, JSON where said.
META_FORMAT = b"tokenmill.format_version"
META_SHARD = b"tokenmill.shard"  # JSON: ShardMeta
META_BATCH_ROWS = b"tokenmill.batch_rows"
META_ENCODING = b"tokenmill.encoding"  # plain | zstd | packed

# Rolled at 128 MiB: measured, design section 8 (128 to 256)
ROLL_BYTES = 128 << 20
BATCH_ROWS = 1024
BATCH_ROWS_ZSTD = 64  # a random read decompresses one batch: keep it small
BATCH_BYTES = 64 << 20
# zstd pays only below this ratio (text); above it costs 10 to 100 times in random access
ZSTD_RATIO = 0.7
# packed bits pay at or below this part of the dtype: 11 of 16 bits (audio), 18 of 32 (video), not
# 14 of 16 (image grids), where a copy would save an eighth
PACKED_RATIO = 0.8


class Verdict(IntEnum):
    TOKENS = 0
    QUARANTINED = 1
    ABSENT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMeta:
    """Constant for a shard, stored as JSON in its metadata. No clocks: shard bytes are
    reproducible (G6)."""

    pipeline: str
    stream: str
    unit: str  # hex
    modality: str
    tokenizer: str
    output: str
    space: str
    recipe: str
    dtype: str  # of `ids`: uint8 | uint16 | uint32 | uint64, float16 | float32 where continuous
    axes: tuple[str, ...]
    codebook_sizes: tuple[int, ...]
    first_row: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRows:
    """Rows to append to a shard, column by column. n rows in enumeration order.

    ids: n x 16 bytes, concatenated. values: the flat ids of the rows with tokens; lengths[i] is 0
    for the others. shapes: int32[n, ndim] where the shape varies, else None (1-D: the length).
    n_valid, media_valid: how much of the first axis, and how many frames or audio samples of the
    media, is not padding.
    """

    ids: bytes
    keys: Sequence[str]
    sources: Sequence[str]
    verdicts: NDArray[np.uint8]
    values: NDArray[Any]
    lengths: NDArray[np.int64]
    shapes: NDArray[np.int32] | None = None
    spans: Sequence[str | None] | None = None  # "start/end" of a clip or segment in its media
    n_valid: NDArray[np.int32] | None = None
    media_valid: NDArray[np.int64] | None = None

    @property
    def n(self) -> int:
        return len(self.verdicts)


class ContentHasher:
    """SHA-256 over (sample id, dtype, shape, ids) of rows in order, independent of batching,
    compression and library versions (G6)."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._ids = hashlib.sha256()
        self._lengths = hashlib.sha256()
        self._shapes = hashlib.sha256()
        self._values = hashlib.sha256()

    def update(self, rows: TokenRows) -> None:
        self._ids.update(rows.ids)
        # verdict beside length: an empty sequence is not an absent one
        self._lengths.update(
            np.ascontiguousarray(
                np.stack([rows.verdicts.astype("<i8"), rows.lengths.astype("<i8")], axis=1)
            ).tobytes()
        )
        if rows.shapes is not None:
            self._shapes.update(np.ascontiguousarray(rows.shapes, dtype="<i4").tobytes())
        self._values.update(np.ascontiguousarray(rows.values).view(np.uint8).data)

    def digest(self) -> bytes:
        parts = (self._ids, self._lengths, self._shapes, self._values)
        return hashlib.sha256(self._dtype.encode() + b"".join(p.digest() for p in parts)).digest()


def order_hash(ids: Iterable[bytes]) -> bytes:
    """16 bytes over the concatenated sample ids of a unit (chunks of any size)."""
    digest = hashlib.blake2b(digest_size=16, person=b"tm-order")
    for chunk in ids:
        digest.update(chunk)
    return digest.digest()
