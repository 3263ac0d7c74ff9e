"""Who must give way in a commit, as arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from made import FACTS, an_input, entry, unit

from tokenmill.store.conflict import Rivals

BIG = an_input("big")
RECIPE = FACTS["text"].identity.recipe


def rival(start: int, end: int, seq: int, **changes: Any) -> dict[str, Any]:
    row = {
        "run": "theirs",
        "seq": seq,
        "stream": "text",
        "input": BIG.id,
        "source_id": BIG.source,
        "span_start": start,
        "span_end": end,
        "recipe": RECIPE,
    }
    return {**row, **changes}


def rivals(*rows: dict[str, Any]) -> Rivals:
    made = Rivals(run="ours", base=0)
    made.learn_cells(rows)
    return made


def test_touching_spans_do_not_clash() -> None:
    known = rivals(rival(0, 30, 1), rival(60, 100, 1))
    assert known.split([entry(unit((BIG, 30, 60)))], 0).dropped == {}


def test_own_rows_are_no_rivals() -> None:
    known = rivals(rival(0, 100, 1, run="ours"))
    assert known.split([entry(unit(BIG))], 0).dropped == {}
    assert not known.cells


def test_another_attempt_of_what_this_run_wrote_after_its_plan_is_dropped() -> None:
    known = Rivals(run="ours", base=0)
    known.learn_own([entry(unit(BIG), attempt="a")], seq=3)
    late = entry(unit(BIG), attempt="b")
    assert list(known.split([late], 2).dropped) == [late.name]
    assert known.split([late], 3).live == (late,)  # planned with that commit in sight


def test_what_was_learned_from_the_ledger_equals_what_was_written() -> None:
    made = entry(unit(BIG))
    known = Rivals(run="ours", base=0)
    row = {"run": "ours", "unit": made.unit.id, "stream": "text", "seq": 1}
    known.learn_units([{**row, "path": shard.path} for shard in made.result.shards])
    assert known.split([made], 0).done == (made,)


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 10), st.integers(1, 5)), max_size=6),
    st.integers(0, 90),
    st.integers(1, 10),
    st.integers(0, 5),
)
def test_an_entry_lives_exactly_when_no_later_rival_overlaps_it(
    others: list[tuple[int, int, int]], start: int, length: int, planned: int
) -> None:
    known = rivals(*[rival(s, s + n, seq) for s, n, seq in others])
    made = entry(unit((BIG, start, start + length)))
    clash = any(seq > planned and s < start + length and start < s + n for s, n, seq in others)
    assert bool(known.split([made], planned).dropped) == clash


def test_replacing_what_another_run_committed_must_not_hide_half_of_a_cell() -> None:
    """Found by the simulator: the other half was covered by nobody until a run got there."""
    known = rivals(rival(0, 60, 3, recipe="newest"))
    half, whole = (entry(unit((BIG, 0, end)), replaces=True) for end in (30, 100))
    assert "in part" in known.split([half], 2).dropped[half.name]
    assert known.split([whole], 2).live == (whole,)
    assert known.split([half], 3).live == (half,), "the plan knew it"


def test_a_child_gives_way_when_another_run_makes_its_parent_anew() -> None:
    """G5: what it has read is not what its parent holds when it is committed."""
    child = replace(entry(unit(BIG)), parent="vq")
    known = rivals(rival(0, 100, 3, stream="vq", recipe="whatever"))
    (why,) = known.split([child], 2).dropped.values()
    assert "parent" in why
    assert known.split([child], 3).dropped == {}, "planned with that commit in sight"
    apart = replace(entry(unit((BIG, 0, 50))), parent="vq")
    assert rivals(rival(50, 100, 3, stream="vq")).split([apart], 2).dropped == {}
