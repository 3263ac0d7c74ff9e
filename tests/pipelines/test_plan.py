"""Planning: inputs minus coverage, cut into units."""

from __future__ import annotations

import itertools
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.pipelines.plan import CoveredSpan, Plan, PlannedTask, cut, plan, subtract
from tokenmill.schemas.job import MIB
from tokenmill.schemas.work import Input, Span, WorkUnit

intervals = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda p: (p[0], p[0] + p[1])), max_size=6
)


@given(intervals)
def test_subtracting_leaves_exactly_the_uncovered_bytes(covered: list[tuple[int, int]]) -> None:
    left = subtract((0, 50), covered)
    have = {b for a, z in covered for b in range(a, z)}
    assert [b for a, z in left for b in range(a, z)] == [b for b in range(50) if b not in have]


def inputs(sizes: list[int], version: str = "1") -> list[Input]:
    return [
        Input(uri=f"/c/{n:03d}", version=version, size=s, root="/c") for n, s in enumerate(sizes)
    ]


def made(found: list[Input], coverage=None, retokenize=False, recipes=None, most=64 * MIB) -> Plan:
    return plan(
        "p",
        found,
        recipes or {"a": "r1"},
        coverage or {},
        unit_bytes=most,
        unit_inputs=4,
        splittable=lambda i: True,
        retokenize=retokenize,
    )


def cover(tasks, stream: str, recipe: str = "r1") -> list[CoveredSpan]:
    return [
        CoveredSpan(
            input=s.input.id, start=s.start, end=s.end, recipe=recipe, unit=t.unit.id, ordinal=n
        )
        for t in tasks
        if t.stream == stream
        for n, s in enumerate(t.unit.spans)
    ]


@given(st.lists(st.integers(0, 100), max_size=12), st.integers(1, 50), st.integers(1, 4))
def test_every_byte_lands_in_exactly_one_unit(sizes: list[int], most: int, count: int) -> None:
    spans = [Span(input=i, start=0, end=i.extent) for i in inputs(sizes)]
    units = list(
        cut("p", spans, unit_bytes=most, unit_inputs=count, splittable=lambda i: i.size % 2 == 0)
    )
    seen = [(s.input.uri, b) for u in units for s in u.spans for b in range(s.start, s.end)]
    assert seen == [(s.input.uri, b) for s in spans for b in range(s.start, s.end)]
    assert all(1 <= len(u.spans) <= count for u in units)


@given(st.lists(st.integers(0, 40 * MIB), max_size=8))
def test_a_covered_source_has_nothing_to_do_and_a_grown_one_only_the_difference(
    sizes: list[int],
) -> None:
    first = made(inputs(sizes))
    coverage = {"a": cover(first.tasks, "a")}
    assert made(inputs(sizes), coverage).tasks == ()
    grown = made(inputs([*sizes, 7]), coverage)
    assert [s.input.uri for t in grown.tasks for s in t.unit.spans] == [f"/c/{len(sizes):03d}"]


def test_a_changed_input_alone_is_planned_again() -> None:
    before = inputs([10, 20, 30])
    coverage = {"a": cover(made(before).tasks, "a")}
    changed = [before[0], Input(uri=before[1].uri, version="2", size=21, root="/c"), before[2]]
    (task,) = made(changed, coverage).tasks
    assert [(s.input.uri, s.end) for s in task.unit.spans] == [("/c/001", 21)]


def test_a_second_stream_takes_over_the_committed_cut() -> None:
    first = made(inputs([10] * 9))
    coverage = {"a": cover(first.tasks, "a")}
    second = made(inputs([10] * 9), coverage, recipes={"a": "r1", "b": "r9"})
    assert {t.stream for t in second.tasks} == {"b"}
    assert {t.unit.id for t in second.tasks} == {t.unit.id for t in first.tasks}


def test_two_streams_share_one_cut() -> None:
    both = made(inputs([10] * 9), recipes={"a": "r1", "b": "r2"})
    units = [{t.unit.id for t in both.tasks if t.stream == s} for s in ("a", "b")]
    assert units[0] == units[1] and len(units[0]) == 3


def test_another_recipe_is_reported_and_encoded_again_only_when_told() -> None:
    found = inputs([10] * 5)
    first = made(found)
    coverage = {"a": cover(first.tasks, "a", recipe="old")}
    kept = made(found, coverage)
    assert kept.tasks == () and kept.outdated == {"a": 50}
    again = made(found, coverage, retokenize=True)
    assert {t.unit.id for t in again.tasks} == {t.unit.id for t in first.tasks}
    assert all(t.replaces for t in again.tasks)


@given(
    st.lists(st.integers(1, 19), max_size=4),
    st.lists(st.integers(1, 19), max_size=4),
    st.integers(1, 20),
    st.sets(st.integers(0, 4)),
)
def test_a_new_recipe_replaces_cells_whole_so_that_none_is_hidden_in_part(
    ours: list[int], theirs: list[int], most: int, gone: set[int]
) -> None:
    """Found by the simulator: what is covered never shrinks while an upgrade is under way.

    `theirs` is how another stream was cut, whose cuts may be taken over."""
    found = inputs([20])
    units = {
        stream: [
            PlannedTask(
                unit=WorkUnit(pipeline="p", spans=(Span(input=found[0], start=a, end=b),)),
                stream=stream,
            )
            for a, b in pairwise([0, *sorted(set(cuts)), 20])
        ]
        for stream, cuts in (("a", ours), ("b", theirs))
    }
    units["a"] = [t for n, t in enumerate(units["a"]) if n not in gone]
    coverage = {"a": cover(units["a"], "a"), "b": cover(units["b"], "b")}
    new = plan(
        "p",
        found,
        {"a": "r2", "b": "r1"},
        coverage,
        unit_bytes=most,
        unit_inputs=4,
        splittable=lambda i: True,
        retokenize=True,
    )
    for task in new.tasks:
        assert task.stream == "a"
        for cell, span in itertools.product(coverage["a"], task.unit.spans):
            apart = cell.end <= span.start or span.end <= cell.start
            assert apart or (span.start <= cell.start and cell.end <= span.end)
    seen = sorted((s.start, s.end) for t in new.tasks for s in t.unit.spans)
    assert [b for a, z in seen for b in range(a, z)] == list(range(20))
