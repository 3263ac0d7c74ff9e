"""Counting keys: a shard's changes of one step, and the totals over all shards.

Exact and independent of how the grids are divided: integers are added, and ties are broken by key.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled
from tokenmill.workers.tokenizers.bpe_image_merges.keys import EMPTY, Keys, slot, table

Int64s = NDArray[np.int64]
Changes = tuple[Keys, Int64s]  # distinct keys, and what to add to their counts
# So many keys wait in the heap of candidates; the others are looked at when these run out.
CANDIDATES = 1 << 16


class Tally:
    """The changes that one shard makes in one step. Compiled code writes into `arrays`.

    keys, changes: a hash table. touched: the used slots, the first touched[-1] of them.
    """

    def __init__(self) -> None:
        self._resize(1 << 14)

    def _resize(self, room: int) -> None:
        self.keys, self.changes = table(room, np.int64)
        self.touched = np.zeros(len(self.keys) // 2 + 1, np.int64)

    @property
    def arrays(self) -> tuple[Keys, NDArray[np.int64], NDArray[np.int64]]:
        return self.keys, self.changes, self.touched

    def grow(self) -> None:
        """Room for twice as many keys; what is counted stays."""
        keys, changes = self._read()
        self._resize(len(self.keys))
        _add_all(*self.arrays, keys, changes)

    def take(self) -> Changes:
        """All changes but zeros; the tally is empty afterwards."""
        keys, changes = self._read()
        used = self.touched[: self.touched[-1]]
        self.keys[used] = EMPTY
        self.changes[used] = 0
        self.touched[-1] = 0
        real = changes != 0
        return keys[real], changes[real]

    def _read(self) -> Changes:
        used = self.touched[: self.touched[-1]]
        return self.keys[used], self.changes[used]


@compiled
def add(keys: Keys, changes: Int64s, touched: Int64s, key: Int, by: Int) -> None:
    """Count `key`. There is room: see `full`."""
    at = slot(keys, key)
    if keys[at] == EMPTY:
        keys[at] = key
        touched[touched[-1]] = at
        touched[-1] += 1
    changes[at] += by


@compiled
def full(touched: NDArray[np.int64], room: Int) -> bool:
    """Whether fewer than `room` further keys fit."""
    return bool(touched[-1] + room >= len(touched) - 1)


@compiled
def _add_all(keys: Keys, changes: Int64s, touched: Int64s, new: Keys, by: Int64s) -> None:
    for i in range(len(new)):
        add(keys, changes, touched, new[i], by[i])


def summed(parts: Sequence[Changes]) -> Changes:
    """The changes of several shards as one, by ascending key."""
    keys = np.concatenate([p[0] for p in parts])
    changes = np.concatenate([p[1] for p in parts])
    order = np.argsort(keys, kind="stable")
    keys, changes = keys[order], changes[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(changes, first) if len(first) else changes


class Totals:
    """Counts of all keys, and the greatest.

    A key gets its whole count in the step in which the newer of its tokens is made (merging only
    adds neighbours of the new token); from then on it falls. So a key that begins below
    `min_count` never matters and is not kept.
    """

    def __init__(self, min_count: int) -> None:
        self._min = min_count
        self._keys, self._counts = table(1 << 12, np.int64)
        self._used = 0
        self._heap: list[tuple[int, int]] = []
        self._least = 0  # counts below it are not in the heap

    def begin(self, keys: Keys, counts: NDArray[np.int64]) -> None:
        """New keys, distinct and ascending, with their counts."""
        kept = counts >= self._min
        keys, counts = keys[kept], counts[kept]
        if 2 * (self._used + len(keys)) > len(self._keys):
            self._rebuild(len(keys))
        _put_all(self._keys, self._counts, keys, counts)
        self._used += len(keys)
        if self._least:
            waiting = counts >= self._least
            for key, count in zip(keys[waiting].tolist(), counts[waiting].tolist(), strict=True):
                heapq.heappush(self._heap, (-count, key))

    def fall(self, keys: Keys, changes: NDArray[np.int64]) -> None:
        """Changes, none above zero, of keys that may have been left out."""
        _fall_all(self._keys, self._counts, keys, changes)

    def best(self) -> tuple[int, int] | None:
        """(key, count) of the greatest count, the least key where several have it."""
        while True:
            while self._heap:
                negative, key = self._heap[0]
                count = int(self._counts[slot(self._keys, key)])
                if count == -negative:
                    return key, count
                heapq.heappop(self._heap)
                if count >= self._least:
                    heapq.heappush(self._heap, (-count, key))
            if self._least == self._min:
                return None
            self._refill()

    def _refill(self) -> None:
        """The greatest counts into the heap: about CANDIDATES, and all that equal the last."""
        live = np.flatnonzero(self._counts >= self._min)
        counts = self._counts[live]
        self._least = self._min
        if len(live) > CANDIDATES:
            self._least = int(np.partition(counts, len(live) - CANDIDATES)[-CANDIDATES])
        chosen = counts >= self._least
        keys = self._keys[live[chosen]].tolist()
        self._heap = list(zip((-counts[chosen]).tolist(), keys, strict=True))
        heapq.heapify(self._heap)

    def _rebuild(self, more: int) -> None:
        """A table with room, without the keys that have fallen out."""
        live = np.flatnonzero(self._counts >= self._min)
        keys, counts = self._keys[live], self._counts[live]
        self._keys, self._counts = table(2 * (len(live) + more), np.int64)
        _put_all(self._keys, self._counts, keys, counts)
        self._used = len(live)


@compiled
def _put_all(keys: Keys, counts: NDArray[Any], new: Keys, with_: NDArray[Any]) -> None:
    for i in range(len(new)):
        at = slot(keys, new[i])
        keys[at] = new[i]
        counts[at] = with_[i]


@compiled
def _fall_all(keys: Keys, counts: NDArray[Any], fallen: Keys, by: NDArray[Any]) -> None:
    for i in range(len(fallen)):
        at = slot(keys, fallen[i])
        if keys[at] != EMPTY:
            counts[at] += by[i]
