"""Every decision of a schedule, as a list of small numbers: from a seed, or replayed.

0 is always the calm answer, and past the end of a replayed list every answer is 0. So deleting
and lowering numbers gives simpler schedules, which is all that shrinking needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


class Chance:
    """`made` is the list of what was decided: replaying it gives the same schedule."""

    def __init__(self, seed: int | None = None, *, choices: Sequence[int] | None = None) -> None:
        self._random = None if seed is None else random.Random(seed).random
        self._choices = choices or ()
        self.made: list[int] = []

    def pick(self, count: int) -> int:
        """A number below `count`."""
        if self._random is not None:
            number = int(self._random() * count)
        elif len(self.made) < len(self._choices):
            number = self._choices[len(self.made)] % count
        else:
            number = 0
        self.made.append(number)
        return number

    def happens(self, permille: int) -> bool:
        return self.pick(1000) >= 1000 - permille


def shrink(
    choices: Sequence[int], fails: Callable[[list[int]], bool], *, tries: int = 3000
) -> list[int]:
    """A short list of small numbers that still fails: delete, then set to zero, then lower."""
    best = list(choices)
    left = tries

    def attempt(candidate: list[int]) -> bool:
        nonlocal best, left
        if left <= 0 or candidate == best:
            return False
        left -= 1
        if not fails(candidate):
            return False
        best = candidate
        return True

    before: list[int] | None = None
    while best != before and left > 0:
        before = best
        size = max(len(best) // 2, 1)
        while size:
            at = len(best) - size
            while at >= 0:
                block = best[at : at + size]
                if not attempt(best[:at] + best[at + size :]) and any(block):
                    attempt(best[:at] + [0] * size + best[at + size :])
                at -= size
            size //= 2
        for at, number in enumerate(best):
            for lower in (1, number // 2, number - 1):
                if lower < best[at] and attempt([*best[:at], lower, *best[at + 1 :]]):
                    break
    return best
