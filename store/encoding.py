"""How a stream's ids lie in shards: measured once on the first block, then kept for the recipe.

plain wherever nothing is worth more: it is read without a copy. packed where the codebook leaves
at least PACKED_SAVES of every id unused (18-bit video ids in 32 bits, 11-bit audio in 16), which
costs an unpacking at 1 G ids/s. zstd where it beats both by far (text), since it costs 10 to 100
times in random access.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from tokenmill.schemas.identity import canonical_json
from tokenmill.schemas.shard import BATCH_ROWS, BATCH_ROWS_ZSTD, PACKED_RATIO, ZSTD_RATIO, ShardMeta
from tokenmill.store import packed
from tokenmill.store.access import Access

# Encoding -> rows of a record batch.
ENCODINGS = {"plain": BATCH_ROWS, "zstd": BATCH_ROWS_ZSTD, "packed": BATCH_ROWS}
# Level 1 writes text ids three times as fast as the default and 3 % larger.
ZSTD_LEVEL = 1
# zstd must be so much smaller than packed bits: it is slower to write, to read and to jump in.
ZSTD_BEATS_PACKED = 0.8
# A smaller block says too little of a recipe: it is measured for its own file alone.
TELLING_BYTES = 16 << 10


def measured(block: bytes, meta: ShardMeta) -> str:
    """plain, packed or zstd for ids of which `block` is a first part."""
    if not block:
        return "plain"
    zstd = len(pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(block)) / len(block)
    ids = np.frombuffer(block, meta.dtype)
    bits = packed.width(meta.codebook_sizes, meta.dtype)
    # ids beyond the codebook are for `verify` to find; packed bits could not hold them
    fits = bits is not None and not int(ids.max()) >> bits
    ratio = bits / (8 * ids.itemsize) if bits is not None and fits else 1.0
    if ratio <= PACKED_RATIO:
        return "zstd" if zstd < min(ZSTD_RATIO, ZSTD_BEATS_PACKED * ratio) else "packed"
    return "zstd" if zstd < ZSTD_RATIO else "plain"


def decided(access: Access, meta: ShardMeta, block: bytes) -> str:
    """What the recipe's first block of some size was found to be, by whichever worker came first.

    One object per recipe, created if absent: workers and later runs agree without a coordinator.
    Raises StoreError as Access does.
    """
    path = f"leases/encodings/{meta.pipeline}/{meta.stream}/{meta.recipe}.json"
    try:
        return _known(access.read(path), meta) or measured(block, meta)
    except FileNotFoundError:
        found = measured(block, meta)
    if len(block) >= TELLING_BYTES and not access.create(path, canonical_json({"encoding": found})):
        return _known(access.read(path), meta) or found
    return found


def _known(text: bytes, meta: ShardMeta) -> str | None:
    """None for a word of a newer tokenmill, or one that these ids cannot follow."""
    try:
        word = json.loads(text)["encoding"]
    except (ValueError, TypeError, KeyError):
        return None
    if word == "packed" and packed.width(meta.codebook_sizes, meta.dtype) is None:
        return None
    return word if word in ENCODINGS else None
