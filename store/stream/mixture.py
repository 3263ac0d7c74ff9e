"""Which part of a mixture each slot draws from, and which of that part's draws it is.

Integer weights w with W = sum(w): a slot is cycle * W + r, each cycle is the parts repeated by
weight and permuted by (seed, cycle), so counts are exact over every cycle and never more than W off
in between. A schedule is a list of such stretches; the draws of a part go on across them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError
from tokenmill.store.stream.permutation import permuted_rows, stream_key

# A cycle of so many slots is permuted as a whole: weights that need more are refused.
LONGEST_CYCLE = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """From slot `start` on, part i is drawn with weight weights[i]."""

    start: int
    weights: tuple[int, ...]


class Mixture:
    """Draws of `parts` over a schedule of stretches; the first starts at slot 0."""

    def __init__(self, stretches: Sequence[Stretch], seed: int) -> None:
        self._stretches = tuple(stretches)
        self._seed = seed
        self._starts = np.array([s.start for s in stretches], np.int64)
        counts = np.zeros(len(stretches[0].weights), np.int64)
        self._before = [counts]
        for number, (one, next_) in enumerate(pairwise(stretches)):
            counts = counts + self._counts(number, next_.start - one.start)
            self._before.append(counts)

    def draws(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(part, draw) of each slot, int64 both: the draw-th sequence that the part gives."""
        part, draw = np.empty_like(slots), np.empty_like(slots)
        stretch = np.searchsorted(self._starts, slots, side="right") - 1
        for number in np.unique(stretch).tolist():
            chosen = stretch == number
            local = slots[chosen] - self._starts[number]
            part[chosen], draw[chosen] = self._draws(number, local)
        return part, draw

    def counts(self, slot: int) -> NDArray[np.int64]:
        """int64[parts]: how often each part was drawn before `slot`."""
        number = int(np.searchsorted(self._starts, slot, side="right")) - 1
        return self._before[number] + self._counts(number, slot - int(self._starts[number]))

    def _draws(
        self, number: int, local: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        weights = np.array(self._stretches[number].weights, np.int64)
        before = self._before[number]
        if np.count_nonzero(weights) == 1:
            part = np.full_like(local, int(np.flatnonzero(weights)[0]))
            return part, before[part] + local
        total = int(weights.sum())
        cycles, row = np.unique(local // total, return_inverse=True)
        labels, nth = self._cycles(number, cycles)
        at = local % total
        part = labels[row, at]
        return part, before[part] + cycles[row] * weights[part] + nth[row, at]

    def _cycles(
        self, number: int, cycles: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each cycle its permuted parts and how often each was drawn in it before."""
        weights = np.array(self._stretches[number].weights, np.int64)
        total = int(weights.sum())
        order = permuted_rows(cycles, total, stream_key(self._seed, "mixture", number))
        labels = np.repeat(np.arange(len(weights)), weights)[order]
        nth = np.zeros_like(labels)
        for part in range(len(weights)):
            mine = labels == part
            nth[mine] = (np.cumsum(mine, axis=1) - 1)[mine]
        return labels, nth

    def _counts(self, number: int, slots: int) -> NDArray[np.int64]:
        weights = np.array(self._stretches[number].weights, np.int64)
        total = int(weights.sum())
        counts: NDArray[np.int64] = weights * (slots // total)
        if rest := slots % total:
            labels, _ = self._cycles(number, np.array([slots // total], np.int64))
            counts = counts + np.bincount(labels[0, :rest], minlength=len(weights))
        return counts


def whole_weights(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """The smallest integers in exactly these proportions: 0.7, 0.2, 0.1 are 7, 2, 1.

    Decimal fractions are taken as written. Raises JobError for negative weights, for none at all,
    and for proportions whose cycle would pass LONGEST_CYCLE.
    """
    exact = [w if isinstance(w, Fraction) else Fraction(str(w)) for w in weights]
    if any(w < 0 for w in exact) or not any(exact):
        raise JobError(
            "weights must be positive numbers (0 switches a part off)",
            where=f"weights {[str(w) for w in weights]}",
        )
    scale = lcm(*(w.denominator for w in exact))
    whole = [int(w * scale) for w in exact]
    common = gcd(*whole)
    whole = [w // common for w in whole]
    if sum(whole) > LONGEST_CYCLE:
        raise JobError(
            f"these weights repeat only after {sum(whole):,} draws",
            where=f"weights {[str(w) for w in weights]}",
            remedy=f"round them so that their sum is at most {LONGEST_CYCLE:,} parts",
        )
    return tuple(whole)


def stretches_of(
    schedule: Mapping[int, Sequence[float | Fraction]], batch: int
) -> tuple[Stretch, ...]:
    """Weights by the step at which they begin, as stretches of slots.

    Raises JobError where the schedule does not begin at step 0.
    """
    if 0 not in schedule or any(step < 0 for step in schedule):
        raise JobError("a schedule begins at step 0", where=f"steps {sorted(schedule)}")
    return tuple(
        Stretch(start=step * batch, weights=whole_weights(schedule[step]))
        for step in sorted(schedule)
    )
