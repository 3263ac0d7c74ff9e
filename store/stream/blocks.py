"""The order of one epoch: spans of rows permuted, cut into shuffle blocks, blocks laid in a line.

A *span* is a run of rows of one shard (of one shard per stream); `counts[i]` is what span i adds to
the line: samples, packs, or tokens where sequences are cut from it. The length of the line does not
depend on the epoch, so epoch and place of the k-th draw are a division: resume costs the same at
any depth. Within a block rows are permuted by the reader (opened.py), which holds two of them.

How far a sample moves: its span goes anywhere in the epoch (uniform); within the line it stays
inside its block, so two samples of one span are never further apart than `group` spans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.store.stream.permutation import permutation, stream_key


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EpochOrder:
    """spans: int64[S], span numbers in reading order. edges: int64[B + 1], block b holds
    spans[edges[b]:edges[b + 1]]. line: int64[B + 1], where each block begins in the line."""

    spans: NDArray[np.int64]
    edges: NDArray[np.int64]
    line: NDArray[np.int64]

    @property
    def length(self) -> int:
        return int(self.line[-1])

    def block_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block that each position of the line lies in; empty blocks are never named."""
        return np.searchsorted(self.line, positions, side="right") - 1

    def members(self, block: int) -> NDArray[np.int64]:
        return self.spans[self.edges[block] : self.edges[block + 1]]


def epoch_order(
    counts: NDArray[np.int64], *, group: int, seed: int, part: int, epoch: int, shuffled: bool
) -> EpochOrder:
    """The order of an epoch over spans with `counts` (int64[S]); O(S), a few ns a span.

    group: spans per block. shuffled: False keeps the spans as they are (file order).
    """
    n = len(counts)
    if shuffled:
        spans = permutation(n, stream_key(seed, "spans", part, epoch))
    else:
        spans = np.arange(n, dtype=np.int64)
    edges = np.append(np.arange(0, n, group, dtype=np.int64), n)
    line = np.zeros(n + 1, np.int64)
    np.cumsum(counts[spans], out=line[1:])
    return EpochOrder(spans=spans, edges=edges, line=line[edges])


def in_lanes(k: NDArray[np.int64], length: int, lanes: int) -> NDArray[np.int64]:
    """Places in an epoch of `length` sequences for its draws k: a bijection of [0, length).

    The epoch is cut into `lanes` equal stretches that are read side by side: draw k comes from
    stretch k mod lanes. Ranks that divide `lanes` then each read their own shards only, where one
    lane makes every rank read all of them. What does not divide comes last.
    """
    if lanes == 1:
        return k
    each = length // lanes
    inside = (k % lanes) * each + k // lanes
    return np.where(k < each * lanes, inside, k)


def lanes_of_rank(lanes: int, world: int) -> int:
    """How many lanes one of `world` ranks reads: its share where one divides the other."""
    return lanes // int(np.gcd(lanes, world))
