"""Merging as the code released with Being-VL-0.5 does it: rule 0 in two dimensions, all later
rules over the raster sequence, the end of a row joined to the next one's beginning.

Kept for vocabularies that were learnt that way. What it loses: an id does not say whether rule 0
merged to the right or downwards, so a grid cannot be had back from its ids.
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
    MAX_TOKENS,
    Keys,
    insert_all,
    pack,
    pack_rows,
    slot,
    table,
)
from tokenmill.workers.tokenizers.bpe_image_merges.shapes import BadRule

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
GONE = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """A table of rules (a, b), ready for compiled code; the new id of rule r is vocab + r.

    keys, ranks: the rules from `apart` on. In sequences rule 0 stands apart (`apart` is 1): its
    pair may come again as a later one.
    """

    vocab: int
    rules: Int32s  # int32[R, 2]
    keys: Keys
    ranks: Int32s

    @classmethod
    def of(cls, vocab: int, rules: Int32s, *, apart: int = 1) -> Pairs:
        """Raises BadRule."""
        if vocab + len(rules) > MAX_TOKENS:
            raise BadRule(len(rules) - 1, f"more than {MAX_TOKENS:,} tokens")
        below = vocab + np.arange(len(rules))[:, None]
        wrong = np.flatnonzero(((rules < 0) | (rules >= below)).any(axis=1))
        if len(wrong):
            raise BadRule(int(wrong[0]), "it joins an id that does not exist before it")
        keys, ranks = table(len(rules), np.int32)
        numbers = np.arange(len(rules), dtype=np.int32)[apart:]
        # a pair that comes twice keeps its first rank: the second finds nothing left to merge
        insert_all(keys, ranks, pack_rows(_steps(rules[apart:])), numbers)
        return cls(vocab=vocab, rules=rules, keys=keys, ranks=ranks)

    @property
    def tokens(self) -> int:
        return self.vocab + len(self.rules)


def _steps(rules: Int32s) -> Int32s:
    """Rows (a, b) as (a, b, 0, 1)."""
    rows = np.zeros((len(rules), 4), np.int32)
    rows[:, :2], rows[:, 3] = rules, 1
    return rows


def encode(grids: Grids, pairs: Pairs) -> tuple[Int32s, Int64s]:
    """Ids of all grids and where each begins: int32[total], int64[n + 1]. Codes are below vocab."""
    ids = np.empty(len(grids.codes), np.int32)
    offsets = np.zeros(len(grids) + 1, np.int64)
    _encode_all(grids.codes, grids.shapes, pairs.rules, pairs.keys, pairs.ranks, pairs.vocab,
                ids, offsets)  # fmt: skip
    return ids[: offsets[-1]].copy(), offsets


def merge_2d(grid: NDArray[np.int32], a: int, b: int, new: int) -> Int32s:
    """One two-dimensional pass: the surviving cells in raster order."""
    out = np.empty(grid.size, np.int32)
    n = _merge_2d(grid.ravel(), grid.shape[0], grid.shape[1], a, b, new, out)
    return out[:n]


@compiled
def _encode_all(
    codes: Int32s,
    shapes: Int32s,
    rules: Int32s,
    keys: Keys,
    ranks: Int32s,
    vocab: Int,
    ids: Int32s,
    offsets: Int64s,
) -> None:
    begin = 0
    for g in range(len(shapes)):
        cells = np.int64(shapes[g, 0]) * shapes[g, 1]
        grid = codes[begin : begin + cells]
        begin += cells
        line = np.empty(cells, np.int32)
        n = cells
        if len(rules):
            n = _merge_2d(grid, shapes[g, 0], shapes[g, 1], rules[0, 0], rules[0, 1], vocab, line)
        else:
            line[:] = grid
        offsets[g + 1] = offsets[g] + _merge_line(line[:n], rules, keys, ranks, vocab,
                                                  ids[offsets[g] :])  # fmt: skip


@compiled
def _merge_2d(grid: Int32s, height: Int, width: Int, a: Int, b: Int, new: Int, out: Int32s) -> Int:
    """Raster scan: an `a` takes the `b` to its right, else the one below. How many cells stay."""
    taken = np.zeros(len(grid), np.bool_)
    n = 0
    for y in range(height):
        for x in range(width):
            at = y * width + x
            if taken[at]:
                continue
            out[n] = grid[at]
            if grid[at] == a:
                if x + 1 < width and grid[at + 1] == b and not taken[at + 1]:
                    taken[at + 1] = True
                    out[n] = new
                elif y + 1 < height and grid[at + width] == b and not taken[at + width]:
                    taken[at + width] = True
                    out[n] = new
            n += 1
    return n


@compiled
def _merge_line(
    line: Int32s, rules: Int32s, keys: Keys, ranks: Int32s, vocab: Int, out: Int32s
) -> Int:
    """Rules 1 … over one line, lowest rank first, left to right; writes to `out`, how many."""
    n = len(line)
    after = np.arange(1, n + 1)
    before = np.arange(-1, n - 1)
    heap = np.empty(3 * n + 16, np.int64)  # rank * n + position; a merge adds at most two
    size = 0
    for i in range(n - 1):
        found = slot(keys, pack(line[i], line[i + 1], 0, 1))
        if keys[found] != EMPTY:
            push(heap, size, np.int64(ranks[found]) * n + i)
            size += 1
    while size:
        item = pop(heap, size)
        size -= 1
        rank, at = item // n, item % n
        right = after[at]
        if right >= n or line[at] != rules[rank, 0] or line[right] != rules[rank, 1]:
            continue
        line[at] = vocab + rank
        line[right] = GONE
        beyond = after[right]
        after[at] = beyond
        if beyond < n:
            before[beyond] = at
            found = slot(keys, pack(line[at], line[beyond], 0, 1))
            if keys[found] != EMPTY:
                push(heap, size, np.int64(ranks[found]) * n + at)
                size += 1
        left = before[at]
        if left >= 0:
            found = slot(keys, pack(line[left], line[at], 0, 1))
            if keys[found] != EMPTY:
                push(heap, size, np.int64(ranks[found]) * n + left)
                size += 1
    kept = 0
    for i in range(n):
        if line[i] != GONE:
            out[kept] = line[i]
            kept += 1
    return kept
