"""Many schedules at once, over all cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from sim.play import Played, play_seed, shrunk

CHUNK = 100
FAILURES_KEPT = 5


@dataclass(kw_only=True)
class Summary:
    """What a series came to. failed: seed -> what was violated."""

    schedules: int = 0
    steps: int = 0
    samples: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Summary) -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.samples += other.samples
        self.injected += other.injected
        self.failed |= other.failed

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count:,}" for name, count in sorted(self.injected.items()))
        return (
            f"{self.schedules:,} schedules, {self.steps:,} steps, "
            f"{sum(self.injected.values()):,} faults, {self.samples:,} verdicts checked, "
            f"{len(self.failed)} violations in {self.seconds:.0f} s\n  {faults}"
        )


def many(first: int, count: int, *, jobs: int | None = None) -> Summary:
    """Play the seeds [first, first + count); stops early after `FAILURES_KEPT` violations."""
    began = time.monotonic()
    whole = Summary()
    starts = range(first, first + count, CHUNK)
    chunks = [range(at, min(at + CHUNK, first + count)) for at in starts]
    jobs = jobs or len(os.sched_getaffinity(0))
    # spawn: threads of pyarrow do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for part in pool.map(_some, chunks):
            whole.add(part)
            if len(whole.failed) >= FAILURES_KEPT:
                pool.shutdown(cancel_futures=True)
                break
    whole.seconds = time.monotonic() - began
    return whole


def _some(seeds: Iterable[int]) -> Summary:
    found = Summary()
    for seed in seeds:
        played = play_seed(seed)
        found.schedules += 1
        found.steps += played.steps
        found.samples += played.samples
        found.injected.update(played.injected)
        if played.error:
            found.failed[seed] = played.error
    return found


def explain(seed: int) -> str:
    """The schedule of a seed as it was, and the simplest one that breaks in the same way."""
    found = play_seed(seed)
    if not found.error:
        return f"seed {seed}: everything held in {found.steps} steps"
    small = shrunk(found)
    return (
        f"seed {seed}: {found.error}\n{_told(found)}\n\n"
        f"shrunk to {len(small.choices)} choices, of which "
        f"{sum(map(bool, small.choices))} are not 0: {small.choices}\n{_told(small)}\n"
        f"{small.error}\n\n{small.detail}\n"
        f"again: PYTHONPATH=.:tests python -m sim --seed {seed}"
    )


def _told(played: Played) -> str:
    return "\n".join(played.trace)
