"""Every named question, on stores made by the real writer and the real ledger."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.store.built import Builder, doc, facts, input_
from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.work import Quarantine
from tokenmill.store import upkeep
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.questions import ask, parse, questions
from tokenmill.store.snapshot import take_snapshot

ROOT = Path(__file__).resolve().parents[2]
A, B = input_("a.tar"), input_("b.tar", size=60)
CONTENT = {
    A: [
        doc("a/0", text=[1, 2, 3], image=range(6), shape=(2, 3)),
        doc("a/1", text=None, image="decoder-refused"),
        doc("a/2", text="invalid-utf8", image=range(4), shape=(2, 2)),
    ],
    B: [doc("b/0", text=[4, 5], image=None), doc("b/1", text=[1, 2, 3], image=None)],
}


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT, run="run-2")
    return built


def rows(built: Builder, name: str, **values: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(open_store(built.uri, pin=False), name, values).to_pylist()
    return found


def keep(built: Builder, name: str) -> str:
    hash = take_snapshot(built.access, built.ledger).hash
    upkeep.tag(built.access, name, hash)
    return hash


def test_tokens_by_modality_source_and_day(built: Builder) -> None:
    image, text = rows(built, "tokens-by-day")
    today = datetime.now(UTC).date()
    assert (text["day"], text["modality"], text["source"]) == (today, "text", "/raw/")
    assert (text["samples"], text["tokens"]) == (3, 8)
    assert (image["modality"], image["samples"], image["tokens"]) == ("image", 2, 10)
    assert rows(built, "tokens-by-day", pipeline="none") == []


def test_days_are_those_of_the_time_zone(built: Builder) -> None:
    days = {zone: rows(built, "tokens-by-day", timezone=zone)[0]["day"]
            for zone in ("Etc/GMT+12", "Etc/GMT-14")}  # fmt: skip
    assert days["Etc/GMT-14"] > days["Etc/GMT+12"]


def test_which_tokenizer_made_a_shard(built: Builder) -> None:
    path = open_store(built.uri).sql("select path from shards where stream = 'text'")[0][0]
    (one,) = rows(built, "tokenizer-version", path=path.as_py())
    assert one["tokenizer"] == "bpe" and one["recipe"] == facts("text").identity.recipe
    assert json.loads(one["provenances"][0]) == {"package": "1.0"}
    assert one["checkpoints"] == ["/weights/tokenizer.json"] and one["shards"] == 1
    assert len(rows(built, "tokenizer-version")) == 2


def test_what_failed_and_why(built: Builder) -> None:
    fault = Quarantine(
        sample=None, key="c.tar", source=input_("c.tar").uri, row=None, reason="truncated",
        message="ends early", stage="read",
    )  # fmt: skip
    built.encode("docs", "text", {input_("c.tar"): [doc("c/0", text=[9])]}, faults=[fault])
    found = rows(built, "failures", stream="text")
    assert [(r["reason"], r["samples"], r["damaged_inputs"], r["files"]) for r in found] == [
        ("invalid-utf8", 1, 0, 1),
        ("truncated", 0, 1, 1),
    ]
    assert found[0]["share"] == pytest.approx(1 / 6, abs=1e-6)
    assert (found[0]["example"], found[0]["message"]) == ("a/2", "a/2 was refused")
    assert [r["reason"] for r in rows(built, "failures", reason="decoder-refused")] == [
        "decoder-refused"
    ]


def test_runs_that_did_not_finish_say_why(built: Builder) -> None:
    built.ledger.finish_run("docs", "run-1", "finished", {"exit_code": 0, "why": ""})
    built.ledger.finish_run("docs", "run-2", "stopped", {"exit_code": 4, "why": "SIGTERM received"})
    (run,) = rows(built, "failed-runs")
    assert (run["run"], run["state"], run["exit_code"]) == ("run-2", "stopped", 4)
    assert run["why"] == "SIGTERM received"


def test_what_changed_between_two_snapshots(built: Builder) -> None:
    keep(built, "monday")
    assert rows(built, "changes", before="monday") == []
    built.encode("docs", "text", {input_("c.tar"): [doc("c/0", text=[9] * 5)]}, run="run-3")
    built.encode("docs", "image", CONTENT, revision=2, replaces=True, run="run-3")
    built.encode("docs", "text", {input_("a.tar", "v2"): [doc("a/0", text=[7])]}, run="run-3")
    found = {(r["stream"], r["change"]): r for r in rows(built, "changes", before="monday")}
    assert set(found) == {
        ("text", "added"),
        ("text", "rows superseded"),
        ("image", "encoded again, another recipe"),
    }
    added = found["text", "added"]
    assert (added["units"], added["tokens_before"], added["tokens_now"]) == (2, 0, 6)
    again = found["image", "encoded again, another recipe"]
    assert again["recipe_before"] == facts("image").identity.recipe != again["recipe_now"]
    with pytest.raises(StoreError):
        rows(built, "changes", before="0123456789ab")


def test_a_unit_that_is_gone_counts_as_removed(built: Builder) -> None:
    hash = keep(built, "monday")
    healed = {input_("a.tar", "v2"): [doc("a/0", text=[7])], input_("b.tar", "v2"): []}
    built.encode("docs", "text", healed, run="run-3")
    changes = {r["change"]: r for r in rows(built, "changes", before=hash[:12])}
    assert set(changes) == {"added", "removed"}
    assert changes["removed"]["tokens_before"] == 8


def test_what_changed_between_two_versions_of_a_tokenizer(built: Builder) -> None:
    built.encode("docs", "text", CONTENT, revision=2, replaces=True, run="run-3")
    found = {r["part"]: (r["before"], r["now"]) for r in rows(built, "tokenizer-changes")}
    assert set(found) == {"recipe", "parts.ids_revision"}
    assert [json.loads(v) for v in found["parts.ids_revision"]] == [1, 2]


def test_a_token_leads_to_its_raw_file(built: Builder) -> None:
    path = open_store(built.uri).sql("select path from shards where stream = 'text'")[0][0].as_py()
    # tokens 0 to 2 are those of a/0, 3 and 4 of b/0, 5 to 7 of b/1
    for token, key, file in ((0, "a/0", A), (2, "a/0", A), (3, "b/0", B), (7, "b/1", B)):
        (one,) = rows(built, "origin", path=path, token=str(token))
        assert (one["key"], one["file"], one["version"]) == (key, file.uri, "v1")
        assert one["first_token"] <= token < one["first_token"] + one["tokens"]
        assert one["run"] == "run-1"
    assert rows(built, "origin", path=path, token="8") == []
    (one,) = rows(built, "origin", path=path, row="2")
    assert (one["key"], one["verdict"]) == ("a/2", "quarantined")
    sample = sample_ids(B.uri)("b/0").hex()
    found = rows(built, "origin", sample=sample.upper())
    assert [(r["stream"], r["verdict"]) for r in found] == [("image", "absent"), ("text", "tokens")]
    assert len(rows(built, "origin", key="b/0", stream="text")) == 1


def test_a_token_of_a_rolled_shard_leads_to_its_raw_file(built: Builder) -> None:
    many = {A: [doc(f"r/{n}", text=list(range(40))) for n in range(3000)]}
    built.encode("rolled", "text", many, roll_bytes=1 << 14)
    files = open_store(built.uri).sql(
        "select path, first_row from shards where pipeline = 'rolled' order by first_row"
    )
    assert len(files) > 1
    last = files.to_pylist()[-1]
    (one,) = rows(built, "origin", path=last["path"], token="81")
    assert one["key"] == f"r/{last['first_row'] + 2}" and one["version"] == "v1"


def test_a_token_beyond_the_first_record_batch_leads_to_its_raw_file(built: Builder) -> None:
    built.encode("long", "text", {A: [doc(f"r/{n}", text=[1, 2]) for n in range(1500)]})
    found = open_store(built.uri).sql("select path from shards where pipeline = 'long'")
    (one,) = rows(built, "origin", path=found[0][0].as_py(), token="2801")
    assert (one["key"], one["row"], one["first_token"]) == ("r/1400", 1400, 2800)


def test_superseded_samples_have_no_origin(built: Builder) -> None:
    built.encode("docs", "text", {input_("a.tar", "v2"): [doc("a/0", text=[7])]}, run="run-3")
    (one,) = rows(built, "origin", key="a/0", stream="text")
    assert (one["version"], one["tokens"], one["run"]) == ("v2", 1, "run-3")


def test_duplicates_have_the_same_tokens_whatever_they_are_called(built: Builder) -> None:
    (one,) = rows(built, "duplicates", stream="text")
    assert (one["copies"], one["tokens"], one["tokens_wasted"]) == (2, 3, 3)
    assert one["keys"] == ["a/0", "b/1"] and one["files"] == [A.uri, B.uri]
    assert rows(built, "duplicates", least_tokens="4") == []


def test_equal_ids_of_another_shape_are_no_duplicates(built: Builder) -> None:
    grids = [doc("x/0", image=range(6), shape=(2, 3)), doc("x/1", image=range(6), shape=(3, 2))]
    built.encode("shapes", "image", {input_("x"): grids})
    assert rows(built, "duplicates", pipeline="shapes") == []


def test_growth_counts_each_night_and_sums_up(built: Builder) -> None:
    built.encode("docs", "text", {input_("c.tar"): [doc("c/0", text=[9] * 5)]}, run="run-3")
    image, text = rows(built, "growth", pipeline="docs")
    night = (datetime.now(UTC) - timedelta(hours=12)).date()
    assert (text["night"], text["runs"], text["inputs"]) == (night, 2, 3)
    assert (text["tokens"], text["tokens_so_far"], text["quarantined"]) == (13, 13, 1)
    assert image["quarantined"] == 1


def test_bytes_per_token(built: Builder) -> None:
    text = rows(built, "bytes-per-token")[1]
    assert (text["stream"], text["tokens"], text["bytes_read"]) == ("text", 8, 160)
    assert text["source_bytes_per_token"] == 20 and text["tokens_per_sample"] == 8 / 3
    assert text["shard_bytes_per_token"] == text["bytes"] / 8


def test_time_spent_counts_a_unit_once_however_many_files_it_has(built: Builder) -> None:
    built.encode("rolled", "text", {A: [doc(f"{n}", text=[1] * 99) for n in range(3000)]},
                 roll_bytes=1 << 14, run="run-9")  # fmt: skip
    (one,) = rows(built, "time-spent", run="run-9")
    assert (one["units"], one["samples"], one["encode_s"]) == (1, 3000, 0.0)


def test_mistakes_name_the_nearest_and_values_stay_values(built: Builder) -> None:
    dataset = open_store(built.uri)
    with pytest.raises(JobError, match="did you mean 'growth'"):
        ask(dataset, "grwoth")
    with pytest.raises(JobError, match="did you mean 'timezone'"):
        ask(dataset, "growth", {"timezon": "UTC"})
    with pytest.raises(JobError, match="must know before"):
        ask(dataset, "changes")
    with pytest.raises(JobError, match="path or sample or key"):
        ask(dataset, "origin", {"stream": "text"})
    with pytest.raises(JobError, match="no shard"):
        ask(dataset, "origin", {"path": "shards/none.arrow"})
    with pytest.raises(JobError, match="DuckDB"):
        ask(dataset, "duplicates", {"limit": "many"})
    with pytest.raises(JobError, match="Mars"):
        ask(dataset, "growth", {"timezone": "Mars/Olympus"})
    assert ask(dataset, "failures", {"reason": "x' or '1'='1"}).num_rows == 0


VALUES = {"changes": {"before": "monday"}, "origin": {"key": "a/0"}}


@pytest.mark.parametrize("name", questions())
def test_every_question_answers_on_a_store_and_on_an_empty_one(
    built: Builder, tmp_path: Path, name: str
) -> None:
    keep(built, "monday")
    values = VALUES.get(name, {})
    full: Dataset = open_store(built.uri, pin=False)
    names = ask(full, name, values).column_names
    bare = Builder(str(tmp_path / "bare"))
    keep(bare, "monday")
    empty = ask(open_store(bare.uri, pin=False), name, values)
    assert empty.num_rows == 0 and empty.column_names == names


@pytest.mark.parametrize("name", questions())
def test_every_question_and_its_parameters_are_documented(name: str) -> None:
    page = (ROOT / "docs" / "questions.md").read_text()
    section = page.partition(f"## @{name}\n")[2].partition("\n## ")[0]
    question = questions()[name]
    assert question.what in section
    for parameter in question.parameters:
        assert f"`{parameter.shown}`" in section, parameter
        assert parameter.name == "before" or f"${parameter.name}" in question.sql
    assert not re.findall(r"\bTODO\b", section)


def test_a_badly_written_question_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        parse("broken", "-- What?\n-- not a parameter\nselect 1")
