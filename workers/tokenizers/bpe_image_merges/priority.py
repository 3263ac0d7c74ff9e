"""The priority rule of the Being-VL-0.5 paper (Algorithm 1), experimental: P = F + alpha S.

F: how often a pair of neighbouring regions stands in the corpus, over the most frequent pair's
count. S: how steady the way from one to the other is, the mean of exp(-|u - mean u|^2 / 2 sigma^2)
over its occurrences. A pair has no direction and one id for all, so a grid cannot be had back from
its ids. alpha and sigma are not in the paper's public parts; released code has no such mode.

Learning counts the whole corpus anew at every step: for studies on thousands of grids. In the mode
`region2d` a key has its direction, S is always 1, and the paper's motive is met without alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.heap import pop, push
from tokenmill.workers.tokenizers.bpe_image_merges.keys import EMPTY, Keys, pack, slot
from tokenmill.workers.tokenizers.bpe_image_merges.sequence import Pairs

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
DIGITS = 12  # ties are decided after rounding P to so many
# An item of the heap holds a rank and two cell numbers in 63 bits.
MAX_GRID_CELLS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Priorities:
    """rules: int32[R, 2], rule r makes vocab + r. counts, merges: int64[R]. scores: float64[R, 2],
    (P, S) of each."""

    rules: Int32s
    counts: Int64s
    merges: Int64s
    scores: NDArray[np.float64]


def learn_priorities(
    grids: Grids, vocab: int, *, rules: int, alpha: float, sigma: float, min_count: int = 2
) -> Priorities:
    """sigma is in cells, above 0."""
    corpus = _Corpus(grids)
    rows: list[tuple[int, int]] = []
    counts: list[int] = []
    merges: list[int] = []
    scores: list[tuple[float, float]] = []
    while len(rows) < rules:
        first, second, way = corpus.pairs()
        tokens = np.stack([corpus.token[first], corpus.token[second]], axis=1).astype(np.int64)
        keys, kind, number = np.unique(
            (tokens[:, 0] << 32) | tokens[:, 1], return_inverse=True, return_counts=True
        )
        if not len(keys) or number.max() < min_count:
            break
        steady = _steadiness(way, kind, number, sigma)
        priority = np.round(number / number.max() + alpha * steady, DIGITS)
        priority[number < min_count] = -np.inf
        best = int(np.argmax(priority))  # the first of equals, and keys ascend
        key = int(keys[best])
        rows.append((key >> 32, key & 0xFFFFFFFF))
        counts.append(int(number[best]))
        exact = float(number[best] / number.max() + alpha * steady[best])
        scores.append((exact, float(steady[best])))
        merges.append(corpus.merge(first[kind == best], second[kind == best], vocab + len(merges)))
    return Priorities(
        rules=np.array(rows, np.int32).reshape(-1, 2),
        counts=np.array(counts, np.int64),
        merges=np.array(merges, np.int64),
        scores=np.array(scores, np.float64).reshape(-1, 2),
    )


def _steadiness(
    way: NDArray[np.float64], kind: Int64s, number: Int64s, sigma: float
) -> NDArray[np.float64]:
    """S of every kind of pair. way: float64[n, 2], from anchor to anchor."""
    mean = np.stack([np.bincount(kind, way[:, i]) / number for i in (0, 1)], axis=1)
    away = ((way - mean[kind]) ** 2).sum(axis=1)
    return np.asarray(np.bincount(kind, np.exp(-away / (2 * sigma**2))) / number)


class _Corpus:
    """All grids as one array of cells. anchor: int64[cells]; token: the region's, at its anchor."""

    def __init__(self, grids: Grids) -> None:
        cells = grids.starts[-1]
        self.anchor = np.arange(cells)
        self.token = grids.codes.copy()
        width = np.repeat(grids.shapes[:, 1].astype(np.int64), np.diff(grids.starts))
        height = np.repeat(grids.shapes[:, 0].astype(np.int64), np.diff(grids.starts))
        local = np.arange(cells) - np.repeat(grids.starts[:-1], np.diff(grids.starts))
        self._row, self._column = local // width, local % width
        right = np.flatnonzero(self._column + 1 < width)
        below = np.flatnonzero(self._row + 1 < height)
        self._edges = np.concatenate(
            [np.stack([right, right + 1], 1), np.stack([below, below + width[below]], 1)]
        )

    def pairs(self) -> tuple[Int64s, Int64s, NDArray[np.float64]]:
        """Regions that touch, once each, by (anchor A, anchor B); the way from A to B."""
        ends = self.anchor[self._edges]
        ends = np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1)
        joined = np.unique(ends[:, 0] * len(self.anchor) + ends[:, 1])
        first, second = joined // len(self.anchor), joined % len(self.anchor)
        way = np.stack(
            [self._row[second] - self._row[first], self._column[second] - self._column[first]], 1
        )
        return first, second, way.astype(np.float64)

    def merge(self, first: Int64s, second: Int64s, new: int) -> int:
        """Greedy in the order given; how many merges."""
        used: set[int] = set()
        into = np.arange(len(self.anchor))
        merged = 0
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a not in used and b not in used:
                used |= {a, b}
                into[b] = a
                self.token[a] = new
                merged += 1
        self.anchor = into[self.anchor]
        return merged


def encode(grids: Grids, pairs: Pairs) -> tuple[Int32s, Int64s]:
    """Ids of all grids and where each begins: int32[total], int64[n + 1]. Codes are below vocab.

    Raises ValueError for a grid of more than a million cells.
    """
    parts = [sequence_and_labels(grids.grid(i), pairs)[0] for i in range(len(grids))]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.concatenate(parts) if parts else np.zeros(0, np.int32), offsets


def sequence_and_labels(grid: Int32s, pairs: Pairs) -> tuple[Int32s, Int32s]:
    """Ids of one grid, and for every cell the raster number of its region's anchor."""
    if grid.size > MAX_GRID_CELLS:
        raise ValueError(f"a grid of {grid.shape} cells: the mode takes {MAX_GRID_CELLS:,}")
    anchor, token = _merged(grid.ravel(), grid.shape[0], grid.shape[1], pairs.rules, pairs.keys,
                            pairs.ranks, pairs.vocab)  # fmt: skip
    kept = anchor == np.arange(grid.size)
    return token[kept], anchor.reshape(grid.shape)


@compiled
def _meet(
    a: Int,
    b: Int,
    token: Int32s,
    keys: Keys,
    ranks: Int32s,
    cells: Int,
    heap: Int64s,
    size: Int,
) -> Int:
    """Put the pair of two regions on the heap if a rule names it; the heap's size."""
    first, second = min(a, b), max(a, b)
    found = slot(keys, pack(token[first], token[second], 0, 1))
    if keys[found] == EMPTY:
        return size
    push(heap, size, (np.int64(ranks[found]) * cells + first) * cells + second)
    return size + 1


@compiled
def _merged(
    codes: Int32s, height: Int, width: Int, rules: Int32s, keys: Keys, ranks: Int32s, vocab: Int
) -> tuple[Int32s, Int32s]:
    """Lowest rank first, then by anchors. Cells of a region are a ring through `after`."""
    cells = np.int64(height) * width
    anchor = np.arange(cells).astype(np.int32)
    after = np.arange(cells)
    token = codes.copy()
    heap = np.empty(8 * cells + 64, np.int64)
    size = 0
    for at in range(cells):
        if at % width + 1 < width:
            size = _meet(at, at + 1, token, keys, ranks, cells, heap, size)
        if at + width < cells:
            size = _meet(at, at + width, token, keys, ranks, cells, heap, size)
    while size:
        item = pop(heap, size)
        size -= 1
        second = item % cells
        first = item // cells % cells
        rank = item // cells // cells
        same = anchor[first] == first and anchor[second] == second
        if not same or token[first] != rules[rank, 0] or token[second] != rules[rank, 1]:
            continue
        token[first] = vocab + rank
        at = second
        while True:
            anchor[at] = first
            at = after[at]
            if at == second:
                break
        after[first], after[second] = after[second], after[first]
        at = first
        while True:
            if size + 4 >= len(heap):
                larger = np.empty(2 * len(heap), np.int64)
                larger[:size] = heap[:size]
                heap = larger
            if at >= width and anchor[at - width] != first:
                size = _meet(first, anchor[at - width], token, keys, ranks, cells, heap, size)
            if at % width > 0 and anchor[at - 1] != first:
                size = _meet(first, anchor[at - 1], token, keys, ranks, cells, heap, size)
            if at % width + 1 < width and anchor[at + 1] != first:
                size = _meet(first, anchor[at + 1], token, keys, ranks, cells, heap, size)
            if at + width < cells and anchor[at + width] != first:
                size = _meet(first, anchor[at + width], token, keys, ranks, cells, heap, size)
            at = after[at]
            if at == first:
                break
    return anchor, token
