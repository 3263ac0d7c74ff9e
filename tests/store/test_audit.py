"""The ledger's arithmetic, checked on rows that no honest commit could have written."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from made import FACTS, PIPELINE, an_input, entry, unit

from tokenmill.store.audit import AUDIT_COLUMNS, audit
from tokenmill.store.ledger_rows import Entry, Stamp, commit_rows


def tables(*commits: list[Entry]) -> dict[str, pa.Table]:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    rows = pa.concat_tables(
        commit_rows(
            Stamp(pipeline=PIPELINE, seq=seq, commit_id="c", run="r", at=at),
            entries,
            facts=FACTS,
            describe=[FACTS["text"]],
        )
        for seq, entries in enumerate(commits, start=1)
    )
    return {
        kind: rows.filter(pc.field("kind") == kind).select(list(columns))
        for kind, columns in AUDIT_COLUMNS.items()
    }


def kinds(*commits: list[Entry]) -> list[str]:
    return sorted(problem.kind for problem in audit(tables(*commits)).problems)


def shards(made: Entry, **changes: Any) -> Entry:
    (shard,) = made.result.shards
    changed = (dataclasses.replace(shard, **changes),)
    return dataclasses.replace(made, result=dataclasses.replace(made.result, shards=changed))


def cells(made: Entry, **changes: Any) -> Entry:
    *before, last = made.result.cells
    changed = (*before, dataclasses.replace(last, **changes))
    return dataclasses.replace(made, result=dataclasses.replace(made.result, cells=changed))


A, B = an_input("a"), an_input("b")


def test_honest_history_has_no_problem() -> None:
    newer = an_input("a", "v2")
    whole = [entry(unit(A, B), refused=[1]), entry(unit(A, B), stream="audio")]
    books = audit(tables(whole, [entry(unit(newer))], [entry(unit(B), attempt="x")]))
    assert books.problems == ()
    # of the first text attempt nothing is left; the audio one stands
    assert (books.cells, books.units.num_rows) == (4, 3)


def test_cell_covered_by_two_results_of_one_commit() -> None:
    twice = [entry(unit((A, 0, 60))), entry(unit((A, 50, 100)))]
    assert kinds(twice) == ["covered-twice", "covered-twice"]


def test_file_named_twice() -> None:
    first = entry(unit(A))
    path = first.result.shards[0].path
    assert kinds([first], [shards(entry(unit(B)), path=path)]) == ["named-twice"]


def test_rows_samples_and_verdicts_must_add_up() -> None:
    made = entry(unit(A), refused=[0])
    assert kinds([shards(made, rows=4)]) == ["g1"]
    assert kinds([shards(made, samples=3)]) == ["g1"]
    assert kinds([cells(made, rows=4)]) == ["g1"]
    read = tables([made])
    assert [p.kind for p in audit({**read, "quarantine": read["quarantine"][:0]}).problems] == [
        "g1"
    ]


def test_cells_of_a_unit_must_follow_one_another() -> None:
    assert kinds([cells(entry(unit(A, B)), first_row=2)]) == ["cells"]


def test_input_level_quarantine_stands_outside_the_equation() -> None:
    (refusal,) = entry(unit(A), refused=[0]).result.quarantined
    early_end = dataclasses.replace(refusal, sample=None, row=None, reason="truncated")
    assert kinds([entry(unit(A), faults=[early_end])]) == []


def test_nothing_is_fine() -> None:
    assert kinds([]) == []
