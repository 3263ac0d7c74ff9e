"""Which documents of a unit are encoded twice, and which characters the fast engine must not see.

Pure arithmetic over the unit's id: the same documents whenever the unit is run.
"""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
from numpy.typing import NDArray

# The reference engines take 15 to 100 times as long, so 0.01 % of the tokens is up to 1 % of
# the time.
SHARE = 0.0001
CEILING = 0.002  # of all tokens seen, whatever chance does
FIRST_TOKENS = 2048  # the largest document that every unit may have checked
MAX_TOKENS = 1 << 18  # a third of a second of the slowest reference engine


class UnitSampler:
    """Picks documents: each with the probability SHARE, and one short one in every unit."""

    def __init__(self) -> None:
        self._seen = 0
        self._checked = 0
        self._allowance = 0
        self.start(b"")

    def start(self, unit: bytes) -> None:
        self._chance = random.Random(hashlib.sha256(unit).digest())
        self._next = self._gap()
        self._first = True
        self._allowance += FIRST_TOKENS

    def picks(self, lengths: NDArray[np.int64]) -> list[int]:
        """Positions in the next batch of the unit, by the numbers of tokens of its documents."""
        self._seen += int(lengths.sum())
        chosen = {n for n in self._regular(len(lengths)) if self._affordable(int(lengths[n]))}
        if self._first and (short := self._short(lengths)) is not None:
            self._first = False
            chosen.add(short)
        self._checked += sum(int(lengths[n]) for n in chosen)
        return sorted(chosen)

    def _regular(self, documents: int) -> list[int]:
        found = []
        while self._next < documents:
            found.append(self._next)
            self._next += 1 + self._gap()
        self._next -= documents
        return found

    def _gap(self) -> int:
        return int(math.log(1.0 - self._chance.random()) / math.log(1.0 - SHARE))

    def _affordable(self, tokens: int) -> bool:
        spent = self._checked + tokens
        return tokens <= MAX_TOKENS and spent <= CEILING * self._seen + self._allowance

    def _short(self, lengths: NDArray[np.int64]) -> int | None:
        """The shortest of sixteen, so that the one check of a small unit stays cheap."""
        tries = [self._chance.randrange(len(lengths)) for _ in range(16)] if len(lengths) else []
        fitting = [(int(lengths[n]), n) for n in tries if 0 < lengths[n] <= FIRST_TOKENS]
        return min(fitting)[1] if fitting else None
