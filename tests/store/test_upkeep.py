"""Vacuum, maintain and tag: what may go goes, and nothing that anybody needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made import FACTS, PIPELINE, an_input, entry, unit

from tokenmill.schemas.errors import CorruptStore, StoreError
from tokenmill.store.access import Access, Listed
from tokenmill.store.ledger import GRACE_SECONDS, Entry, Ledger
from tokenmill.store.snapshot import Snapshot, tags, take_snapshot
from tokenmill.store.upkeep import maintain, tag, untag, vacuum

DAY = 86_400.0


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


@pytest.fixture
def ledger(access: Access) -> Ledger:
    return Ledger.open(access, create=True)


def commit(ledger: Ledger, *entries: Entry) -> None:
    done = ledger.commit(PIPELINE, entries, run="r", planned_seq=ledger.seq(PIPELINE), facts=FACTS)
    assert not done.dropped


def age(access: Access, path: str, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(access.full(path), (then, then))


def orphan(access: Access, name: str, days: float) -> str:
    path = f"shards/{PIPELINE}/text/{name}"
    access.create(path, b"x" * 10)
    age(access, path, days)
    return path


def shards(access: Access) -> set[str]:
    return {f.path for f in access.list("shards", hidden=True)}


def test_orphans_older_than_the_grace_go_and_nothing_else(access: Access, ledger: Ledger) -> None:
    done = entry(unit(an_input("a")), access=access)
    commit(ledger, done)
    committed = done.result.shards[0].path
    age(access, committed, 400)
    old, temporary = orphan(access, "old.arrow", 8), orphan(access, ".tm-dead", 8)
    young = orphan(access, "young.arrow", 6)
    report = vacuum(access, ledger)
    assert report.dry_run
    assert set(report.orphans) == {old, temporary}
    assert (report.kept, report.young, report.orphan_bytes) == (1, 1, 20)
    assert shards(access) == {committed, old, temporary, young}
    assert vacuum(access, ledger, dry_run=False).orphans == report.orphans
    assert shards(access) == {committed, young}


def test_superseded_shards_stay(access: Access, ledger: Ledger) -> None:
    first = entry(unit(an_input("a")), access=access)
    commit(ledger, first)
    commit(ledger, entry(unit(an_input("a", "v2")), access=access))
    age(access, first.result.shards[0].path, 400)
    vacuum(access, ledger, dry_run=False)
    assert first.result.shards[0].path in shards(access)


def test_what_is_committed_while_vacuum_looks_is_kept(access: Access, ledger: Ledger) -> None:
    """Files are listed before the ledger is read; read the other way round, this shard, as old as
    a commit still accepts it and older than the grace given here, would be lost."""
    late = entry(unit(an_input("late")), access=access)
    path = late.result.shards[0].path
    age(access, path, 3)

    class Slow(Access):
        def list(self, prefix: str = "", *, hidden: bool = False) -> Iterator[Listed]:
            listed = list(super().list(prefix, hidden=hidden))
            if prefix == "shards":
                commit(ledger, late)
            return iter(listed)

    report = vacuum(Slow(access.uri), Ledger.open(access), dry_run=False, grace=2 * DAY)
    assert report.orphans == ()
    assert shards(access) == {path}
    assert GRACE_SECONDS == 7 * DAY


def test_snapshot_keeps_what_the_ledger_no_longer_names(access: Access, ledger: Ledger) -> None:
    done = entry(unit(an_input("a")), access=access)
    commit(ledger, done)
    pinned = take_snapshot(access, ledger)
    path = done.result.shards[0].path
    age(access, path, 8)
    Path(access.full("ledger")).rename(Path(access.full("old-ledger")))
    empty = Ledger.open(access, create=True)
    vacuum(access, empty, dry_run=False)
    assert shards(access) == {path}
    age(access, f"snapshots/{pinned.hash}.arrow", 31)
    report = vacuum(access, empty, dry_run=False)
    assert (report.orphans, report.lapsed) == ((path,), (pinned.hash,))
    assert shards(access) == set()


def test_untagged_snapshot_lapses_a_month_after_its_last_reader(
    access: Access, ledger: Ledger
) -> None:
    kept, used, left = [], [], []
    for names in (kept, used, left):
        commit(ledger, entry(unit(an_input(str(id(names))))))
        names.append(take_snapshot(access, ledger).hash)
    tag(access, "release", kept[0])
    Snapshot.load(access, used[0])
    Snapshot.load(access, left[0])
    for hash in (*kept, *used, *left):
        age(access, f"snapshots/{hash}.arrow", 90)
    age(access, f"snapshots/{used[0]}.touch", 29)
    age(access, f"snapshots/{left[0]}.touch", 31)
    assert vacuum(access, ledger).lapsed == (left[0],)
    assert Snapshot.load(access, used[0])
    age(access, f"snapshots/{left[0]}.touch", 31)
    vacuum(access, ledger, dry_run=False)
    assert Snapshot.load(access, kept[0]) and Snapshot.load(access, used[0])
    names = {f.path for f in access.list("snapshots")}
    assert not any(left[0] in name for name in names)
    assert tags(access) == {"release": kept[0]}


def test_damaged_snapshot_stops_vacuum_before_it_deletes(access: Access, ledger: Ledger) -> None:
    old = orphan(access, "old.arrow", 8)
    access.create(f"snapshots/{'0' * 64}.arrow", b"garbage")
    with pytest.raises(CorruptStore):
        vacuum(access, ledger, dry_run=False)
    assert shards(access) == {old}


def test_files_that_compaction_left_go_after_the_grace(access: Access, ledger: Ledger) -> None:
    for name in "abc":
        commit(ledger, entry(unit(an_input(name))))
    report = maintain(ledger)
    assert report.files_before > report.files_after == 3
    assert vacuum(access, ledger, dry_run=False).ledger_files == ()
    left = vacuum(access, ledger, dry_run=False, grace=0).ledger_files
    assert len(left) == 6  # three of inputs and three of units; the one of tokenizers lives on
    files = [f.path for f in access.list("ledger") if f.path.endswith("parquet")]
    assert len([f for f in files if "_delta_log" not in f]) == 3
    fresh = Ledger.open(access)
    assert (fresh.seq(PIPELINE), fresh.coverage(PIPELINE).num_rows) == (3, 3)
    commit(ledger, entry(unit(an_input("d"))))


def test_maintain_twice_has_nothing_to_do(ledger: Ledger) -> None:
    for name in "ab":
        commit(ledger, entry(unit(an_input(name))))
    first, second = maintain(ledger), maintain(ledger)
    assert second.files_before == second.files_after == first.files_after


def test_tag_is_not_moved_by_accident(access: Access, ledger: Ledger) -> None:
    first = take_snapshot(access, ledger).hash
    commit(ledger, entry(unit(an_input("a"))))
    second = take_snapshot(access, ledger).hash
    tag(access, "release", first)
    tag(access, "release", first)
    with pytest.raises(StoreError, match="keeps another snapshot"):
        tag(access, "release", second)
    tag(access, "release", second, move=True)
    assert tags(access) == {"release": second}
    untag(access, "release")
    assert tags(access) == {}


def test_tag_needs_a_name_and_a_snapshot_that_is_there(access: Access, ledger: Ledger) -> None:
    hash = take_snapshot(access, ledger).hash
    for name in ("", "../x", "a/b", ".hidden", "x" * 200):
        with pytest.raises(StoreError, match="cannot be a tag"):
            tag(access, name, hash)
    with pytest.raises(StoreError, match="no snapshot"):
        tag(access, "release", "0" * 64)
    assert tags(access) == {}
