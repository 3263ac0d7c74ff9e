"""The simulator sees: each fault planted in a real part is found, and the part itself is not."""

from __future__ import annotations

import pytest

from sim.mutants import MUTANTS, Mutant
from sim.play import play_seed

# The slowest needs some 200; a mutant's `focus` says which kinds of faults it takes.
MOST = 1500


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name.replace(" ", "-") for m in MUTANTS])
def test_planted_fault_is_found(mutant: Mutant) -> None:
    with mutant.planted() as parts:
        seed = next((s for s in range(MOST) if play_seed(s, parts).error), None)
        assert seed is not None, f"not found in {MOST} schedules"
        played = play_seed(seed, parts)
        assert played.error and played.trace
    sound = play_seed(seed, type(parts)(focus=parts.focus))
    assert not sound.error, f"the same schedule breaks without the mutant: {sound.error}"
