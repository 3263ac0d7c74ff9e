"""One shard of a corpus while merges of the mode `being-vl-0.5` are learnt: 20 bytes a cell.

Lines are linked lists over one array. As in region_shard.py, a step walks the list of the rarer of
a rule's two tokens. Only pairs with a < b count: the released code looks at no other, so equal and
descending neighbours never merge.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.keys import Keys, pack, unpack
from tokenmill.workers.tokenizers.bpe_image_merges.region_shard import (
    MAX_SHARD_CELLS,
    sites_by_token,
)
from tokenmill.workers.tokenizers.bpe_image_merges.sequence import GONE, merge_2d
from tokenmill.workers.tokenizers.bpe_image_merges.tally import Changes, Tally, add, full

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
# `full` is asked once for so many cells when all pairs are counted.
STRETCH = 1024


class SequenceShard:
    """Grids of one worker: `count_2d`, `first` for rule 0, then `count` and `apply`."""

    def __init__(self, grids: Grids, vocab: int) -> None:
        if len(grids.codes) > MAX_SHARD_CELLS:
            raise ValueError(f"{len(grids.codes):,} cells: a shard takes {MAX_SHARD_CELLS:,}")
        self._grids = grids
        self._vocab = vocab
        self._tally = Tally()
        self._line = np.zeros(0, np.int32)
        self._ends = np.zeros(1, np.int64)
        self._after = self._before = np.zeros(0, np.int32)
        self._sites: list[Int32s] = []

    def count_2d(self) -> Changes:
        """Neighbours to the right, below, and below to the right."""
        grid = row = 0
        while True:
            grid, row = _count_2d(self._grids.codes, self._grids.shapes, self._grids.starts, grid,
                                  row, *self._tally.arrays)  # fmt: skip
            if grid == len(self._grids):
                return self._tally.take()
            self._tally.grow()

    def first(self, key: int) -> int:
        """Apply rule 0 and join the rows; how many merges."""
        a, b, _, _ = unpack(key)
        lines = [merge_2d(self._grids.grid(i), a, b, self._vocab) for i in range(len(self._grids))]
        self._ends = np.zeros(len(lines) + 1, np.int64)
        np.cumsum([len(line) for line in lines], out=self._ends[1:])
        self._line = np.concatenate(lines) if lines else np.zeros(0, np.int32)
        n = len(self._line)
        self._after = np.arange(1, n + 1, dtype=np.int32)
        self._before = np.arange(-1, n - 1, dtype=np.int32)
        self._after[self._ends[1:] - 1] = -1
        self._before[self._ends[:-1]] = -1
        self._sites = sites_by_token(self._line, self._vocab + 1)
        return len(self._grids.codes) - n

    def count(self) -> Changes:
        """Neighbours along the lines."""
        at = 0
        while True:
            at = _count_1d(self._line, self._after, at, *self._tally.arrays)
            if at == len(self._line):
                return self._tally.take()
            self._tally.grow()

    def apply(self, key: int) -> tuple[Changes, int]:
        """Merge every pair of `key` to the next token; what that changed, and how many merges."""
        a, b, _, _ = unpack(key)
        new = len(self._sites)
        by_first = len(self._sites[a]) <= len(self._sites[b])
        walked = a if by_first else b
        sites = self._sites[walked]
        made = np.empty(len(sites), np.int32)
        at = kept = merges = 0
        while True:
            at, kept, merges = _apply(self._line, self._after, self._before, sites, made, at, kept,
                                      merges, by_first, a, b, new, *self._tally.arrays)  # fmt: skip
            if at == len(sites):
                break
            self._tally.grow()
        self._sites[walked] = sites[:kept].copy() if 2 * kept < len(sites) else sites[:kept]
        self._sites.append(made[:merges].copy())
        return self._tally.take(), merges

    def tokens(self) -> list[Int32s]:
        """The sequence of every grid now."""
        parts = [self._line[a:b] for a, b in pairwise(self._ends)]
        return [part[part != GONE] for part in parts]


@compiled
def _add_ascending(a: Int, b: Int, by: Int, keys: Keys, changes: Int64s, touched: Int64s) -> None:
    if a < b:
        add(keys, changes, touched, pack(a, b, 0, 1), by)


@compiled
def _count_2d(
    codes: Int32s,
    shapes: Int32s,
    starts: Int64s,
    grid: Int,
    row: Int,
    keys: Keys,
    changes: Int64s,
    touched: Int64s,
) -> tuple[Int, Int]:
    while grid < len(shapes):
        height, width = shapes[grid, 0], shapes[grid, 1]
        while row < height:
            if full(touched, 3 * width):
                return grid, row
            begin = starts[grid] + np.int64(row) * width
            for x in range(width):
                at = begin + x
                right, below = x + 1 < width, row + 1 < height
                if right:
                    _add_ascending(codes[at], codes[at + 1], 1, keys, changes, touched)
                if below:
                    _add_ascending(codes[at], codes[at + width], 1, keys, changes, touched)
                if right and below:
                    _add_ascending(codes[at], codes[at + width + 1], 1, keys, changes, touched)
            row += 1
        grid, row = grid + 1, 0
    return grid, row


@compiled
def _count_1d(
    line: Int32s, after: Int32s, at: Int, keys: Keys, changes: Int64s, touched: Int64s
) -> Int:
    while at < len(line):
        if at % STRETCH == 0 and full(touched, STRETCH):
            return at
        if after[at] >= 0:
            _add_ascending(line[at], line[after[at]], 1, keys, changes, touched)
        at += 1
    return at


@compiled
def _apply(
    line: Int32s,
    after: Int32s,
    before: Int32s,
    sites: Int32s,
    made: Int32s,
    at: Int,
    kept: Int,
    merges: Int,
    by_first: bool,
    a: Int,
    b: Int,
    new: Int,
    keys: Keys,
    changes: Int64s,
    touched: Int64s,
) -> tuple[Int, Int, Int]:
    """x a b y becomes x new y: five counts change."""
    walked = a if by_first else b
    while at < len(sites):
        if full(touched, 5):
            return at, kept, merges
        site = sites[at]
        at += 1
        if line[site] != walked:
            continue
        first = site if by_first else before[site]
        second = after[site] if by_first else site
        if first < 0 or second < 0 or line[first] != a or line[second] != b:
            sites[kept] = site
            kept += 1
            continue
        left, right = before[first], after[second]
        _add_ascending(a, b, -1, keys, changes, touched)
        if left >= 0:
            _add_ascending(line[left], a, -1, keys, changes, touched)
            _add_ascending(line[left], new, 1, keys, changes, touched)
        if right >= 0:
            _add_ascending(b, line[right], -1, keys, changes, touched)
            before[right] = first
            _add_ascending(new, line[right], 1, keys, changes, touched)
        line[first], line[second] = new, GONE
        after[first] = right
        made[merges] = first
        merges += 1
    return at, kept, merges
