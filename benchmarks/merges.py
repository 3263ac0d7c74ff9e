"""Merges over image codes: learning and encoding against the published algorithm, paired.

    python benchmarks/merges.py --pairs 5

The published algorithm (Being-VL-0.5) is written down here from its specification and compiled as
its own is: at every step a dense matrix of all pairs is counted anew over the whole corpus, its
strict upper triangle searched, and every line rewritten; to encode, every rule scans the line once.
Both sides must find the same rules and the same ids. CPU seconds of one thread; the grids are
synthetic: smooth fields of codes with noise, as a VQ-GAN's are smooth where a picture is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import measure
import numba
import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges import region2d, sequence
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.learn import learn_pairs, learn_regions
from tokenmill.workers.tokenizers.bpe_image_merges.region2d import Regions
from tokenmill.workers.tokenizers.bpe_image_merges.sequence import Pairs

Line = NDArray[np.int32]
SIDE = 32


def pictures(count: int, vocab: int, seed: int) -> NDArray[np.int32]:
    """int32[count, 32, 32]: bands of a smooth field, neighbouring bands of neighbouring codes.

    As in pictures, some codes are far more frequent than others, and a fifth of the cells is
    texture: codes that come in no order, rare ones among them.
    """
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, SIDE)
    y, x = np.meshgrid(ramp, ramp, indexing="ij")
    grids = np.empty((count, SIDE, SIDE), np.int32)
    order = np.random.default_rng(0).permutation(vocab)  # codes have no order of their own
    for grid in grids:
        waves = rng.uniform((0, 0, 0), (3, 3, 6), (4, 3))
        field = sum(
            np.cos(2 * np.pi * (fy * y + fx * x) + phase) / (1 + fy + fx) for fy, fx, phase in waves
        )
        level = int(vocab * rng.beta(0.6, 3) / 4)
        grid[:] = order[(level + np.floor(field * 12).astype(int)) % vocab]
        noisy = rng.random((SIDE, SIDE)) < 0.2
        grid[noisy] = order[(vocab * rng.beta(0.3, 3, noisy.sum())).astype(int)]
    return grids


# -- the published algorithm -----------------------------------------------------------------


@numba.njit(nogil=True)
def _count_2d(grid, matrix):  # type: ignore[no-untyped-def]
    height, width = grid.shape
    for i in range(height):
        for j in range(width):
            if j + 1 < width:
                matrix[grid[i, j], grid[i, j + 1]] += 1
            if i + 1 < height:
                matrix[grid[i, j], grid[i + 1, j]] += 1
            if i + 1 < height and j + 1 < width:
                matrix[grid[i, j], grid[i + 1, j + 1]] += 1


@numba.njit(nogil=True)
def _count_1d(line, matrix):  # type: ignore[no-untyped-def]
    for i in range(len(line) - 1):
        matrix[line[i], line[i + 1]] += 1


@numba.njit(nogil=True)
def _merge_1d(line, a, b, new):  # type: ignore[no-untyped-def]
    out = np.empty_like(line)
    i = n = 0
    while i < len(line):
        if i + 1 < len(line) and line[i] == a and line[i + 1] == b:
            out[n] = new
            i += 2
        else:
            out[n] = line[i]
            i += 1
        n += 1
    return out[:n]


def published_fit(grids: NDArray[np.int32], vocab: int, rules: int) -> list[tuple[int, int]]:
    lines: list[Line] = []
    found: list[tuple[int, int]] = []
    for step in range(rules):
        size = vocab + step
        matrix = np.zeros((size, size), np.int32)
        for one in lines if step else grids:
            (_count_1d if step else _count_2d)(one, matrix)
        upper = np.triu(matrix, 1)
        if not upper.sum():
            break
        a, b = divmod(int(upper.argmax()), size)
        found.append((a, b))
        if step:
            lines = [_merge_1d(line, a, b, size) for line in lines]
        else:
            lines = [sequence.merge_2d(grid, a, b, size) for grid in grids]
    return found


def published_encode(grid: NDArray[np.int32], vocab: int, rules: Sequence[Any]) -> Line:
    line = sequence.merge_2d(grid, rules[0][0], rules[0][1], vocab)
    for number in range(1, len(rules)):
        line = _merge_1d(line, rules[number][0], rules[number][1], vocab + number)
    return line


# -- pairs -----------------------------------------------------------------------------------


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    before = time.process_time()
    made = call()
    return time.process_time() - before, made


def fits(pairs: int, count: int, vocab: int, rules: int) -> None:
    ratios, ours, theirs, both = [], [], [], []
    for pair in range(pairs):
        raw = pictures(count, vocab, seed=pair)
        grids = Grids.of(list(raw))
        slow, expected = cpu(lambda raw=raw: published_fit(raw, vocab, rules))
        quick, found = cpu(lambda grids=grids: learn_pairs(grids, vocab, rules=rules))
        if [tuple(row) for row in found[0][:, :2].tolist()] != expected:
            raise SystemExit("the rules differ")
        region, _ = cpu(lambda grids=grids: learn_regions(grids, vocab, rules=rules))
        ratios.append(slow / quick)
        ours.append(quick)
        theirs.append(slow)
        both.append(slow / region)
    name = f"fit, {count} grids of {SIDE}x{SIDE}, {vocab} codes, {rules} rules"
    print(f"{name}: published {measure.spread(theirs)} s, ours {measure.spread(ours, 3)} s")
    print(f"{name}: published / ours {measure.spread(ratios, 1)}")
    print(f"{name}: published / region2d {measure.spread(both, 1)}", flush=True)


def encodes(pairs: int, count: int, vocab: int, rules: int) -> None:
    grids = Grids.of(list(pictures(count, vocab, seed=100)))
    seconds, learnt = cpu(lambda: learn_pairs(grids, vocab, rules=rules))
    print(f"learnt {len(learnt[0])} rules of being-vl-0.5 in {seconds:.1f} s", flush=True)
    line = learnt[0][:, :2].copy()
    seconds, learnt = cpu(lambda: learn_regions(grids, vocab, rules=rules, max_cells=16))
    print(f"learnt {len(learnt[0])} rules of region2d in {seconds:.1f} s", flush=True)
    known, regions = Pairs.of(vocab, line), Regions.of(vocab, learnt[0])
    plain = [(int(a), int(b)) for a, b in line]
    figures: dict[str, list[float]] = {"published": [], "ours": [], "region2d": []}
    for pair in range(pairs):
        raw = pictures(64, vocab, seed=200 + pair)
        batch = Grids.of(list(raw))
        slow, expected = cpu(lambda raw=raw: [published_encode(g, vocab, plain) for g in raw[:8]])
        quick, (ids, offsets) = cpu(lambda batch=batch: sequence.encode(batch, known))
        for n, one in enumerate(expected):
            if not np.array_equal(one, ids[offsets[n] : offsets[n + 1]]):
                raise SystemExit("the ids differ")
        region, (tokens, _) = cpu(lambda batch=batch: region2d.encode(batch, regions))
        figures["published"].append(slow / 8 * 1e3)
        figures["ours"].append(quick / 64 * 1e3)
        figures["region2d"].append(region / 64 * 1e3)
    name = f"encode, {SIDE}x{SIDE}, {vocab} codes, {len(line)} rules"
    for key, values in figures.items():
        print(f"{name}: {key} {measure.spread(values, 3)} ms a grid")
    for key in ("ours", "region2d"):
        ratio = [a / b for a, b in zip(figures["published"], figures[key], strict=True)]
        print(f"{name}: published / {key} {measure.spread(ratio, 1)}")
    print(f"tokens a grid: being-vl {len(ids) / 64:.0f}, region2d {len(tokens) / 64:.0f} of 1024")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--grids", type=int, default=500)
    parser.add_argument("--rules", type=int, default=8192, help="for encoding")
    parser.add_argument("--large", type=int, default=20_000, help="grids for a fit of its own")
    options = parser.parse_args()
    print(json.dumps({"machine": measure.machine(), "load": measure.load()}), flush=True)
    published_fit(pictures(2, 64, 0), 64, 3)  # compile, both
    for learn in (learn_pairs, learn_regions):
        learn(Grids.of(list(pictures(2, 64, 0))), 64, rules=3)
    fits(options.pairs, options.grids, 512, 128)
    fits(options.pairs, options.grids, 8192, 6)
    encodes(options.pairs, 3 * options.grids, 8192, options.rules)
    large(options.large, 8192, options.rules)


def large(count: int, vocab: int, rules: int) -> None:
    """A fit that the published algorithm would take hours for; one and two threads."""
    grids = Grids.of(list(pictures(count, vocab, seed=7)))
    found = []
    for workers in (1, 2):
        began, before = time.perf_counter(), time.process_time()
        found.append(learn_regions(grids, vocab, rules=rules, max_cells=16, workers=workers))
        wall, seconds = time.perf_counter() - began, time.process_time() - before
        print(
            f"region2d, {count} grids, {len(found[-1][0])} rules, {workers} threads: "
            f"{wall:.1f} s of wall, {seconds:.1f} s of CPU",
            flush=True,
        )
    if not all(np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        raise SystemExit("two threads found other rules")


if __name__ == "__main__":
    main()
