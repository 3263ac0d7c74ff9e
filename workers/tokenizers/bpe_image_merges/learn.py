"""Learning merges: shards count and merge, the totals say which pair is next.

The result depends on the grids alone, not on their order within ties, nor on how many shards hold
them: every step adds integers and breaks ties by the pair itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from operator import methodcaller
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.keys import unpack
from tokenmill.workers.tokenizers.bpe_image_merges.region_shard import RegionShard
from tokenmill.workers.tokenizers.bpe_image_merges.sequence_shard import SequenceShard
from tokenmill.workers.tokenizers.bpe_image_merges.shapes import MAX_CELLS
from tokenmill.workers.tokenizers.bpe_image_merges.tally import Changes, Totals, summed

S = TypeVar("S")
R = TypeVar("R")
Each = Callable[[Callable[[Any], R]], list[R]]
# one row per rule: what it joins, how often the pair stood there, how often it was merged
Learnt = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]


class Shard(Protocol):
    def count(self) -> Changes: ...

    def apply(self, key: int) -> tuple[Changes, int]: ...


def split(grids: Grids, parts: int) -> list[Grids]:
    """Consecutive parts of about equally many cells; none empty unless there is nothing."""
    parts = max(1, min(parts, len(grids)))
    wanted = grids.starts[-1] * np.arange(1, parts) // parts
    cuts = [0, *np.searchsorted(grids.starts, wanted).tolist(), len(grids)]
    slices = [(a, b) for a, b in pairwise(cuts) if a < b]
    return [grids.slice(a, b) for a, b in slices] or [grids]


def learn_regions(
    grids: Grids,
    vocab: int,
    *,
    rules: int,
    min_count: int = 2,
    max_cells: int = MAX_CELLS,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
) -> Learnt:
    """Rules of `region2d`: int32[R, 4] rows (a, b, dy, dx), counts and merges int64[R].

    max_cells: no token covers more. workers: threads, each with a shard of the grids.
    """
    shards = [RegionShard(part, vocab, min(max_cells, MAX_CELLS)) for part in split(grids, workers)]
    with _threads(shards) as each:
        return _learn(each, vocab, rules=rules, min_count=min_count, report=report)


def learn_pairs(
    grids: Grids,
    vocab: int,
    *,
    rules: int,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
) -> Learnt:
    """Rules of `being-vl-0.5`: as `learn_regions`, rows (a, b, 0, 1).

    The released code's rules, counted without the race that makes its own vary from run to run.
    """
    shards = [SequenceShard(part, vocab) for part in split(grids, workers)]
    with _threads(shards) as each:
        totals = Totals(min_count=1)
        totals.begin(*summed(each(lambda shard: shard.count_2d())))
        best = totals.best()
        if best is None or rules < 1:
            return _learnt([], [], [])
        merges = sum(each(lambda shard: shard.first(best[0])))
        rest = _learn(each, vocab + 1, rules=rules - 1, min_count=1, report=report)
    first = _learnt([best[0]], [best[1]], [merges])
    return (
        np.concatenate([first[0], rest[0]]),
        np.concatenate([first[1], rest[1]]),
        np.concatenate([first[2], rest[2]]),
    )


def _learn(
    each: Each[Any],
    tokens: int,
    *,
    rules: int,
    min_count: int,
    report: Callable[[int], None] | None,
) -> Learnt:
    """Rules from the state that the shards are in; the next id is `tokens`."""
    keys: list[int] = []
    counts: list[int] = []
    merges: list[int] = []
    totals = Totals(min_count)
    totals.begin(*summed(each(lambda shard: shard.count())))
    while len(keys) < rules and (best := totals.best()) is not None:
        key, count = best
        done = each(methodcaller("apply", key))
        born, fallen = _by_age(summed([changes for changes, _ in done]), tokens + len(keys))
        totals.fall(*fallen)
        totals.begin(*born)
        keys.append(key)
        counts.append(count)
        merges.append(sum(n for _, n in done))
        if report is not None:
            report(len(keys))
    return _learnt(keys, counts, merges)


def _by_age(changes: Changes, newest: int) -> tuple[Changes, Changes]:
    """Pairs with the token `newest`, which begin now, and all others, which only fall."""
    keys, by = changes
    new = ((keys >> 43) == newest) | (((keys >> 23) & 0xFFFFF) == newest)
    return (keys[new], by[new]), (keys[~new], by[~new])


def _learnt(keys: Sequence[int], counts: Sequence[int], merges: Sequence[int]) -> Learnt:
    rows = np.array([unpack(key) for key in keys], np.int32).reshape(-1, 4)
    return rows, np.array(counts, np.int64), np.array(merges, np.int64)


@contextmanager
def _threads(shards: Sequence[S]) -> Iterator[Each[Any]]:
    """Calls a function with every shard, one thread each; compiled code holds no GIL."""
    if len(shards) == 1:
        yield lambda call: [call(shards[0])]
        return
    with ThreadPoolExecutor(len(shards)) as pool:
        yield lambda call: list(pool.map(call, shards))
