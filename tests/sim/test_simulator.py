"""Whole runs under generated faults: nothing lost, nothing twice (G1 to G6, G8), always an end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.chance import shrink
from sim.many import explain, many
from sim.mutants import MUTANTS
from sim.play import play_seed, replay, shrunk
from sim.world import FAULTS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_twice_under_any_schedule(
    request: pytest.FixtureRequest,
) -> None:
    """10,000 schedules; another number by --sim-schedules, one of them by --sim-seed."""
    seed = request.config.getoption("--sim-seed")
    if seed is not None:
        text = explain(seed)
        assert "everything held" in text, text
        return
    summary = many(0, request.config.getoption("--sim-schedules"))
    print(summary)
    assert not summary.failed, explain(min(summary.failed))
    if summary.schedules >= 1000:
        assert set(summary.injected) == set(FAULTS), "a kind of fault was never injected"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 999), max_size=400))
def test_hypothesis_finds_no_schedule_that_breaks_a_guarantee(choices: list[int]) -> None:
    """The same schedules, chosen and shrunk by hypothesis."""
    played = replay(choices)
    assert not played.error, "\n".join([*played.trace, played.detail])


def test_a_seed_gives_the_same_schedule_every_time() -> None:
    for seed in range(20):
        first, again = play_seed(seed), play_seed(seed)
        assert (first.choices, first.trace, first.steps) == (
            again.choices,
            again.trace,
            again.steps,
        )
        assert replay(first.choices).trace == first.trace


def test_a_failing_schedule_shrinks_to_what_matters_and_still_fails() -> None:
    (mutant,) = [m for m in MUTANTS if m.name == "commit does not look for its lost answer"]
    with mutant.planted() as parts:
        found = next(p for p in (play_seed(s, parts) for s in range(500)) if p.error)
        small = shrunk(found, parts, tries=500)
        assert small.error.split(":")[:2] == found.error.split(":")[:2]
        assert replay(small.choices, parts).error == small.error
    assert sum(map(bool, small.choices)) < sum(map(bool, found.choices)) / 2
    assert sum(small.injected.values()) <= min(2, sum(found.injected.values()))
    assert not replay(small.choices).error, "without the fault the same schedule is fine"


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(0, 10), st.integers(0, 19))
def test_shrinking_leaves_only_what_the_failure_needs(
    before: list[int], need: int, other: int
) -> None:
    def fails(choices: Sequence[int]) -> bool:
        return sum(c > need for c in choices) >= 2 and other in choices

    start = [*before, need + 1, other, need + 5]
    small = shrink(start, fails)
    assert fails(small)
    assert len(small) <= 3
    assert sum(small) <= 2 * (need + 1) + other
