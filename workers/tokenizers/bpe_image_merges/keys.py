"""A pair of neighbours as one integer, and the hash table that counts or ranks such integers.

A key holds (a, b, dy, dx): tokens of two regions A and B, anchor(A) before anchor(B) in raster
order, and the way from anchor(A) to anchor(B). Packed from the top: a 20 bits, b 20, dy 11,
dx + 2048 12 bits, so that integer order is the order of (a, b, dy, dx), and no key is 0. Pairs of
a sequence are keys with dy = 0, dx = 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled

MAX_TOKENS = 1 << 20
MAX_DY, MAX_DX = (1 << 11) - 1, (1 << 11) - 1
EMPTY = 0

Keys = NDArray[np.int64]


@compiled
def pack(a: Int, b: Int, dy: Int, dx: Int) -> Any:
    """The key of (a, b, dy, dx) as int64. dy in 0 … 2047, dx in -2047 … 2047."""
    return (np.int64(a) << 43) | (np.int64(b) << 23) | (np.int64(dy) << 12) | np.int64(dx + 2048)


def unpack(key: int) -> tuple[int, int, int, int]:
    """(a, b, dy, dx) of a key."""
    return key >> 43, (key >> 23) & 0xFFFFF, (key >> 12) & 0x7FF, (key & 0xFFF) - 2048


def pack_rows(rows: NDArray[np.int32]) -> Keys:
    """Keys of rows (a, b, dy, dx): int64[n]."""
    a, b, dy, dx = (rows[:, i].astype(np.int64) for i in range(4))
    return (a << 43) | (b << 23) | (dy << 12) | (dx + 2048)


# -- an open-addressing table in two plain arrays: keys int64[2^k], values of any integer type ----


@compiled
def slot(keys: Keys, key: Int) -> Int:
    """Where `key` is, or where it belongs. The table is never full."""
    mask = len(keys) - 1
    # Fibonacci hashing: the high half of the product is well mixed
    mixed = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    at = np.int64(mixed) & mask
    while keys[at] != key and keys[at] != EMPTY:
        at = (at + 1) & mask
    return at


def table(size: int, dtype: type[np.signedinteger[Any]]) -> tuple[Keys, NDArray[Any]]:
    """An empty table that holds `size` keys at most half full."""
    capacity = 16
    while capacity < 2 * size:
        capacity *= 2
    return np.zeros(capacity, np.int64), np.zeros(capacity, dtype)


@compiled
def insert_all(keys: Keys, values: NDArray[Any], new: Keys, with_: NDArray[Any]) -> None:
    """Put every key in; a key that is there already keeps its value."""
    for i in range(len(new)):
        at = slot(keys, new[i])
        if keys[at] == EMPTY:
            keys[at] = new[i]
            values[at] = with_[i]
