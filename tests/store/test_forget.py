"""Take-down: no later snapshot shows a forgotten sample, whatever runs beside it (G2, G4, G5)."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from built import Builder, doc, input_
from hypothesis import given
from hypothesis import strategies as st
from made import FACTS, PIPELINE, an_input, entry, unit

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.ledger import FORGOTTEN
from tokenmill.store import forget as forgetting
from tokenmill.store.access import Access
from tokenmill.store.dataset import open_store
from tokenmill.store.forget import forget
from tokenmill.store.forgotten import with_masked
from tokenmill.store.ledger import Ledger
from tokenmill.store.upkeep import tag, vacuum
from tokenmill.store.verify import verify

A, B = input_("a.tar"), input_("b.tar")
SECRET = [9, 8, 7, 6, 5, 4321]


@pytest.fixture
def store(tmp_path: Path) -> Builder:
    """Two streams of two inputs; the sample `alice` of a.tar has SECRET for its text."""
    built = Builder(str(tmp_path / "store"))
    grid = (2, 2)
    content = {
        A: [
            doc("x", shape=grid, text=[1, 2, 3], image=[1, 2, 3, 4]),
            doc("alice", shape=grid, text=SECRET, image=[5, 6, 7, 8]),
            doc("bad", shape=grid, text="invalid-utf8", image=None),
        ],
        B: [doc("y", shape=grid, text=[4], image=[9, 9, 9, 9])],
    }
    for stream in ("text", "image"):
        built.encode("clips", stream, content)
    return built


def keys(store: Builder) -> list[str]:
    return [row.key for row in open_store(store.uri, pin=False)]


def shard_bytes(store: Builder) -> bytes:
    paths = [f.path for f in store.access.list("shards")]
    return b"".join(store.access.read(path) for path in paths)


def sound(store: Builder) -> bool:
    report = verify(store.access, Ledger.open(store.access))
    assert report.problems == ()
    return report.ok


def test_a_dry_run_counts_and_changes_nothing(store: Builder) -> None:
    before = store.ledger.version
    found = forget(store.access, store.ledger, "key = 'alice'")
    assert (found.samples, found.fresh, len(found.shards)) == (1, 1, 2)
    assert found.tokens == len(SECRET) + 4
    store.ledger.refresh()
    assert store.ledger.version == before
    assert "alice" in keys(store)


def test_forgotten_samples_leave_every_stream_and_their_neighbours_stay_aligned(
    store: Builder,
) -> None:
    forget(store.access, store.ledger, "key = 'alice'", reason="asked on 3 May", dry_run=False)
    rows = list(open_store(store.uri))
    assert [row.key for row in rows] == ["x", "bad", "y"]
    assert [row["text"].tolist() if row["text"] is not None else None for row in rows] == [
        [1, 2, 3],
        None,
        [4],
    ]
    assert rows[2]["image"].tolist() == [9, 9, 9, 9]
    assert len(open_store(store.uri)) == 3
    table = open_store(store.uri).sql("select reason, uri, row from forgotten")
    assert table.to_pylist() == [{"reason": "asked on 3 May", "uri": A.uri, "row": 1}]
    assert sound(store)


def test_forgetting_again_commits_nothing(store: Builder) -> None:
    forget(store.access, store.ledger, "key = 'alice'", dry_run=False)
    seq = store.ledger.seq("clips")
    again = forget(store.access, store.ledger, "key = 'alice'", dry_run=False)
    assert (again.samples, again.fresh) == (1, 0)
    assert store.ledger.seq("clips") == seq


def test_a_snapshot_that_was_pinned_before_still_reads_and_the_receipt_names_it(
    store: Builder,
) -> None:
    """G2."""
    pinned = open_store(store.uri)
    tag(store.access, "release", pinned.snapshot)
    done = forget(store.access, store.ledger, "key = 'alice'", dry_run=False, rewrite=True)
    assert {name for names in done.pinned.values() for name in names} == {"tag release"}
    assert "alice" in [row.key for row in pinned]
    assert "alice" not in keys(store)


def test_rewritten_shards_hold_neither_ids_nor_key_and_vacuum_takes_the_old_ones(
    store: Builder,
) -> None:
    old = {f.path for f in store.access.list("shards")}
    rows = {row.key: row["image"] for row in open_store(store.uri, pin=False)}
    done = forget(store.access, store.ledger, "key = 'alice'", dry_run=False, rewrite=True)
    assert {each.old for each in done.rewritten} == old
    assert all(each.samples == 1 and len(each.new) == 1 for each in done.rewritten)
    for path in old:
        then = time.time() - 8 * 86_400
        os.utime(store.access.full(path), (then, then))
    report = vacuum(store.access, Ledger.open(store.access), dry_run=False)
    assert set(report.orphans) == old
    left = shard_bytes(store)
    assert b"alice" not in left and np.array(SECRET, np.uint16).tobytes() not in left
    after = {row.key: row["image"] for row in open_store(store.uri)}
    assert list(after) == ["x", "bad", "y"]
    assert after["y"].tolist() == rows["y"].tolist()
    assert sound(store)


def test_the_equation_counts_a_rewritten_sample_as_absent(store: Builder) -> None:
    """G1: enumerated = tokens + quarantined + absent, in the ledger and in the bytes."""
    forget(store.access, store.ledger, "key in ('alice', 'bad')", dry_run=False, rewrite=True)
    columns = ["stream", "enumerated", "with_tokens", "quarantined", "absent"]
    rows = {r["stream"]: r for r in store.ledger.rows("unit", columns=columns).to_pylist()}
    counts = {s: (r["with_tokens"], r["quarantined"], r["absent"]) for s, r in rows.items()}
    assert counts == {"text": (2, 1, 1), "image": (2, 0, 2)}
    assert sound(store)


def test_rewriting_again_has_nothing_to_do(store: Builder) -> None:
    forget(store.access, store.ledger, "key = 'alice'", dry_run=False, rewrite=True)
    version = store.ledger.version
    again = forget(store.access, store.ledger, None, dry_run=False, rewrite=True)
    assert (again.rewritten, again.shards) == ((), ())
    assert store.ledger.version == version


def test_superseded_shards_are_rewritten_too_and_do_not_come_back(store: Builder) -> None:
    """Their bytes lie on disk for ever otherwise; a rewrite must not make them the newest."""
    newer = input_("a.tar", "v2")
    for stream in ("text", "image"):
        store.encode("clips", stream, {newer: [doc("z", (1, 1), text=[7], image=[7])]})
    assert sorted(keys(store)) == ["y", "z"]
    done = forget(store.access, store.ledger, "key = 'alice'", dry_run=False, rewrite=True)
    assert len(done.rewritten) == 2
    assert sorted(keys(store)) == ["y", "z"]
    assert sound(store)


def test_a_file_of_which_nothing_is_left_is_not_named_by_the_snapshot(store: Builder) -> None:
    done = forget(store.access, store.ledger, "true", dry_run=False)
    assert done.samples == 4
    assert open_store(store.uri, pin=False).snapshot_table().num_rows == 0
    assert sound(store)


def test_what_is_committed_while_we_look_is_looked_at_too(
    store: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forgotten rows go in only at the commit that was scanned."""
    late = input_("late.tar")
    scanned = forgetting._Scan.matches

    def slow(self, *arguments):
        found = scanned(self, *arguments)
        if not hasattr(store, "late"):
            store.late = True
            store.encode("clips", "text", {late: [doc("alice", text=[3, 3])]}, run="other")
        return found

    monkeypatch.setattr(forgetting._Scan, "matches", slow)
    done = forget(store.access, store.ledger, "key = 'alice'", dry_run=False)
    assert done.samples == 2
    assert "alice" not in keys(store)


def test_a_result_that_was_planned_before_gives_way(tmp_path: Path) -> None:
    """A run at work does not know of the take-down: its units of these places are planned anew."""
    access = Access(str(tmp_path / "store"))
    ledger = Ledger.open(access, create=True)
    first, other = an_input("a"), an_input("b")

    def commit(*entries, seq):
        return ledger.commit(PIPELINE, entries, run="r", planned_seq=seq, facts=FACTS)

    planned = ledger.seq(PIPELINE)
    commit(entry(unit(first), access=access), seq=planned)
    before = ledger.seq(PIPELINE)
    done = forget(access, Ledger.open(access), "key like '%:1'", dry_run=False)
    assert done.samples == 1
    audio = [
        entry(unit(i), stream="audio", access=access, attempt=i.uri[-1]) for i in (first, other)
    ]
    outcome = commit(*audio, seq=before)
    assert outcome.dropped == (audio[0].name,) and outcome.committed == (audio[1].name,)
    assert "forgotten" in outcome.reasons[audio[0].name]
    assert commit(audio[0], seq=ledger.seq(PIPELINE)).committed == (audio[0].name,)


def test_a_call_that_was_killed_in_the_middle_is_finished_by_the_next(
    store: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4: at every point between two effects, as if the process had died there."""

    class Killed(BaseException):
        pass

    steps = ["_rewritten", "_amend", "_pinned"]
    monkeypatch.setattr(forgetting, "REWRITTEN_AT_ONCE", 1)
    for step in steps:
        for after in (False, True):
            for nth in (1, 2):
                calls = []
                real = getattr(forgetting, step)

                def dying(*arguments, real=real, calls=calls, after=after, nth=nth):
                    calls.append(1)
                    if len(calls) == nth and not after:
                        raise Killed
                    made = real(*arguments)
                    if len(calls) == nth:
                        raise Killed
                    return made

                with monkeypatch.context() as patch:
                    patch.setattr(forgetting, step, dying)
                    try:
                        forget(store.access, store.ledger, "key = 'alice'", dry_run=False,
                               rewrite=True)  # fmt: skip
                    except Killed:
                        pass
                assert "alice" not in keys(store)
                assert sound(store)
    forget(store.access, store.ledger, None, dry_run=False, rewrite=True)
    named = set(store.ledger.rows("unit", columns=["path"])["path"].to_pylist())
    assert all(b"alice" not in store.access.read(path) for path in named)
    assert sound(store)


def test_two_rewrites_at_once_replace_a_file_once(
    store: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G5: the second finds the old file gone from the ledger and leaves its own to vacuum."""
    forget(store.access, store.ledger, "key = 'alice'", dry_run=False)
    real = forgetting._amend
    others = []

    def raced(*arguments):
        if not others:
            others.append(None)
            others[0] = forget(store.access, Ledger.open(store.access), None, dry_run=False,
                               rewrite=True)  # fmt: skip
        return real(*arguments)

    monkeypatch.setattr(forgetting, "_amend", raced)
    mine = forget(store.access, store.ledger, None, dry_run=False, rewrite=True)
    assert len(others[0].rewritten) == 2 and mine.rewritten == ()
    assert sound(store)


def test_maintain_and_the_views_live_with_a_rewrite(store: Builder) -> None:
    forget(store.access, store.ledger, "key = 'alice'", dry_run=False, rewrite=True)
    store.ledger.compact()
    sql = "select stream, sum(samples) n, any_value(run) run from shards group by 1 order by 1"
    rows = open_store(store.uri).sql(sql).to_pylist()
    assert rows == [
        {"stream": "image", "n": 2, "run": "run-1"},
        {"stream": "text", "n": 2, "run": "run-1"},
    ]
    assert sound(store)


@pytest.mark.parametrize(
    "where",
    [
        "nothing = 1",
        "key = 'a'; select 1",
        "key in (select content from read_text('/etc/passwd'))",
        "getenv('HOME') = key",
        "key = 'x') union select 1 from glob('/*') where (true",
    ],
)
def test_a_predicate_reads_samples_and_nothing_else(store: Builder, where: str) -> None:
    """G9."""
    with pytest.raises(JobError):
        forget(store.access, store.ledger, where)


def test_samples_can_be_named_by_id_source_and_pipeline(store: Builder) -> None:
    (row,) = [r for r in open_store(store.uri, pin=False) if r.key == "y"]
    for where in (f"id = '{row.id.hex()}' -- a remark", f"source = '{B.uri}'"):
        assert forget(store.access, store.ledger, where).samples == 1
    assert forget(store.access, store.ledger, "pipeline = 'other'").samples == 0
    assert FORGOTTEN == "forgotten"


ROWS = st.sets(st.integers(0, 60))


@given(rows=ROWS, superseded=ROWS)
def test_excluded_ranges_are_exactly_the_masked_rows_and_the_superseded_ones(
    rows: set[int], superseded: set[int]
) -> None:
    ranges = [(row, row + 1) for row in sorted(superseded)]
    found = with_masked(ranges, np.array(sorted(rows), np.int64))
    assert [r for a, b in found for r in range(a, b)] == sorted(rows | superseded)
    assert all(b < c for (_, b), (c, _) in pairwise(found))
