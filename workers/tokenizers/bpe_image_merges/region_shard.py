"""One shard of a corpus of grids while `region2d` merges are learnt: 8 bytes a cell.

Beside the state of every cell it keeps, for every token, the anchors that hold it, ascending. A
rule is applied by walking the shorter of its two tokens' lists, so a step costs about what the
rarer token costs and never a pass over the corpus; anchors that have lost their token fall out of
the list as it is walked.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.keys import Keys, pack, unpack
from tokenmill.workers.tokenizers.bpe_image_merges.shapes import MAX_CELLS
from tokenmill.workers.tokenizers.bpe_image_merges.tally import Changes, Tally, add, full

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
MAX_SHARD_CELLS = (1 << 31) - 1


class RegionShard:
    """Grids of one worker. Not thread-safe; `apply` lets go of the GIL."""

    def __init__(self, grids: Grids, vocab: int, max_cells: int) -> None:
        if len(grids.codes) > MAX_SHARD_CELLS:
            raise ValueError(f"{len(grids.codes):,} cells: a shard takes {MAX_SHARD_CELLS:,}")
        self._grids = grids
        self._vocab, self._max_cells = vocab, max_cells
        self._state = grids.codes.copy()
        self._sites = sites_by_token(grids.codes, vocab)
        self._tally = Tally()
        # shapes of the tokens so far, grown by doubling
        self._starts = np.arange(vocab + 1, dtype=np.int64)
        self._dy, self._dx = np.zeros(vocab, np.int32), np.zeros(vocab, np.int32)

    def count(self) -> Changes:
        """All pairs of neighbouring cells."""
        if self._max_cells < 2:
            return self._tally.take()
        grid = row = 0
        while True:
            grid, row = _count(self._state, self._grids.shapes, self._grids.starts, grid, row,
                               *self._tally.arrays)  # fmt: skip
            if grid == len(self._grids):
                return self._tally.take()
            self._tally.grow()

    def apply(self, key: int) -> tuple[Changes, int]:
        """Merge every pair of `key` to the next token; what that changed, and how many merges."""
        a, b, down, right = unpack(key)
        new = self._learn_shape(a, b, down, right)
        by_first = a == b or len(self._sites[a]) <= len(self._sites[b])
        walked = a if by_first else b
        sites = self._sites[walked]
        made = np.empty(len(sites), np.int32)
        at = kept = merges = grid = 0
        while True:
            at, kept, merges, grid = _apply(
                self._state, self._grids.shapes, self._grids.starts, sites, made, at, kept,
                merges, grid, by_first, a, b, down, right, new, self._starts, self._dy,
                self._dx, self._max_cells, *self._tally.arrays,
            )  # fmt: skip
            if at == len(sites):
                break
            self._tally.grow()
        # a copy where much fell out, so that the memory comes back
        self._sites[walked] = sites[:kept].copy() if 2 * kept < len(sites) else sites[:kept]
        self._sites.append(made[:merges].copy())
        return self._tally.take(), merges

    def _learn_shape(self, a: int, b: int, down: int, right: int) -> int:
        new = len(self._starts) - 1
        first = slice(self._starts[a], self._starts[a + 1])
        second = slice(self._starts[b], self._starts[b + 1])
        self._dy = np.concatenate([self._dy, self._dy[first], self._dy[second] + np.int32(down)])
        self._dx = np.concatenate([self._dx, self._dx[first], self._dx[second] + np.int32(right)])
        self._starts = np.append(self._starts, len(self._dy))
        return new

    def tokens(self) -> list[Int32s]:
        """The sequence of every grid now."""
        starts = self._grids.starts
        parts = [self._state[a:b] for a, b in pairwise(starts)]
        return [part[part >= 0] for part in parts]


def sites_by_token(codes: Int32s, vocab: int) -> list[Int32s]:
    """For every code the places that hold it, ascending."""
    order = np.argsort(codes, kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(codes, minlength=vocab))
    return np.split(order, ends[:-1])


@compiled
def _count(
    state: Int32s,
    shapes: Int32s,
    starts: Int64s,
    grid: Int,
    row: Int,
    keys: Keys,
    changes: Int64s,
    touched: Int64s,
) -> tuple[Int, Int]:
    """From row `row` of grid `grid` on; where it stopped for want of room."""
    while grid < len(shapes):
        height, width = shapes[grid, 0], shapes[grid, 1]
        while row < height:
            if full(touched, 2 * width):
                return grid, row
            begin = starts[grid] + np.int64(row) * width
            for x in range(width):
                at = begin + x
                if x + 1 < width:
                    add(keys, changes, touched, pack(state[at], state[at + 1], 0, 1), 1)
                if row + 1 < height:
                    add(keys, changes, touched, pack(state[at], state[at + width], 1, 0), 1)
            row += 1
        grid, row = grid + 1, 0
    return grid, row


@compiled
def _neighbours(
    state: Int32s,
    base: Int,
    height: Int,
    width: Int,
    region: Int,
    other: Int,
    starts: Int64s,
    dy: Int32s,
    dx: Int32s,
    near: Int32s,
) -> Int:
    """Anchors of the regions that touch `region`, but for `other`, into near[:n]; n."""
    token = state[base + region]
    top, left = region // width, region % width
    n = 0
    for k in range(starts[token], starts[token + 1]):
        y, x = top + dy[k], left + dx[k]
        for side in range(4):
            if side == 0:
                ny, nx = y - 1, x
            elif side == 1:
                ny, nx = y, x - 1
            elif side == 2:
                ny, nx = y, x + 1
            else:
                ny, nx = y + 1, x
            if ny < 0 or nx < 0 or ny >= height or nx >= width:
                continue
            cell = ny * width + nx
            found = state[base + cell]
            # the complement is of the number within the shard
            anchor = cell if found >= 0 else np.int64(~found) - base
            if anchor in (region, other):
                continue
            known = False
            for i in range(n):
                if near[i] == anchor:
                    known = True
                    break
            if not known:
                near[n] = anchor
                n += 1
    return n


@compiled
def _tell(
    state: Int32s,
    base: Int,
    width: Int,
    region: Int,
    near: Int32s,
    n: Int,
    by: Int,
    starts: Int64s,
    max_cells: Int,
    keys: Keys,
    changes: Int64s,
    touched: Int64s,
) -> None:
    """Count the pairs of `region` with near[:n]."""
    token = state[base + region]
    size = starts[token + 1] - starts[token]
    for i in range(n):
        other = np.int64(near[i])
        its = state[base + other]
        if size + starts[its + 1] - starts[its] > max_cells:
            continue
        down, right = other // width - region // width, other % width - region % width
        if region < other:
            add(keys, changes, touched, pack(token, its, down, right), by)
        else:
            add(keys, changes, touched, pack(its, token, -down, -right), by)


@compiled
def _apply(
    state: Int32s,
    shapes: Int32s,
    grid_starts: Int64s,
    sites: Int32s,
    made: Int32s,
    at: Int,
    kept: Int,
    merges: Int,
    grid: Int,
    by_first: bool,
    a: Int,
    b: Int,
    down: Int,
    right: Int,
    new: Int,
    starts: Int64s,
    dy: Int32s,
    dx: Int32s,
    max_cells: Int,
    keys: Keys,
    changes: Int64s,
    touched: Int64s,
) -> tuple[Int, Int, Int, Int]:
    """Walk `sites` from `at` on, ascending; keeps in it those that still hold their token."""
    near = np.empty(4 * MAX_CELLS, np.int32)
    near_b = np.empty(4 * MAX_CELLS, np.int32)
    cells = starts[new + 1] - starts[new]
    walked = a if by_first else b
    while at < len(sites):
        # at most so many distinct neighbours of A, of B and of both together
        if full(touched, 8 * cells + 2):
            return at, kept, merges, grid
        site = np.int64(sites[at])
        at += 1
        if state[site] != walked:
            continue
        while site >= grid_starts[grid + 1]:
            grid += 1
        base = grid_starts[grid]
        height, width = np.int64(shapes[grid, 0]), np.int64(shapes[grid, 1])
        local = site - base
        y, x = local // width, local % width
        if by_first:
            first, y, x = local, y + down, x + right
            second = y * width + x
        else:
            second, y, x = local, y - down, x - right
            first = y * width + x
        inside = 0 <= y < height and 0 <= x < width
        if not inside or state[base + first] != a or state[base + second] != b:
            sites[kept] = site
            kept += 1
            continue
        n = _neighbours(state, base, height, width, first, second, starts, dy, dx, near)
        m = _neighbours(state, base, height, width, second, first, starts, dy, dx, near_b)
        add(keys, changes, touched, pack(a, b, down, right), -1)
        _tell(state, base, width, first, near, n, -1, starts, max_cells, keys, changes, touched)
        _tell(state, base, width, second, near_b, m, -1, starts, max_cells, keys, changes, touched)
        for k in range(starts[new], starts[new + 1]):
            cell = (first // width + dy[k]) * width + first % width + dx[k]
            state[base + cell] = ~(base + first)
        state[base + first] = new
        alone = n
        for i in range(m):
            known = False
            for j in range(alone):
                if near[j] == near_b[i]:
                    known = True
                    break
            if not known:
                near[n] = near_b[i]
                n += 1
        _tell(state, base, width, first, near, n, 1, starts, max_cells, keys, changes, touched)
        made[merges] = base + first
        merges += 1
    return at, kept, merges, grid
