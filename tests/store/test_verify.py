"""Verify finds each thing that can be wrong, and nothing in a store that is right."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import CODEBOOK, FACTS, PIPELINE, an_input, entry, facts, unit

from tokenmill.schemas.tokenizer import OutputSpec
from tokenmill.store.access import Access
from tokenmill.store.bits import pack
from tokenmill.store.ledger import Entry, Ledger, StreamFacts
from tokenmill.store.shards import ShardReader
from tokenmill.store.verify import VerifyReport, verify


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


@pytest.fixture
def ledger(access: Access) -> Ledger:
    return Ledger.open(access, create=True)


def commit(ledger: Ledger, *entries: Entry, facts: Any = FACTS) -> None:
    done = ledger.commit(PIPELINE, entries, run="r", planned_seq=ledger.seq(PIPELINE), facts=facts)
    assert not done.dropped


def changed(made: Entry, **changes: Any) -> Entry:
    """An entry whose one shard says something else."""
    (shard,) = made.result.shards
    shards = (dataclasses.replace(shard, **changes),)
    return dataclasses.replace(made, result=dataclasses.replace(made.result, shards=shards))


def kinds(report: VerifyReport) -> list[str]:
    return [problem.kind for problem in report.problems]


def test_a_healthy_store_is_clean(access: Access, ledger: Ledger) -> None:
    both = unit(an_input("a"), an_input("b"))
    commit(
        ledger,
        entry(both, access=access, refused=[4]),
        entry(both, access=access, stream="audio"),
        entry(unit(an_input("empty")), rows=0, access=access),
    )
    commit(ledger, entry(unit(an_input("b", "v2")), access=access, refused=[0]))
    commit(ledger, entry(unit(an_input("c")), access=access))
    again = entry(unit(an_input("c")), access=access, attempt="again", replaces=True)
    commit(ledger, again)
    seen: list[tuple[int, int]] = []
    report = verify(access, ledger, progress=lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert report.ok
    assert (report.shards, report.unit_streams, report.cells) == (4, 5, 6)
    assert report.tokens == 4 * (5 + 6 + 2 + 3)
    assert seen[-1][0] == seen[-1][1]


def test_empty_store_is_clean(access: Access, ledger: Ledger) -> None:
    assert verify(access, ledger).ok


def test_missing_and_truncated_files_are_found_without_reading(
    access: Access, ledger: Ledger
) -> None:
    gone = entry(unit(an_input("gone")), access=access)
    short = entry(unit(an_input("short")), access=access)
    commit(ledger, gone, short)
    access.delete([gone.result.shards[0].path])
    with Path(access.full(short.result.shards[0].path)).open("r+b") as file:
        file.truncate(100)
    report = verify(access, ledger, share=0.0)
    assert sorted(kinds(report)) == ["missing", "size"]
    assert report.read == 0
    assert sorted(kinds(verify(access, ledger))) == ["missing", "size"]


@pytest.mark.parametrize("encoding", ["plain", "packed"])
def test_flipped_ids_are_found(access: Access, ledger: Ledger, encoding: str) -> None:
    made = entry(unit(an_input("a")), access=access, encoding=encoding)
    commit(ledger, made)
    path = Path(access.full(made.result.shards[0].path))
    data = bytearray(path.read_bytes())
    with ShardReader(access, made.result.shards[0].path) as reader:
        ids = reader.batch(0).column("ids").values.to_numpy()
    lying = pack(ids, 10) if encoding == "packed" else ids
    at = data.find(lying.tobytes())
    assert at > 0
    data[at] ^= 1
    path.write_bytes(data)
    assert kinds(verify(access, ledger)) == ["content"]


@pytest.mark.parametrize("encoding", ["plain", "packed"])
def test_damage_anywhere_is_a_problem_and_never_an_exception(
    access: Access, ledger: Ledger, encoding: str
) -> None:
    made = entry(unit(an_input("a")), access=access, encoding=encoding)
    commit(ledger, made)
    path = Path(access.full(made.result.shards[0].path))
    data = path.read_bytes()
    for flip in range(0, len(data), 67):
        damaged = bytearray(data)
        damaged[flip] ^= 0xFF
        path.write_bytes(damaged)
        found = set(kinds(verify(access, ledger)))  # none where it hit padding
        assert found <= {"content", "counts", "descriptor", "order", "g1"}


def test_ids_that_were_exchanged_are_found(access: Access, ledger: Ledger) -> None:
    """A whole and valid shard, of other content."""
    one, two = (entry(unit(an_input(name)), access=access) for name in ("1", "2"))
    commit(ledger, one, two)
    first, second = (access.full(e.result.shards[0].path) for e in (one, two))
    shutil.copyfile(second, first)
    found = set(kinds(verify(access, ledger)))
    assert {"content", "order", "descriptor"} <= found


@pytest.mark.parametrize("field", ["content_hash", "size"])
def test_ledger_that_says_something_else_is_found(
    access: Access, ledger: Ledger, field: str
) -> None:
    made = entry(unit(an_input("a")), access=access)
    value: Any = b"0" * 32 if field == "content_hash" else 7
    commit(ledger, changed(made, **{field: value}))
    assert kinds(verify(access, ledger)) == ["content" if field == "content_hash" else "size"]


def test_quarantine_of_another_row_is_found(access: Access, ledger: Ledger) -> None:
    made = entry(unit(an_input("a")), access=access, refused=[1])
    (verdict,) = made.result.quarantined
    moved = dataclasses.replace(verdict, row=2)
    result = dataclasses.replace(made.result, quarantined=(moved,))
    commit(ledger, dataclasses.replace(made, result=result))
    assert kinds(verify(access, ledger)) == ["g1"]


def test_streams_that_enumerated_other_samples_are_found(access: Access, ledger: Ledger) -> None:
    both = unit(an_input("a"))
    audio = entry(both, access=access, stream="audio")
    other = dataclasses.replace(audio.result, order_hash=b"0" * 16)
    commit(ledger, entry(both, access=access), dataclasses.replace(audio, result=other))
    found = verify(access, ledger)
    assert kinds(found) == ["order", "order"]  # against the other stream, and its own bytes
    assert "audio, text" in found.problems[0].what


def small(codebook: int, revision: int = 1, dtype: Any = "uint16") -> StreamFacts:
    made = facts(revision=revision)
    output = OutputSpec(dtype=dtype, codebook_sizes=(codebook,))
    descriptor = dataclasses.replace(made.descriptor, outputs=(output,))
    return dataclasses.replace(made, descriptor=descriptor)


def test_id_beyond_its_codebook_is_found(access: Access, ledger: Ledger) -> None:
    using = small(10)
    commit(ledger, entry(unit(an_input("a")), access=access, using=using), facts={"text": using})
    report = verify(access, ledger)
    assert kinds(report) == ["descriptor"]
    assert "of size 10" in report.problems[0].what


def test_shard_that_is_not_what_its_tokenizer_describes_is_found(
    access: Access, ledger: Ledger
) -> None:
    made = entry(unit(an_input("a")), access=access)
    using = small(CODEBOOK + 1, dtype="uint8")
    commit(ledger, made, facts={"text": using})
    found = verify(access, ledger)
    assert kinds(found) == ["descriptor", "descriptor"]
    assert any("uint8" in p.what for p in found.problems)


def test_share_chooses_the_same_units_every_time(access: Access, ledger: Ledger) -> None:
    commit(ledger, *[entry(unit(an_input(str(n))), access=access) for n in range(20)])
    half, again = verify(access, ledger, share=0.5), verify(access, ledger, share=0.5)
    assert half == again
    assert 0 < half.read < 20 == half.shards


@pytest.mark.s3
def test_verify_on_s3(s3: Callable[[], str]) -> None:
    access = Access(s3())
    ledger = Ledger.open(access, create=True)
    commit(ledger, entry(unit(an_input("a")), access=access, refused=[1]))
    assert verify(access, ledger).ok
