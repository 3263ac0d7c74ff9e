"""Merging written down from the specification and nothing else: slow, obvious, no index."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

Cell = tuple[int, int]


class Regions:
    """One grid under `region2d`: region = anchor -> (token, cells)."""

    def __init__(self, grid: np.ndarray) -> None:
        self.height, self.width = grid.shape
        self.regions = {
            (y, x): (int(grid[y, x]), {(y, x)})
            for y in range(self.height)
            for x in range(self.width)
        }

    def pairs(self) -> list[tuple[Cell, Cell, tuple[int, int, int, int]]]:
        """(anchor A, anchor B, key) of regions that share a cell edge, in order."""
        owner = {c: anchor for anchor, (_, cells) in self.regions.items() for c in cells}
        touching = set()
        for (y, x), anchor in owner.items():
            for other in (owner.get((y, x + 1)), owner.get((y + 1, x))):
                if other is not None and other != anchor:
                    touching.add((min(anchor, other), max(anchor, other)))
        return [
            (a, b, (self.regions[a][0], self.regions[b][0], b[0] - a[0], b[1] - a[1]))
            for a, b in sorted(touching)
        ]

    def size(self, anchor: Cell) -> int:
        return len(self.regions[anchor][1])

    def apply(self, key: tuple[int, ...], new: int) -> int:
        used: set[Cell] = set()
        for a, b, found in self.pairs():
            if found == tuple(key) and not {a, b} & used:
                used |= {a, b}
                self.regions[a] = (new, self.regions[a][1] | self.regions.pop(b)[1])
        return len(used) // 2

    def tokens(self) -> list[int]:
        return [token for _, (token, _) in sorted(self.regions.items())]


def learn_regions(grids, vocab, rules, min_count=2, max_cells=1024):
    states = [Regions(g) for g in grids]
    rows = []
    while len(rows) < rules:
        counts: Counter = Counter()
        for state in states:
            for a, b, key in state.pairs():
                if state.size(a) + state.size(b) <= max_cells:
                    counts[key] += 1
        if not counts or max(counts.values()) < min_count:
            break
        count, key = min((-n, k) for k, n in counts.items())
        merged = sum(s.apply(key, vocab + len(rows)) for s in states)
        rows.append((*key, -count, merged))
    return rows, [s.tokens() for s in states]


def encode_regions(grid, vocab, rules) -> list[int]:
    state = Regions(grid)
    for number, key in enumerate(rules):
        state.apply(tuple(int(x) for x in key), vocab + number)
    return state.tokens()


def merge_2d(grid, a, b, new) -> list[int]:
    height, width = grid.shape
    taken, out = set(), []
    for y in range(height):
        for x in range(width):
            if (y, x) in taken:
                continue
            token = int(grid[y, x])
            if token == a:
                for other in ((y, x + 1), (y + 1, x)):
                    inside = other[0] < height and other[1] < width
                    if inside and grid[other] == b and other not in taken:
                        taken.add(other)
                        token = new
                        break
            out.append(token)
    return out


def merge_1d(line, a, b, new) -> list[int]:
    out, at = [], 0
    while at < len(line):
        if at + 1 < len(line) and (line[at], line[at + 1]) == (a, b):
            out.append(new)
            at += 2
        else:
            out.append(line[at])
            at += 1
    return out


def encode_sequence(grid, vocab, rules) -> list[int]:
    line = [int(x) for x in grid.ravel()]
    for number, (a, b) in enumerate(rules):
        line = merge_2d(grid, a, b, vocab) if number == 0 else merge_1d(line, a, b, vocab + number)
    return line


def learn_sequence(grids, vocab, rules):
    """The released algorithm: count everything, take the first greatest, rewrite everything."""
    counts: Counter = Counter()
    for g in grids:
        for (y, x), a in np.ndenumerate(g):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < g.shape[0] and x + dx < g.shape[1]:
                    counts[int(a), int(g[y + dy, x + dx])] += 1
    rows: list[tuple[int, int, int]] = []
    lines = [[int(x) for x in g.ravel()] for g in grids]
    while len(rows) < rules:
        rising = {k: n for k, n in counts.items() if k[0] < k[1]}
        if not rising:
            break
        count, (a, b) = min((-n, k) for k, n in rising.items())
        new = vocab + len(rows)
        if not rows:
            lines = [merge_2d(g, a, b, new) for g in grids]
        else:
            lines = [merge_1d(line, a, b, new) for line in lines]
        rows.append((a, b, -count))
        counts = Counter(pair for line in lines for pair in itertools.pairwise(line))
    return rows, lines
