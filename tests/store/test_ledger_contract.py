"""What the simulator's store in memory must do as the real one does: the same tests for both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake.exceptions import CommitFailedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import FACTS, PIPELINE, an_input, entry, facts, unit
from sim.memory import Folder, Log, MemoryAccess, MemoryTable

from tokenmill.schemas.errors import InputChanged
from tokenmill.store.access import Access
from tokenmill.store.delta import DeltaLedger
from tokenmill.store.ledger import Entry, Ledger, Outcome
from tokenmill.store.ledger_rows import Stamp, commit_rows
from tokenmill.store.paths import HIDDEN
from tokenmill.store.snapshot import snapshot_bytes, snapshot_table

NOW = 1_800_000_000.0
APP = f"tokenmill/{PIPELINE}"


@dataclass
class Store:
    """A store and a way to open further handles on its ledger."""

    access: Access
    table: Callable[[], Any]

    def ledger(self) -> Ledger:
        return Ledger(self.access, self.table())


def real(folder: Path) -> Store:
    access = Access(str(folder))
    Ledger.open(access, create=True)
    return Store(access, lambda: DeltaLedger.open(access, create=False))


def in_memory() -> Store:
    log = Log()
    return Store(MemoryAccess(Folder(clock=time.time)), lambda: MemoryTable(log))


@pytest.fixture(params=["real", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return real(tmp_path / "store") if request.param == "real" else in_memory()


def commit(ledger: Ledger, *entries: Entry, run: str = "r", planned: int = 0) -> Outcome:
    return ledger.commit(PIPELINE, entries, run=run, planned_seq=planned, facts=FACTS)


def rows_of(name: str, seq: int, *, pipeline: str = PIPELINE) -> Any:
    made = entry(unit(an_input(name), pipeline=pipeline), refused=[1])
    stamp = Stamp(
        pipeline=pipeline,
        seq=seq,
        commit_id=f"c{seq}",
        run="r",
        at=datetime.fromtimestamp(NOW, UTC),
    )
    return commit_rows(stamp, [made], facts=FACTS)


def append(table: Any, name: str, seq: int, *, pipeline: str = PIPELINE) -> None:
    rows = rows_of(name, seq, pipeline=pipeline)
    table.append(rows, app=f"tokenmill/{pipeline}", seq=seq, commit_id=f"c{seq}")


# -- the table -----------------------------------------------------------------------------


def test_an_append_on_a_version_that_others_have_left_behind_fails_and_adds_nothing(
    store: Store,
) -> None:
    """The compare-and-swap (G5)."""
    ours, theirs = store.table(), store.table()
    append(theirs, "a", 1)
    with pytest.raises(CommitFailedError):
        append(ours, "b", 1)
    ours.refresh()
    assert ours.seq(APP) == 1
    assert ours.read({"input": ["uri"]})["input"]["uri"].to_pylist() == ["/data/a"]
    append(ours, "b", 2)
    assert ours.seq(APP) == 2


def test_another_pipelines_append_takes_no_version_away(store: Store) -> None:
    ours, theirs = store.table(), store.table()
    append(theirs, "a", 1, pipeline="other")
    append(ours, "b", 1)
    fresh = store.table()
    assert (fresh.seq(APP), fresh.seq("tokenmill/other"), fresh.seq("tokenmill/none")) == (1, 1, 0)
    found = fresh.read({"input": ["uri", "pipeline"]}, pipeline=PIPELINE)["input"]
    assert found.to_pylist() == [{"uri": "/data/b", "pipeline": PIPELINE}]


@pytest.mark.parametrize("move", ["refresh", "reload"])
def test_a_handle_sees_what_others_appended_only_when_it_moves(store: Store, move: str) -> None:
    reader, writer = store.table(), store.table()
    before = reader.version
    append(writer, "a", 1)
    assert (reader.version, reader.seq(APP)) == (before, 0)
    assert reader.read({"unit": ["path"]})["unit"].num_rows == 0
    getattr(reader, move)()
    assert (reader.version, reader.seq(APP)) == (writer.version, 1)
    assert reader.read({"unit": ["path"]})["unit"].num_rows == 1


def test_a_read_gives_exactly_the_kinds_columns_and_news_that_were_asked_for(store: Store) -> None:
    table = store.table()
    for seq, name in enumerate("abc", start=1):
        append(table, name, seq)
    found = table.read({"quarantine": ["seq", "key", "sample"], "run": ["state"]}, after=1)
    assert set(found) == {"quarantine", "run"}
    assert found["quarantine"].column_names == ["seq", "key", "sample"]
    assert sorted(found["quarantine"]["key"].to_pylist()) == ["b:0:1", "c:0:1"]
    assert found["run"].num_rows == 0 and found["run"].column_names == ["state"]
    assert table.read({"unit": ["rows"]}, after=3)["unit"].num_rows == 0


# -- the files -----------------------------------------------------------------------------


def test_only_the_first_creates_and_only_the_last_version_is_replaced(store: Store) -> None:
    access = store.access
    assert access.create("snapshots/x", b"one")
    assert not access.create("snapshots/x", b"two")
    first = access.stat("snapshots/x")
    second = access.replace("snapshots/x", b"three", first.version)
    assert second is not None and second == access.stat("snapshots/x").version
    assert access.replace("snapshots/x", b"four", first.version) is None
    assert access.read("snapshots/x", version=second) == b"three"
    with pytest.raises(InputChanged):
        access.read("snapshots/x", version=first.version)


def test_listing_is_sorted_below_a_folder_and_hides_what_is_not_finished(store: Store) -> None:
    access = store.access
    for name in ("shards/b", "shards/a/c", f"shards/{HIDDEN}dead", "shardsx/d"):
        access.create(name, b"12")
    assert [f.path for f in access.list("shards")] == ["shards/a/c", "shards/b"]
    assert {f.path for f in access.list("shards", hidden=True)} > {f"shards/{HIDDEN}dead"}
    assert [f.size for f in access.list("shards")] == [2, 2]
    assert list(access.list("nowhere")) == []
    access.delete(["shards/b", "shards/never"])
    assert [f.path for f in access.list("shards")] == ["shards/a/c"]
    for look in (access.stat, access.read):
        with pytest.raises(FileNotFoundError):
            look("shards/b")


# -- the ledger on top ---------------------------------------------------------------------


def test_commits_of_two_runs_cover_each_cell_once(store: Store) -> None:
    ours, theirs = store.ledger(), store.ledger()
    big = an_input("big")
    assert commit(theirs, entry(unit((big, 0, 60))), run="theirs").seq == 1
    late = entry(unit((big, 50, 100)))
    assert commit(ours, late).dropped == (late.name,)
    rest = entry(unit((big, 60, 100)), attempt="b")
    assert commit(ours, rest, planned=1).committed == (rest.name,)
    spans = ours.coverage(PIPELINE).select(["span_start", "span_end"]).to_pylist()
    assert spans == [{"span_start": 0, "span_end": 60}, {"span_start": 60, "span_end": 100}]


class _LosesAnswers:
    """The append happens, by another handle, and nobody hears of it."""

    def __init__(self, table: Any, other: Any) -> None:
        self._table, self._other, self.lose = table, other, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def append(self, rows: Any, **how: Any) -> None:
        if self.lose:
            self.lose = False
            self._other.append(rows, **how)
            raise OSError("connection reset by peer")
        self._table.append(rows, **how)


def test_a_commit_whose_answer_was_lost_is_found_again(store: Store) -> None:
    """G5."""
    ledger = Ledger(store.access, _LosesAnswers(store.table(), store.table()))  # type: ignore[arg-type]
    done = entry(unit(an_input("a")))
    assert commit(ledger, done).committed == (done.name,)
    assert ledger.seq(PIPELINE) == 1
    assert ledger.rows("unit").num_rows == 1


NEWER = {s: facts(s, revision=2) for s in FACTS}
step = st.tuples(
    st.integers(0, 2),  # which handle, and so which run
    st.integers(0, 2),  # which input
    st.sampled_from(["v1", "v2"]),
    st.sampled_from([(0, 100), (0, 60), (50, 100), (60, 100)]),
    st.sampled_from(["text", "audio"]),
    st.integers(0, 3),  # how many commits ago it was planned
    st.booleans(),  # replaces, with a newer recipe
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.lists(step, min_size=1, max_size=3), min_size=1, max_size=8))
def test_the_same_commits_leave_the_same_ledger_in_both(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[Any]]
) -> None:
    stores = [real(tmp_path_factory.mktemp("store")), in_memory()]
    ledgers = [[s.ledger() for _ in range(3)] for s in stores]
    for number, group in enumerate(steps):
        who, *_, ago, newer = group[0]
        entries = [_entry(f"{number}-{n}", *one, newer=newer) for n, one in enumerate(group)]
        outcomes = []
        for handles in ledgers:
            planned = max(handles[who].seq(PIPELINE) - ago, 0)
            outcomes.append(
                handles[who].commit(
                    PIPELINE,
                    entries,
                    run=f"run{who}",
                    planned_seq=planned,
                    facts=NEWER if newer else FACTS,
                    run_row={"job": "j"},
                )
            )
        assert outcomes[0] == outcomes[1]
    one, other = (s.ledger() for s in stores)
    assert one.coverage(PIPELINE).equals(other.coverage(PIPELINE))
    assert snapshot_bytes(snapshot_table(one)) == snapshot_bytes(snapshot_table(other))
    for kind in ("unit", "input", "quarantine", "run", "tokenizer"):
        columns = ["seq", "run", "stream", "unit", "path", "state", "recipe", "span_start"]
        found = [
            sorted(map(str, ledger.rows(kind, columns=columns).to_pylist()))
            for ledger in (one, other)
        ]
        assert found[0] == found[1]


def _entry(
    attempt: str,
    _who: int,
    name: int,
    version: str,
    span: tuple[int, int],
    stream: str,
    _ago: int,
    _newer: bool,
    *,
    newer: bool,
) -> Entry:
    return entry(
        unit((an_input(f"{name}", version), *span)),
        stream=stream,
        attempt=attempt,
        using=NEWER[stream] if newer else FACTS[stream],
        replaces=newer,
        written_at=NOW,
    )
