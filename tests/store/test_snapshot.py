"""Snapshots: what a reader may see (G2), by content hash, readable after anything."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from made import FACTS, PIPELINE, an_input, entry, facts, unit

from tokenmill.schemas.errors import CorruptStore, StoreError
from tokenmill.store.access import Access
from tokenmill.store.ledger import Entry, Ledger
from tokenmill.store.snapshot import (
    META_FORMAT,
    SNAPSHOT_SCHEMA,
    Snapshot,
    parse_snapshot,
    snapshot_bytes,
    tagged,
    tags,
    take_snapshot,
)
from tokenmill.store.upkeep import tag


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


@pytest.fixture
def ledger(access: Access) -> Ledger:
    return Ledger.open(access, create=True)


def commit(ledger: Ledger, *entries: Entry) -> None:
    done = ledger.commit(PIPELINE, entries, run="r", planned_seq=ledger.seq(PIPELINE), facts=FACTS)
    assert not done.dropped


def stored(access: Access) -> list[str]:
    return [f.path for f in access.list("snapshots") if f.path.endswith(".arrow")]


def forged(access: Access, table: pa.Table, schema: pa.Schema = SNAPSHOT_SCHEMA) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    name = hashlib.sha256(data).hexdigest()
    assert access.create(f"snapshots/{name}.arrow", data)
    return name


def test_snapshot_lists_what_is_visible_and_says_all_of_it(access: Access, ledger: Ledger) -> None:
    done = entry(unit(an_input("a"), an_input("b")), refused=[1])
    commit(ledger, done, entry(unit(an_input("empty")), rows=0))
    snapshot = take_snapshot(access, ledger)
    assert snapshot.table.schema.equals(SNAPSHOT_SCHEMA)
    (row,) = snapshot.table.to_pylist()
    assert (row["pipeline"], row["stream"], row["unit"]) == (PIPELINE, "text", done.unit.id)
    assert (row["rows"], row["samples"], row["tokens"], row["exclude"]) == (6, 5, 20, [])
    assert row["recipe"] == FACTS["text"].identity.recipe
    assert stored(access) == [f"snapshots/{snapshot.hash}.arrow"]


def test_same_state_gives_the_same_snapshot_whatever_the_files(
    access: Access, ledger: Ledger
) -> None:
    for name in "cab":
        commit(ledger, entry(unit(an_input(name))))
    before = take_snapshot(access, ledger)
    ledger.compact()
    ledger.finish_run(PIPELINE, "nobody", "finished", {})
    assert take_snapshot(access, Ledger.open(access)).hash == before.hash
    commit(ledger, entry(unit(an_input("d"))))
    assert take_snapshot(access, ledger).hash != before.hash
    assert len(stored(access)) == 2


def test_pinned_snapshot_stays_as_it_was(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"))))
    pinned = take_snapshot(access, ledger)
    commit(ledger, entry(unit(an_input("a", "v2"))))
    ledger.compact()
    ledger.clean(0, dry_run=False)
    assert Snapshot.load(access, pinned.hash).table.equals(pinned.table)


def test_superseded_rows_are_excluded_by_number(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"), an_input("b"), an_input("c"))))
    commit(ledger, entry(unit(an_input("b", "v2"))))
    rows = take_snapshot(access, ledger).table.to_pylist()
    exclude = {row["rows"]: row["exclude"] for row in rows}
    assert exclude == {9: [{"start": 3, "end": 6}], 3: []}


def test_recipe_upgrade_shows_only_the_new_tokens(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"))), entry(unit(an_input("b"))))
    newer = facts(revision=2)
    again = entry(unit(an_input("a")), using=newer, attempt="n", replaces=True)
    ledger.commit(PIPELINE, [again], run="up", planned_seq=1, facts={"text": newer})
    rows = take_snapshot(access, ledger).table.to_pylist()
    assert {r["recipe"] for r in rows} == {
        newer.identity.recipe,
        FACTS["text"].identity.recipe,
    }
    assert len(rows) == 2


def test_store_without_write_permission_is_read_with_a_warning(
    access: Access, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(ledger, entry(unit(an_input("a"))))

    def refused(path: str, data: bytes) -> bool:
        raise StoreError("permission denied", where=path)

    monkeypatch.setattr(access, "create", refused)  # root may write anywhere: no mode stops it
    with pytest.warns(UserWarning, match="may not be written"):
        snapshot = take_snapshot(access, ledger)
    assert snapshot.table.num_rows == 1
    assert stored(access) == []


# -- bytes of unknown origin -------------------------------------------------------------------


def test_bytes_that_are_not_what_the_name_says_are_refused(access: Access, ledger: Ledger) -> None:
    snapshot = take_snapshot(access, ledger)
    path = Path(access.full(f"snapshots/{snapshot.hash}.arrow"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="not what its name says"):
        Snapshot.load(access, snapshot.hash)


def test_newer_format_is_refused_by_number(access: Access) -> None:
    schema = SNAPSHOT_SCHEMA.with_metadata({META_FORMAT: b"9"})
    name = forged(access, schema.empty_table(), schema)
    with pytest.raises(CorruptStore, match=r"format 9.*up to 1"):
        Snapshot.load(access, name)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "s3://b/k", "a\\b", "a//b", ""]
)
def test_path_that_escapes_is_refused(access: Access, ledger: Ledger, path: str) -> None:
    commit(ledger, entry(unit(an_input("a"))))
    table = take_snapshot(access, ledger).table
    column = table.schema.get_field_index("path")
    table = table.set_column(column, table.schema.field("path"), pa.array([path]))
    with pytest.raises(CorruptStore, match="outside its store"):
        Snapshot.load(access, forged(access, table))


@pytest.mark.parametrize("data", [b"", b"garbage", b"ARROW1\0\0" + b"\xff" * 64 + b"ARROW1"])
def test_what_is_no_arrow_file_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptStore, match="not readable"):
        parse_snapshot(data, hashlib.sha256(data).hexdigest(), where="here")


def test_other_columns_are_refused(access: Access) -> None:
    schema = pa.schema([("path", pa.string())], metadata=SNAPSHOT_SCHEMA.metadata)
    with pytest.raises(CorruptStore, match="columns"):
        Snapshot.load(access, forged(access, schema.empty_table(), schema))


def test_snapshot_that_is_not_there_says_why(access: Access, ledger: Ledger) -> None:
    with pytest.raises(StoreError, match="no snapshot") as raised:
        Snapshot.load(access, "0" * 64)
    assert "30 days" in str(raised.value)
    for odd in ("latest", "../x", "A" * 64):
        with pytest.raises(StoreError, match="not the hash"):
            Snapshot.load(access, odd)


def test_bytes_survive_the_round_trip(access: Access, ledger: Ledger) -> None:
    commit(ledger, entry(unit(an_input("a"), an_input("b"))))
    commit(ledger, entry(unit(an_input("a", "v2"))))
    table = take_snapshot(access, ledger).table
    data = snapshot_bytes(table)
    again = parse_snapshot(data, hashlib.sha256(data).hexdigest(), where="here")
    assert again.table.equals(table)


# -- renewal and tags --------------------------------------------------------------------------


def test_readers_renew_at_most_daily(access: Access, ledger: Ledger) -> None:
    snapshot = take_snapshot(access, ledger)
    marker = Path(access.full(f"snapshots/{snapshot.hash}.touch"))
    assert not marker.exists()  # it was just written
    Snapshot.load(access, snapshot.hash)
    first = marker.stat().st_mtime_ns
    Snapshot.load(access, snapshot.hash)
    assert marker.stat().st_mtime_ns == first
    old = time.time() - 2 * 86_400
    os.utime(marker, (old, old))
    Snapshot.load(access, snapshot.hash)
    assert marker.stat().st_mtime > old + 86_400


def test_tag_finds_its_snapshot_again(access: Access, ledger: Ledger) -> None:
    snapshot = take_snapshot(access, ledger)
    tag(access, "release-1.0", snapshot.hash)
    assert tags(access) == {"release-1.0": snapshot.hash}
    assert tagged(access, "release-1.0") == snapshot.hash
    with pytest.raises(StoreError, match="no tag 'other'"):
        tagged(access, "other")


@pytest.mark.parametrize("data", [b"[", b"[]", b"{}", b'{"snapshot": "../x"}', b'{"snapshot": 1}'])
def test_damaged_tag_is_corrupt(access: Access, data: bytes) -> None:
    access.create("snapshots/tags/t", data)
    with pytest.raises(CorruptStore, match="tag 't'"):
        tagged(access, "t")


@pytest.mark.s3
def test_snapshot_and_tag_on_s3(s3: Callable[[], str]) -> None:
    access = Access(s3())
    ledger = Ledger.open(access, create=True)
    commit(ledger, entry(unit(an_input("a"))))
    snapshot = take_snapshot(access, ledger)
    tag(access, "kept", snapshot.hash)
    assert Snapshot.load(access, tagged(access, "kept")).table.equals(snapshot.table)
    ledger.compact()
    assert take_snapshot(access, ledger).hash == snapshot.hash
