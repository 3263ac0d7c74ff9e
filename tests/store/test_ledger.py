"""Commits: G1, G3, G4 and G5 of the design, on a real Delta table in a folder and on S3."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from made import FACTS, PIPELINE, an_input, entry, facts, unit

from tokenmill.schemas.errors import CorruptStore, StoreError, StoreUnavailable
from tokenmill.store.access import Access
from tokenmill.store.delta import DeltaLedger
from tokenmill.store.ledger import GRACE_SECONDS, Entry, Ledger, Outcome

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


@pytest.fixture
def ledger(access: Access) -> Ledger:
    return Ledger.open(access, create=True)


def commit(
    ledger: Ledger, *entries: Entry, run: str = "r1", planned: int = 0, **more: Any
) -> Outcome:
    more.setdefault("facts", FACTS)
    return ledger.commit(PIPELINE, entries, run=run, planned_seq=planned, **more)


def covered(ledger: Ledger) -> list[tuple[str, str, int, int]]:
    rows = ledger.coverage(PIPELINE).to_pylist()
    return sorted((r["stream"], r["uri"], r["span_start"], r["span_end"]) for r in rows)


# -- opening -----------------------------------------------------------------------------------


def test_folder_that_is_no_store_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no tokenmill store here") as raised:
        Ledger.open(Access(str(tmp_path)))
    assert raised.value.where == str(tmp_path)
    assert raised.value.remedy
    with pytest.raises(StoreError, match="no tokenmill store here"):
        Ledger.open(Access(str(tmp_path / "not" / "there")))
    assert list(tmp_path.iterdir()) == []


def test_opening_twice_with_create_finds_the_same_store(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"))))
    assert Ledger.open(access, create=True).seq(PIPELINE) == 1


def test_newer_format_is_refused_by_number(access: Access, ledger: Ledger) -> None:
    table = DeltaTable(access.full("ledger"))
    table.alter.set_table_properties({"tokenmill.format": "7"}, raise_if_not_exists=False)
    with pytest.raises(CorruptStore, match=r"format 7.*up to 1"):
        Ledger.open(access)


def test_damaged_log_is_corrupt_not_a_traceback(access: Access, ledger: Ledger) -> None:
    log = Path(access.full("ledger")) / "_delta_log" / f"{1:020d}.json"
    log.write_text("{garbage")
    with pytest.raises(CorruptStore) as raised:
        Ledger.open(access)
    assert "\n" not in (raised.value.why or "")


def test_log_that_points_outside_its_table_is_refused(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"))))
    log = Path(access.full("ledger")) / "_delta_log" / f"{1:020d}.json"
    log.write_text(log.read_text().replace('"path":"kind=unit/', '"path":"../../kind=unit/'))
    with pytest.raises(StoreError, match=r"refused|outside"):
        Ledger.open(access).rows("unit")


# -- what a commit records ---------------------------------------------------------------------


def test_commit_makes_cells_shards_and_verdicts_visible(ledger: Ledger) -> None:
    done = entry(unit(an_input("a"), an_input("b")), refused=[4])
    outcome = commit(ledger, done)
    assert outcome.committed == ((done.unit.id, "text"),)
    assert (outcome.dropped, outcome.seq, outcome.tokens) == ((), 1, 20)
    assert covered(ledger) == [("text", "/data/a", 0, 100), ("text", "/data/b", 0, 100)]
    (shard,) = ledger.rows("unit").to_pylist()
    assert (shard["enumerated"], shard["with_tokens"], shard["quarantined"]) == (6, 5, 1)
    assert shard["content_hash"] == done.result.shards[0].content_hash
    (verdict,) = ledger.rows("quarantine").to_pylist()
    assert (verdict["uri"], verdict["row"], verdict["reason"]) == ("/data/b", 4, "invalid-utf8")
    assert verdict["input"] == an_input("b").id
    (tokenizer,) = ledger.rows("tokenizer").to_pylist()
    assert tokenizer["recipe"] == FACTS["text"].identity.recipe


def test_coverage_gives_an_input_back_as_it_was_listed(ledger: Ledger) -> None:
    listed = dataclasses.replace(an_input("a"), identity="")
    commit(ledger, entry(unit(listed)))
    (row,) = ledger.coverage(PIPELINE).to_pylist()
    assert (row["uri"], row["version"], row["size"], row["root"], row["identity"]) == (
        "/data/a",
        "v1",
        100,
        "/data",
        "",
    )
    assert row["input"] == listed.id


def test_unit_without_a_sample_is_covered_all_the_same(ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("empty", size=0)), rows=0))
    assert covered(ledger) == [("text", "/data/empty", 0, 1)]
    assert ledger.rows("unit")["path"].to_pylist() == [None]


def test_run_row_goes_out_once_and_only_with_the_first_cells(ledger: Ledger) -> None:
    row = {"job": "nightly", "host": "here", "job_json": "{}"}
    ledger.finish_run(PIPELINE, "idle", "finished", {})
    assert ledger.seq(PIPELINE) == 0  # G3: a run that commits nothing leaves no trace
    for name in "ab":
        commit(ledger, entry(unit(an_input(name))), run_row=row)
    ledger.finish_run(PIPELINE, "r1", "finished", {"tokens": 24})
    ledger.finish_run(PIPELINE, "r1", "finished", {"tokens": 24})
    states = [(r["run"], r["state"], r["job"]) for r in ledger.rows("run").to_pylist()]
    assert sorted(states) == [("r1", "finished", None), ("r1", "started", "nightly")]


def test_finish_is_recorded_by_another_process_too(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"))), run_row={"job": "nightly"})
    Ledger.open(access).finish_run(PIPELINE, "r1", "stopped", {})
    assert sorted(ledger.rows("run")["state"].to_pylist()) == ["started", "stopped"]


def test_tokenizer_is_described_once_per_recipe(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"))))
    commit(Ledger.open(access), entry(unit(an_input("b"))), planned=1)
    newer = facts(revision=2)
    done = entry(unit(an_input("c")), using=newer)
    commit(ledger, done, planned=2, facts={"text": newer})
    assert ledger.rows("tokenizer").num_rows == 2


def test_rows_can_be_filtered_by_a_column_that_is_not_asked_for(ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a")), refused=[0]))
    found = ledger.rows("quarantine", columns=["key"], filter=pc.field("reason") == "invalid-utf8")
    assert found.to_pylist() == [{"key": "a:0:0"}]
    with pytest.raises(ValueError, match="no rows of kind"):
        ledger.rows("shards")


def test_dataset_holds_every_kind(ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a")), refused=[0]), run_row={"job": "j"})
    kinds = Counter(ledger.dataset().to_table(columns=["kind"])["kind"].to_pylist())
    assert kinds == {"unit": 1, "input": 1, "quarantine": 1, "run": 1, "tokenizer": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"absent": 1, "with_tokens": 2, "enumerated": 3},
        {"cells": ()},
        {"shards": ()},
        {"tokens": 11},
        {"unit": b"x" * 16},
        {"recipe": "00" * 32},
    ],
)
def test_result_that_does_not_add_up_is_never_committed(ledger: Ledger, change: Any) -> None:
    """G1 is asserted in the commit."""
    good = entry(unit(an_input("a")))
    bad = dataclasses.replace(good, result=dataclasses.replace(good.result, **change))
    with pytest.raises(ValueError):
        commit(ledger, entry(unit(an_input("b"))), bad)
    assert ledger.seq(PIPELINE) == 0


# -- who must give way -------------------------------------------------------------------------


def test_cells_that_another_run_committed_after_the_plan_are_dropped(access: Access) -> None:
    """G5, with another cut of the same input."""
    ours, theirs = Ledger.open(access, create=True), Ledger.open(access)
    planned = ours.seq(PIPELINE)
    big = an_input("big")
    commit(theirs, entry(unit((big, 0, 60))), run="theirs")
    first, second = entry(unit((big, 50, 100))), entry(unit(an_input("other")))
    outcome = commit(ours, first, second, planned=planned)
    assert outcome.dropped == (first.name,)
    assert outcome.committed == (second.name,)
    assert "big" in outcome.reasons[first.name]
    assert covered(ours) == [("text", "/data/big", 0, 60), ("text", "/data/other", 0, 100)]


def test_what_was_there_before_the_plan_is_no_conflict(access: Access) -> None:
    ours, theirs = Ledger.open(access, create=True), Ledger.open(access)
    commit(theirs, entry(unit(an_input("a"))), run="theirs")
    again = entry(unit(an_input("a")), attempt="b", replaces=True)
    outcome = commit(ours, again, planned=ours.seq(PIPELINE))
    assert outcome.committed == (again.name,)
    assert ours.coverage(PIPELINE)["seq"].to_pylist() == [2]


def test_another_stream_or_pipeline_is_no_conflict(access: Access) -> None:
    ours, theirs = Ledger.open(access, create=True), Ledger.open(access)
    work = unit(an_input("a"))
    commit(theirs, entry(work, stream="audio"), run="theirs")
    elsewhere = unit(an_input("a"), pipeline="other")
    theirs.commit("other", [entry(elsewhere)], run="theirs", planned_seq=0, facts=FACTS)
    assert commit(ours, entry(work)).committed == ((work.id, "text"),)
    assert ours.coverage(PIPELINE).num_rows == 2


def test_newer_version_by_another_run_wins_over_our_older_plan(access: Access) -> None:
    ours, theirs = Ledger.open(access, create=True), Ledger.open(access)
    commit(theirs, entry(unit(an_input("a", "v2"))), run="theirs")
    old = entry(unit(an_input("a", "v1")), replaces=True)
    assert commit(ours, old).dropped == (old.name,)
    assert ours.coverage(PIPELINE)["version"].to_pylist() == ["v2"]


def test_retokenizing_replaces_another_recipe_but_not_its_own(access: Access) -> None:
    ours, theirs = Ledger.open(access, create=True), Ledger.open(access)
    newer = {"text": facts(revision=2)}
    work, other = unit(an_input("a")), unit(an_input("b"))
    commit(theirs, entry(work), entry(other), run="theirs")
    plain = entry(work, using=newer["text"], attempt="n")
    assert commit(ours, plain, facts=newer).dropped == (plain.name,)
    replacing = dataclasses.replace(plain, replaces=True)
    assert commit(ours, replacing, facts=newer).committed == (plain.name,)
    same = entry(other, attempt="n", replaces=True)
    assert commit(ours, same).dropped == (same.name,)
    assert sorted(ours.coverage(PIPELINE)["recipe"].to_pylist()) == sorted(
        [newer["text"].identity.recipe, FACTS["text"].identity.recipe]
    )


def test_newer_version_supersedes_in_the_same_commit(ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a", "v1"), an_input("b"))))
    commit(ledger, entry(unit(an_input("a", "v2"))), planned=1)
    rows = ledger.coverage(PIPELINE).to_pylist()
    assert sorted((r["uri"], r["version"]) for r in rows) == [("/data/a", "v2"), ("/data/b", "v1")]


def test_one_commit_never_covers_a_cell_twice(ledger: Ledger) -> None:
    big = an_input("big")
    first, second = entry(unit((big, 0, 60))), entry(unit((big, 50, 100)))
    third = entry(unit(an_input("big", "v2")))
    outcome = commit(ledger, first, second, third)
    assert outcome.committed == (first.name,)
    assert set(outcome.dropped) == {second.name, third.name}


def test_shard_so_old_that_vacuum_may_take_it_is_dropped(ledger: Ledger) -> None:
    late = entry(unit(an_input("a")), written_at=time.time() - GRACE_SECONDS * 0.51)
    fine = entry(unit(an_input("b")), written_at=time.time() - GRACE_SECONDS * 0.49)
    outcome = commit(ledger, late, fine)
    assert (outcome.committed, outcome.dropped) == ((fine.name,), (late.name,))
    assert "days ago" in outcome.reasons[late.name]


# -- answers that never came -------------------------------------------------------------------


class LosesAnswers(DeltaLedger):
    """The append happens (or not), and nobody hears of it."""

    lose: Sequence[bool] = ()  # per append to come; True: lost after it, False: before it

    def append(self, rows: Any, *, app: str, seq: int, commit_id: str) -> None:
        if self.lose:
            after, self.lose = self.lose[0], self.lose[1:]
            if after:
                # by another handle: this one must not know that it succeeded
                other = type(self).open(self._access, create=False)
                super(LosesAnswers, other).append(rows, app=app, seq=seq, commit_id=commit_id)
            raise OSError("connection reset by peer")
        super().append(rows, app=app, seq=seq, commit_id=commit_id)


@pytest.mark.parametrize("lost", [[True], [False], [False, True], [True, True]])
def test_commit_whose_answer_was_lost_counts_once(access: Access, lost: list[bool]) -> None:
    Ledger.open(access, create=True)
    table = LosesAnswers.open(access, create=False)
    table.lose = lost
    ledger = Ledger(access, table)
    done = entry(unit(an_input("a")))
    assert commit(ledger, done, run_row={"job": "j"}).committed == (done.name,)
    assert ledger.seq(PIPELINE) == 1
    assert ledger.rows("unit").num_rows == ledger.rows("run").num_rows == 1


def test_commit_repeated_after_an_error_writes_nothing_twice(access: Access) -> None:
    Ledger.open(access, create=True)
    table = LosesAnswers.open(access, create=False)
    ledger = Ledger(access, table)
    done = [entry(unit(an_input(name))) for name in "ab"]
    table.lose = [False] * 10
    with pytest.raises(StoreUnavailable, match="does not take commits"):
        commit(ledger, *done)
    table.lose = [True]
    assert len(commit(ledger, *done).committed) == 2
    again = commit(ledger, *done, entry(unit(an_input("c"))))
    assert len(again.committed) == 3
    assert ledger.rows("unit").num_rows == 3


# -- several at once ---------------------------------------------------------------------------


def _rival(
    uri: str, run: str, seed: int, inputs: int, kill_at: int | None, together: Any = None
) -> None:
    """Plan what is uncovered in random cuts and commit it in random groups, until all is."""
    rng = random.Random(seed)
    ledger = Ledger.open(Access(uri), create=True)
    everything = [an_input(f"{n:03d}") for n in range(inputs)]
    commits = 0
    if together is not None:
        together.wait()  # imports take longer than the race: nobody begins before the others can
    while True:
        planned = ledger.seq(PIPELINE)
        have = set(ledger.coverage(PIPELINE)["input"].to_pylist())
        todo = [i for i in everything if i.id not in have]
        if not todo:
            return
        rng.shuffle(todo)
        while todo:
            group = []
            for _ in range(rng.randint(1, 4)):
                size = rng.randint(1, 3)
                cut, todo = todo[:size], todo[size:]
                if cut:
                    group.append(entry(unit(*cut), attempt=f"{run}{commits}"))
            commits += 1
            if commits == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            ledger.commit(PIPELINE, group, run=run, planned_seq=planned, facts=FACTS)


def _race(uri: str, inputs: int, kills: dict[int, int]) -> None:
    together = SPAWN.Barrier(3)
    processes = [
        SPAWN.Process(target=_rival, args=(uri, f"run{n}", n, inputs, kills.get(n), together))
        for n in range(3)
    ]
    for process in processes:
        process.start()
    for n, process in enumerate(processes):
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if n in kills else 0)


def _each_once(ledger: Ledger, inputs: int) -> None:
    cells = Counter(ledger.rows("input")["uri"].to_pylist())
    assert len(cells) == inputs
    assert set(cells.values()) == {1}  # G5: in all of history, not only among the valid
    seqs = sorted(set(ledger.rows("unit")["seq"].to_pylist()))
    assert seqs == list(range(1, ledger.seq(PIPELINE) + 1))


def test_three_processes_with_other_cuts_commit_each_cell_once(tmp_path: Path) -> None:
    """G5 and G4: one of them is killed on the way."""
    uri = str(tmp_path / "store")
    _race(uri, 40, kills={2: 3})
    _each_once(Ledger.open(Access(uri)), 40)


@pytest.mark.s3
def test_two_runs_on_s3_commit_each_cell_once(s3: Callable[[], str]) -> None:
    uri = s3()
    ledger = Ledger.open(Access(uri), create=True)
    rival = SPAWN.Process(target=_rival, args=(uri, "rival", 1, 12, None))
    rival.start()
    _rival(uri, "here", 2, 12, None)
    rival.join(120)
    assert rival.exitcode == 0
    _each_once(ledger, 12)


def _commit_for_ever(uri: str, run: str) -> None:
    ledger = Ledger.open(Access(uri))
    n = 0
    while True:
        n += 1
        done = entry(unit(an_input(f"{n:03d}")), attempt=run, refused=[0])
        ledger.commit(PIPELINE, [done], run=run, planned_seq=ledger.seq(PIPELINE), facts=FACTS)


def test_process_killed_in_the_middle_of_a_commit_loses_nothing_else(access: Access) -> None:
    """G4: killed as soon as the data files of a commit are there and, mostly, its log entry not."""
    Ledger.open(access, create=True)
    table = Path(access.full("ledger"))
    for n in range(3):
        process = SPAWN.Process(target=_commit_for_ever, args=(access.uri, f"victim{n}"))
        process.start()
        written = table / "kind=quarantine"
        before = len(list(written.glob("*"))) if written.exists() else 0
        while not written.exists() or len(list(written.glob("*"))) < before + 3:
            assert process.is_alive()
        process.kill()
        process.join(60)
    ledger = Ledger.open(access)
    planned = ledger.seq(PIPELINE)
    assert sorted(set(ledger.rows("input")["seq"].to_pylist())) == list(range(1, planned + 1))
    for kind in ("unit", "quarantine"):  # of every commit all rows or none
        assert ledger.rows(kind).num_rows == planned
    done = entry(unit(an_input("more")))
    assert commit(ledger, done, planned=planned).committed == (done.name,)


@pytest.mark.s3
def test_wrong_credentials_are_no_reason_to_wait(
    s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3()
    ledger = Ledger.open(Access(uri), create=True)
    commit(ledger, entry(unit(an_input("a"))))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StoreError, match="may not be read") as raised:
        Ledger.open(Access(uri))
    assert not isinstance(raised.value, StoreUnavailable)
    assert "not-the-secret" not in str(raised.value)


@pytest.mark.s3
def test_missing_bucket_is_named(s3: Callable[[], str]) -> None:
    s3()
    with pytest.raises(StoreError, match="no such bucket"):
        Ledger.open(Access("s3://not-a-bucket-of-ours/store"))


@pytest.mark.s3
def test_bucket_without_a_store_is_named_with_a_remedy(s3: Callable[[], str]) -> None:
    with pytest.raises(StoreError, match="no tokenmill store here"):
        Ledger.open(Access(s3()))


def _compact_until(uri: str, seq: int) -> None:
    ledger = Ledger.open(Access(uri))
    while ledger.seq(PIPELINE) < seq:
        ledger.compact()


def test_commits_and_compactions_do_not_disturb_each_other(access: Access, ledger: Ledger) -> None:
    commits = 25
    process = SPAWN.Process(target=_compact_until, args=(access.uri, commits))
    process.start()
    for n in range(commits):
        done = entry(unit(an_input(f"{n}")), refused=[1])
        assert commit(ledger, done, planned=0).committed == (done.name,)
    process.join(120)
    assert process.exitcode == 0
    ledger.compact()
    assert ledger.file_count == 4  # one per kind
    fresh = Ledger.open(access)
    assert fresh.seq(PIPELINE) == commits
    assert fresh.coverage(PIPELINE).num_rows == commits
    assert fresh.rows("quarantine").num_rows == commits


def test_what_a_compaction_moved_is_still_known_to_be_others(access: Access) -> None:
    ours, theirs = Ledger.open(access, create=True), Ledger.open(access)
    mine = [entry(unit(an_input(n))) for n in ("m1", "m2", "x")]
    commit(ours, mine[0])
    for name in ("x", "y"):
        commit(theirs, entry(unit(an_input(name))), run="theirs")
    theirs.compact()
    outcome = commit(ours, mine[1], mine[2])
    assert (outcome.committed, outcome.dropped) == ((mine[1].name,), (mine[2].name,))


def test_a_reader_survives_the_files_that_it_listed_going_away(access: Access) -> None:
    ledger = Ledger.open(access, create=True)
    for name in "abc":
        commit(ledger, entry(unit(an_input(name))))
    reader = DeltaLedger.open(access, create=False)
    ledger.compact()
    ledger.clean(0, dry_run=False)
    found = reader.read({"unit": ["path"]})["unit"]
    assert found.num_rows == 3


def test_a_store_that_was_replaced_under_a_run_is_noticed(access: Access, tmp_path: Path) -> None:
    ledger = Ledger.open(access, create=True)
    commit(ledger, entry(unit(an_input("a"))))
    commit(ledger, entry(unit(an_input("b"))))
    Path(access.full("ledger")).rename(tmp_path / "away")
    Ledger.open(access, create=True)
    with pytest.raises((CorruptStore, StoreUnavailable)):
        commit(ledger, entry(unit(an_input("c"))))
