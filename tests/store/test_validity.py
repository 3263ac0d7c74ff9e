"""Which cells, shard files and quarantine rows count: against a plain, slow rule."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.schemas.ledger import LEDGER_SCHEMA
from tokenmill.store.validity import (
    ATTEMPT,
    CELL_COLUMNS,
    covered_twice,
    valid_cells,
    valid_quarantine,
    visible_units,
)

UNIT_COLUMNS = (*ATTEMPT, "first_row", "rows")
QUARANTINE_COLUMNS = (*ATTEMPT, "input", "row")


@dataclass(frozen=True, kw_only=True)
class C:
    """A cell; one letter of `place`, `version` and `unit` each."""

    seq: int
    place: str = "a"
    version: str = "1"
    start: int = 0
    end: int = 100
    stream: str = "text"
    pipeline: str = "p"
    unit: str = "u"
    first_row: int = 0
    rows: int = 10


def cells(*made: C) -> pa.Table:
    rows = [
        {
            "pipeline": c.pipeline,
            "stream": c.stream,
            "source_id": c.place.encode(),
            "input": (c.place + c.version).encode(),
            "span_start": c.start,
            "span_end": c.end,
            "seq": c.seq,
            "unit": c.unit.encode(),
            "first_row": c.first_row,
            "rows": c.rows,
        }
        for c in made
    ]
    return _table(CELL_COLUMNS, rows)


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([LEDGER_SCHEMA.field(name) for name in columns])
    return pa.Table.from_pylist(rows, schema=schema)


def valid(*made: C) -> list[bool]:
    return [bool(v) for v in valid_cells(cells(*made))]


def plain_rule(made: list[C]) -> list[bool]:
    """Hidden by any later cell of the place: another version's, or one that overlaps."""

    def hides(later: C, c: C) -> bool:
        same = (later.pipeline, later.stream, later.place) == (c.pipeline, c.stream, c.place)
        overlaps = later.start < c.end and c.start < later.end
        return same and later.seq > c.seq and (later.version != c.version or overlaps)

    return [not any(hides(other, c) for other in made) for c in made]


def test_last_committed_row_of_a_cell_wins() -> None:
    assert valid(C(seq=2), C(seq=1), C(seq=3), C(seq=1, place="b")) == [False, False, True, True]


def test_newer_version_hides_the_whole_older_one() -> None:
    old = [C(seq=1, start=0, end=50), C(seq=1, start=50, end=100)]
    assert valid(*old, C(seq=2, version="2", start=0, end=10)) == [False, False, True]


def test_version_that_comes_back_does_not_bring_its_old_cells_back() -> None:
    first, second = C(seq=1, end=50), C(seq=2, version="2", end=60)
    assert valid(first, second, C(seq=3, start=50)) == [False, False, True]


def test_new_cut_hides_what_it_touches_and_nothing_else() -> None:
    old = [C(seq=1, start=n, end=n + 10) for n in range(0, 40, 10)]
    assert valid(*old, C(seq=2, start=15, end=30)) == [True, False, False, True, True]


def test_hidden_cell_still_hides_what_came_before_it() -> None:
    made = [C(seq=1, end=10), C(seq=2, start=5, end=20), C(seq=3, start=15, end=30)]
    assert valid(*made) == [False, False, True]


def test_streams_and_pipelines_do_not_hide_each_other() -> None:
    assert valid(C(seq=1), C(seq=2, stream="audio"), C(seq=3, pipeline="q")) == [True] * 3


def test_nothing_is_fine() -> None:
    assert valid() == []
    none = valid_cells(cells())
    assert not len(visible_units(_table(UNIT_COLUMNS, []), cells(), none).mask)
    assert not len(valid_quarantine(_table(QUARANTINE_COLUMNS, []), cells(), none))


@st.composite
def histories(draw: st.DrawFn) -> list[C]:
    """Cells of one seq and place are of one version and do not overlap, as commits see to."""
    made: list[C] = []
    for seq in range(1, draw(st.integers(1, 8))):
        for place in draw(st.sets(st.sampled_from("ab"), min_size=1)):
            version = draw(st.sampled_from("112"))
            stream = draw(st.sampled_from(["text", "audio"]))
            marks = sorted(draw(st.sets(st.integers(0, 12), min_size=2, max_size=6)))
            made += [
                C(seq=seq, place=place, version=version, stream=stream, start=a, end=b)
                for a, b in pairwise(marks)
                if draw(st.booleans())
            ]
    return draw(st.permutations(made))


@given(histories())
def test_every_history_agrees_with_the_plain_rule(made: list[C]) -> None:
    assert valid(*made) == plain_rule(made)


@given(histories())
def test_no_byte_of_an_input_is_covered_twice(made: list[C]) -> None:
    table = cells(*made)
    mask = valid_cells(table)
    assert not len(covered_twice(table, mask))
    kept = [c for c, v in zip(made, mask, strict=True) if v]
    covered = [(c.stream, c.place, byte) for c in kept for byte in range(c.start, c.end)]
    assert len(covered) == len(set(covered))


def test_double_cover_is_found() -> None:
    table = cells(C(seq=1, end=60), C(seq=1, start=50), C(seq=1, place="b"))
    assert sorted(covered_twice(table, valid_cells(table)).tolist()) == [0, 1]


# -- shard files -------------------------------------------------------------------------------


def units(*rows: tuple[str, int, int, int]) -> pa.Table:
    """(unit, seq, first row, rows)"""
    return _table(
        UNIT_COLUMNS,
        [
            {
                "pipeline": "p",
                "stream": "text",
                "unit": unit.encode(),
                "seq": seq,
                "first_row": first,
                "rows": n,
            }
            for unit, seq, first, n in rows
        ],
    )


def test_encoding_a_unit_again_hides_its_earlier_files() -> None:
    table = cells(C(seq=1), C(seq=2))
    found = visible_units(units(("u", 1, 0, 10), ("u", 2, 0, 10)), table, valid_cells(table))
    assert found.mask.tolist() == [False, True]
    assert found.exclude == {}


def test_superseded_inputs_of_a_unit_become_excluded_rows() -> None:
    made = [C(seq=1, place=place, first_row=n * 10, rows=10) for n, place in enumerate("abcdef")]
    newer = [C(seq=2, place=place, version="2", unit="w") for place in "bcf"]
    table = cells(*made, *newer)
    files = units(("u", 1, 0, 25), ("u", 1, 25, 20), ("u", 1, 45, 10), ("u", 1, 55, 5))
    found = visible_units(files, table, valid_cells(table))
    assert found.mask.tolist() == [True, True, True, False]  # the last holds nothing but "f"
    assert found.exclude == {0: ((10, 25),), 1: ((25, 30),), 2: ((50, 55),)}


def test_unit_without_rows_is_visible_by_its_cells() -> None:
    table = cells(C(seq=1, rows=0), C(seq=2, unit="w", version="2", rows=0))
    found = visible_units(units(("u", 1, 0, 0), ("w", 2, 0, 0)), table, valid_cells(table))
    assert found.mask.tolist() == [False, True]


# -- quarantine --------------------------------------------------------------------------------


def quarantine(*rows: tuple[str, int, str, int | None]) -> pa.Table:
    """(unit, seq, input, row)"""
    return _table(
        QUARANTINE_COLUMNS,
        [
            {
                "pipeline": "p",
                "stream": "text",
                "unit": unit.encode(),
                "seq": seq,
                "input": input_.encode(),
                "row": row,
            }
            for unit, seq, input_, row in rows
        ],
    )


def test_quarantine_row_counts_while_its_cell_does() -> None:
    made = [
        C(seq=1, place="a", first_row=0, rows=10),
        C(seq=1, place="e", first_row=10, rows=0),
        C(seq=1, place="b", first_row=10, rows=10),
        C(seq=2, place="a", unit="w"),
    ]
    table = cells(*made)
    rows = quarantine(
        ("u", 1, "a1", 3),
        ("u", 1, "b1", 10),
        ("w", 2, "a1", 3),
        ("u", 1, "a1", None),
        ("u", 1, "e1", None),
        ("u", 1, "b1", 20),  # beyond the unit: of no cell
        ("x", 1, "b1", 10),  # of no commit
    )
    expected = [False, True, True, False, True, False, False]
    assert valid_quarantine(rows, table, valid_cells(table)).tolist() == expected


def test_two_spans_of_one_input_are_told_apart_by_row() -> None:
    made = [
        C(seq=1, start=0, end=10, first_row=0, rows=5),
        C(seq=1, start=20, end=30, first_row=5, rows=5),
        C(seq=2, start=0, end=10, unit="w"),
    ]
    table = cells(*made)
    rows = quarantine(("u", 1, "a1", 4), ("u", 1, "a1", 5))
    assert valid_quarantine(rows, table, valid_cells(table)).tolist() == [False, True]


# -- size --------------------------------------------------------------------------------------


def test_memory_is_linear_in_the_cells_with_a_small_constant() -> None:
    """Two generations of 50,000 cells, cut anew: the worst that a change of the cut makes."""
    n = 50_000
    number = np.arange(n)

    def generation(seq: int, shift: int) -> dict[str, Any]:
        source = pa.array([b"%016d" % (i // 100) for i in range(n)], pa.binary())
        return {
            "pipeline": pa.repeat(pa.scalar("p"), n),
            "stream": pa.repeat(pa.scalar("text"), n),
            "source_id": source,
            "input": source,
            "span_start": number % 100 * 10 + shift,
            "span_end": number % 100 * 10 + 10 + shift,
            "seq": number // 64 + seq,
            "unit": source,
            "first_row": number * 0,
            "rows": number * 0 + 10,
        }

    table = pa.concat_tables([pa.table(generation(1, 0)), pa.table(generation(10_000, 5))])
    tracemalloc.start()
    mask = valid_cells(table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.sum() == n
    assert peak < 500 * 2 * n
