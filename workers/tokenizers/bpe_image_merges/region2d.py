"""Merging regions of a grid: the lossless mode. Definition: docs/image-merges.md.

An image is a partition of its grid into regions, at first single cells. A region is known by its
*anchor*, its first cell in raster order. Rules are applied lowest rank first, and one rule in
raster order of (anchor A, anchor B). That equals applying every rule to the whole grid in turn:
a pair that a merge creates holds the new token, which only later rules name.

The state of a grid is one array, int32[cells]: at an anchor the token of its region, elsewhere the
bitwise complement of the anchor's cell number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.heap import pop, push
from tokenmill.workers.tokenizers.bpe_image_merges.keys import (
    EMPTY,
    Keys,
    insert_all,
    pack,
    pack_rows,
    slot,
    table,
)
from tokenmill.workers.tokenizers.bpe_image_merges.shapes import Shapes, shapes_of

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

# What `unstamp` found wrong with a sequence.
FITS, OVERLAPS, LEAVES, TOO_SHORT, TOO_LONG = range(5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Regions:
    """A table of rules, ready for compiled code. rules: int32[R, 4] rows (a, b, dy, dx)."""

    vocab: int
    rules: Int32s
    shapes: Shapes
    keys: Keys
    ranks: Int32s
    leads: NDArray[np.bool_]  # per token: some rule names it

    @classmethod
    def of(cls, vocab: int, rules: Int32s) -> Regions:
        """Raises BadRule."""
        shapes = shapes_of(vocab, rules)
        keys, ranks = table(len(rules), np.int32)
        insert_all(keys, ranks, pack_rows(rules), np.arange(len(rules), dtype=np.int32))
        leads = np.zeros(vocab + len(rules), np.bool_)
        leads[rules[:, :2].ravel()] = True
        return cls(vocab=vocab, rules=rules, shapes=shapes, keys=keys, ranks=ranks, leads=leads)

    @property
    def tokens(self) -> int:
        return self.vocab + len(self.rules)


def encode(grids: Grids, regions: Regions) -> tuple[Int32s, Int64s]:
    """Ids of all grids and where each begins: int32[total], int64[n + 1]. Codes are below vocab."""
    ids = np.empty(len(grids.codes), np.int32)
    lengths = np.empty(len(grids), np.int64)
    _encode_all(grids.codes, grids.shapes, *_rules(regions), ids, lengths)
    return _packed(ids, lengths, grids.starts)


def labels(grid: NDArray[np.int32], regions: Regions) -> Int32s:
    """For every cell the raster number of its region's anchor: int32[H, W]."""
    grids = Grids.of([grid])
    state = _merged(grids.codes, grid.shape[0], grid.shape[1], *_rules(regions))
    here = np.arange(state.size, dtype=np.int32)
    return np.where(state >= 0, here, ~state).reshape(grid.shape)


def decode(ids: Int32s, height: int, width: int, regions: Regions) -> Int32s:
    """The grid int32[H, W] of one sequence: the exact inverse of `encode`.

    Raises ValueError where the ids do not tile the grid.
    """
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= regions.tokens):
        raise ValueError(f"an id outside 0 … {regions.tokens - 1}")
    grid = np.full(height * width, -1, np.int32)
    shapes = regions.shapes
    verdict, at = _stamp_all(ids, height, width, shapes.starts, shapes.dy, shapes.dx,
                             shapes.code, grid)  # fmt: skip
    if verdict != FITS:
        why = {
            OVERLAPS: "covers a cell that is taken",
            LEAVES: "leaves the grid",
            TOO_SHORT: "was the last, and cells are left",
            TOO_LONG: "comes when the grid is full",
        }[verdict]
        raise ValueError(f"id {at} of {len(ids)} {why}, on a grid of {height}x{width}")
    return grid.reshape(height, width)


_Rules = tuple[Int32s, Keys, Int32s, NDArray[np.bool_], Int64s, Int32s, Int32s, int]


def _rules(regions: Regions) -> _Rules:
    shapes = regions.shapes
    return (
        regions.rules,
        regions.keys,
        regions.ranks,
        regions.leads,
        shapes.starts,
        shapes.dy,
        shapes.dx,
        regions.vocab,
    )


def _packed(ids: Int32s, lengths: Int64s, starts: Int64s) -> tuple[Int32s, Int64s]:
    """Sequences that lie at `starts` with gaps behind them, moved together."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    packed = np.empty(offsets[-1], np.int32)
    _move_together(ids, starts, offsets, packed)
    return packed, offsets


@compiled
def _move_together(ids: Int32s, starts: Int64s, offsets: Int64s, out: Int32s) -> None:
    for i in range(len(offsets) - 1):
        start = starts[i]
        for k in range(offsets[i + 1] - offsets[i]):
            out[offsets[i] + k] = ids[start + k]


@compiled
def _encode_all(
    codes: Int32s,
    shapes: Int32s,
    rules: Int32s,
    keys: Keys,
    ranks: Int32s,
    leads: NDArray[np.bool_],
    starts: Int64s,
    dy: Int32s,
    dx: Int32s,
    vocab: Int,
    ids: Int32s,
    lengths: Int64s,
) -> None:
    begin = 0
    for g in range(len(shapes)):
        cells = np.int64(shapes[g, 0]) * shapes[g, 1]
        state = _merged(codes[begin : begin + cells], shapes[g, 0], shapes[g, 1], rules, keys,
                        ranks, leads, starts, dy, dx, vocab)  # fmt: skip
        n = 0
        for i in range(cells):
            if state[i] >= 0:
                ids[begin + n] = state[i]
                n += 1
        lengths[g] = n
        begin += cells


@compiled
def _merged(
    codes: Int32s,
    height: Int,
    width: Int,
    rules: Int32s,
    keys: Keys,
    ranks: Int32s,
    leads: NDArray[np.bool_],
    starts: Int64s,
    dy: Int32s,
    dx: Int32s,
    vocab: Int,
) -> Int32s:
    """The state of one grid after all rules."""
    cells = height * width
    state = codes.copy()
    seen = np.full(cells, -1, np.int32)  # the last merge that looked at this region
    heap = np.empty(4 * cells + 16, np.int64)  # rank * cells + anchor A
    size = 0
    for y in range(height):
        for x in range(width):
            at = y * width + x
            if not leads[state[at]]:
                continue
            if x + 1 < width and leads[state[at + 1]]:
                found = slot(keys, pack(state[at], state[at + 1], 0, 1))
                if keys[found] != EMPTY:
                    push(heap, size, np.int64(ranks[found]) * cells + at)
                    size += 1
            if y + 1 < height and leads[state[at + width]]:
                found = slot(keys, pack(state[at], state[at + width], 1, 0))
                if keys[found] != EMPTY:
                    push(heap, size, np.int64(ranks[found]) * cells + at)
                    size += 1
    merges = 0
    while size:
        item = pop(heap, size)
        size -= 1
        rank, first = item // cells, item % cells
        # where B lay when the pair was found; it may have been merged since, as A may have
        second = first + np.int64(rules[rank, 2]) * width + rules[rank, 3]
        if state[first] != rules[rank, 0] or state[second] != rules[rank, 1]:
            continue
        token = vocab + rank
        top, left = first // width, first % width
        begin, end = starts[token], starts[token + 1]
        for k in range(begin, end):
            state[first + np.int64(dy[k]) * width + dx[k]] = ~first
        state[first] = token
        if not leads[token]:
            continue
        room = size + 4 * (end - begin)
        if room > len(heap):
            larger = np.empty(2 * room, np.int64)
            larger[:size] = heap[:size]
            heap = larger
        for k in range(begin, end):
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
                near = ny * width + nx
                other = near if state[near] >= 0 else np.int64(~state[near])
                if other == first or seen[other] == merges or not leads[state[other]]:
                    continue
                seen[other] = merges
                down, right = other // width - top, other % width - left
                if first < other:
                    found = slot(keys, pack(token, state[other], down, right))
                    lead = first
                else:
                    found = slot(keys, pack(state[other], token, -down, -right))
                    lead = other
                if keys[found] != EMPTY:
                    push(heap, size, np.int64(ranks[found]) * cells + lead)
                    size += 1
        merges += 1
    return state


@compiled
def _stamp_all(
    ids: Int32s,
    height: Int,
    width: Int,
    starts: Int64s,
    dy: Int32s,
    dx: Int32s,
    code: Int32s,
    grid: Int32s,
) -> tuple[Int, Int]:
    """Lay every id on the first free cell. The verdict, and the number of the id it fell on."""
    at, cells = 0, height * width
    for n in range(len(ids)):
        while at < cells and grid[at] >= 0:
            at += 1
        if at == cells:
            return TOO_LONG, n
        top, left = at // width, at % width
        for k in range(starts[ids[n]], starts[ids[n] + 1]):
            y, x = top + dy[k], left + dx[k]
            if y >= height or x < 0 or x >= width:
                return LEAVES, n
            if grid[y * width + x] >= 0:
                return OVERLAPS, n
            grid[y * width + x] = code[k]
    while at < cells and grid[at] >= 0:
        at += 1
    return (FITS if at == cells else TOO_SHORT), len(ids) - 1
