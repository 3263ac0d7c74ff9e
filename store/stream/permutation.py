"""Seeded permutations that are the same on every machine and under every numpy.

`RandomState` is frozen by numpy's promise (NEP 19: its streams never change), unlike `Generator`;
small permutations by the thousand come from sorting hashed counters (SplitMix64's finalizer,
Steele, Lea and Flood 2014), without seeding anything.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, *purpose: int | str) -> bytes:
    """16 bytes that differ for every purpose of one seed."""
    digest = hashlib.blake2b(digest_size=16, person=b"tm-stream")
    digest.update(repr((seed, *purpose)).encode())
    return digest.digest()


def permutation(n: int, key: bytes) -> NDArray[np.int64]:
    """A uniform permutation of 0 … n - 1: int64[n]; 20 to 60 ns an element."""
    state = np.random.RandomState(np.frombuffer(key, "<u4"))
    order: NDArray[np.int64] = state.permutation(n).astype(np.int64, copy=False)
    return order


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection of 64 bits whose every output bit depends on all."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def permuted_rows(rows: NDArray[np.int64], n: int, key: bytes) -> NDArray[np.int64]:
    """For each row number its own permutation of 0 … n - 1: int64[len(rows), n]."""
    base = np.uint64(int.from_bytes(key[:8], "little"))
    counters = np.add.outer(rows.astype(np.uint64) * np.uint64(n), np.arange(n, dtype=np.uint64))
    keys = mixed(mixed(counters) ^ base)
    return np.argsort(keys, axis=1, kind="stable").astype(np.int64, copy=False)
