"""Samples into sequences of a fixed length.

*cut*: the samples of an epoch are one line, cut every L tokens; only the last sequence is padded.
*whole*: no sample crosses into another sequence: best-fit decreasing over the pieces of each shard
(samples longer than L are first cut into pieces of L), so packs do not depend on seed or epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["cut", "whole"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packs:
    """Fragments in the order of their packs: pack p holds fragments edges[p]:edges[p + 1].

    Fragment f is tokens [begin[f], end[f]) of sample[f]; edges: int64[packs + 1].
    """

    sample: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    edges: NDArray[np.int64]

    @property
    def count(self) -> int:
        return len(self.edges) - 1


def windows(
    line: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which samples lie under windows [begin, end) of a line of samples.

    line: int64[n + 1], where each sample begins. Returns (window, sample, from, to): for each
    overlap, in order, tokens [from, to) of that sample. Empty samples overlap nothing.
    """
    first = np.searchsorted(line, begin, side="right") - 1
    last = np.searchsorted(line, end, side="left")
    counts = np.maximum(last - first, 0) * (end > begin)
    window = np.repeat(np.arange(len(begin), dtype=np.int64), counts)
    offsets = np.cumsum(counts) - counts
    sample = np.arange(len(window), dtype=np.int64) - offsets[window] + first[window]
    start = np.maximum(begin[window], line[sample]) - line[sample]
    stop = np.minimum(end[window], line[sample + 1]) - line[sample]
    kept = stop > start
    return window[kept], sample[kept], start[kept], stop[kept]


def pack_whole(lengths: NDArray[np.int64], length: int) -> Packs:
    """Best-fit decreasing, all samples of one length at a time (so O(distinct lengths x L), not
    O(samples)); on equal lengths, earlier samples first."""
    sample, begin, end = _fragments(lengths, length)
    sizes = end - begin
    bins, count = _best_fit(sizes, length)
    order = np.lexsort((np.arange(len(sizes)), -sizes, bins))
    edges = np.searchsorted(bins[order], np.arange(count + 1))
    return Packs(
        sample=sample[order], begin=begin[order], end=end[order], edges=edges.astype(np.int64)
    )


def _fragments(
    lengths: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Samples as pieces of at most `length` tokens: (sample, begin, end)."""
    counts = -(-lengths // length)
    sample = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    nth = np.arange(len(sample), dtype=np.int64) - (np.cumsum(counts) - counts)[sample]
    begin = nth * length
    return sample, begin, np.minimum(begin + length, lengths[sample])


def _best_fit(sizes: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], int]:
    """(bin of each fragment, number of bins)."""
    bins = np.empty(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    values, starts = np.unique(-sizes[order], return_index=True)
    stops = np.append(starts[1:], len(order))[: len(starts)]
    free: list[list[NDArray[np.int64]]] = [[] for _ in range(length + 1)]  # bins by room left
    has = np.zeros(length + 1, bool)
    count = 0
    for size, at, stop in zip((-values).tolist(), starts.tolist(), stops.tolist(), strict=True):
        while at < stop:
            room = size + int(np.argmax(has[size:]))
            if has[room]:
                chosen = free[room].pop()
                has[room] = bool(free[room])
            else:
                room = length
                wanted = -(-(stop - at) // (length // size))
                chosen = np.arange(count, count + wanted, dtype=np.int64)
                count += wanted
            taken, left = chosen[: stop - at], chosen[stop - at :]
            bins[order[at : at + len(taken)]] = taken
            at += len(taken)
            for place, rest in ((room - size, taken), (room, left)):
                if len(rest):
                    free[place].append(rest)
                    has[place] = True
    return bins, count
