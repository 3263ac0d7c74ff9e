from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from tests.store.built import Builder, doc, input_, space_of
from tokenmill.pipelines import asking
from tokenmill.pipelines.cli_asking import register
from tokenmill.schemas.errors import CorruptStore, JobError, StoreError, TokenmillError
from tokenmill.schemas.work import Quarantine

A, B, C = input_("a.tar"), input_("b.tar"), input_("c.tar")
CONTENT = {
    A: [
        doc("a/0", text=[1, 2, 3], image=range(6), shape=(2, 3)),
        doc("a/1", text=None, image="decoder-refused"),
        doc("a/2", text="invalid-utf8", image=range(4), shape=(2, 2)),
    ],
    B: [doc("b/0", text="invalid-utf8", image=None), doc("b/1", text="too-large", image=None)],
}
FAULT = Quarantine(
    sample=None,
    key="c.tar",
    source=C.uri,
    row=None,
    reason="truncated",
    message="the archive ends early",
    stage="read",
)


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT)
    built.encode("late", "text", {C: [doc("c/0", text=[7] * 10)]}, faults=[FAULT], run="run-2")
    return built


def snapshots(built: Builder) -> list[str]:
    return [f.path for f in built.access.list("snapshots")]


def test_ls_counts_what_each_stream_holds(built: Builder) -> None:
    table = asking.ls(built.uri)
    rows = {(r["pipeline"], r["stream"]): r for r in table.to_pylist()}
    assert list(rows) == [("docs", "image"), ("docs", "text"), ("late", "text")]
    text = rows["docs", "text"]
    assert (text["inputs"], text["samples"], text["tokens"], text["quarantined"]) == (2, 1, 3, 3)
    assert rows["docs", "image"]["quarantined"] == 1 and rows["docs", "image"]["samples"] == 2
    assert (rows["late", "text"]["quarantined"], rows["late", "text"]["damaged_inputs"]) == (0, 1)
    assert text["tokenizer"] == "bpe" and text["spaces"] == [space_of("one")]
    assert text["bytes"] == sum(
        p.stat().st_size for p in Path(built.uri, "shards/docs/text").iterdir()
    )


def test_ls_shows_a_stream_whose_inputs_are_all_empty(built: Builder) -> None:
    built.encode("empty", "text", {input_("e"): []})
    (row,) = (r for r in asking.ls(built.uri).to_pylist() if r["pipeline"] == "empty")
    assert (row["inputs"], row["samples"], row["bytes"]) == (1, 0, 0)


def test_ls_tells_of_superseded_rows(built: Builder) -> None:
    built.encode("docs", "text", {input_("a.tar", "v2"): [doc("a/0", text=[5])]})
    rows = {(r["pipeline"], r["stream"]): r for r in asking.ls(built.uri).to_pylist()}
    assert rows["docs", "text"]["superseded_rows"] == 3
    assert rows["docs", "text"]["inputs"] == 2 and rows["docs", "text"]["quarantined"] == 2


def test_asking_writes_nothing_into_the_store(built: Builder) -> None:
    asking.ls(built.uri)
    asking.query(built.uri, "select 1")
    asking.quarantine(built.uri)
    asking.info(built.uri)
    assert snapshots(built) == []


def test_info_sums_a_store_up(built: Builder) -> None:
    hash = asking.tag(built.uri, "v1")
    facts = asking.info(built.uri)
    assert (facts["inputs"], facts["samples"], facts["tokens"]) == (3, 4, 23)
    assert facts["quarantined"] == 5 and facts["runs"] == 2
    assert facts["pipelines"] == ["docs", "late"] and facts["tokenizers"] == ["bpe", "grid"]
    assert facts["tags"] == {"v1": hash} and facts["snapshot"] == hash


def test_info_tells_what_a_shard_file_is(built: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = Path(built.uri, "shards/docs/image").iterdir()
    facts = asking.info(str(path))
    assert (facts["rows"], facts["samples"], facts["tokens"]) == (5, 2, 10)
    assert facts["axes"] == ["H", "W"] and facts["dtype"] == "uint16"
    assert facts["bytes"] == path.stat().st_size
    sql = "select content_hash from shards where stream = 'image'"
    assert facts["content_hash"] == asking.query(built.uri, sql)[0][0].as_py()
    monkeypatch.chdir(path.parent)
    assert asking.info(path.name)["content_hash"] == facts["content_hash"]
    with pytest.raises(CorruptStore):
        asking.info("nothing.arrow")


def test_quarantine_is_grouped_by_reason_with_an_example(built: Builder) -> None:
    rows = asking.quarantine(built.uri, pipeline="docs", stream="text").to_pylist()
    assert [(r["reason"], r["samples"], r["example"]) for r in rows] == [
        ("invalid-utf8", 2, "a/2"),
        ("too-large", 1, "b/1"),
    ]
    assert rows[0]["message"] == "a/2 was refused"
    assert len(asking.quarantine(built.uri)) == 4


def test_quarantine_rows_can_be_listed_and_limited(built: Builder) -> None:
    table = asking.quarantine(built.uri, reason="invalid-utf8", rows=True)
    assert table["key"].to_pylist() == ["a/2", "b/0"]
    assert asking.quarantine(built.uri, rows=True, limit=1).num_rows == 1
    (fault,) = asking.quarantine(built.uri, pipeline="late", rows=True).to_pylist()
    assert (fault["sample"], fault["row"], fault["uri"]) == (None, None, C.uri)


def test_a_filter_that_matches_nothing_known_is_a_mistake(built: Builder) -> None:
    with pytest.raises(JobError, match="did you mean 'docs'"):
        asking.quarantine(built.uri, pipeline="dosc")
    with pytest.raises(JobError, match="did you mean 'too-large'"):
        asking.quarantine(built.uri, reason="to-large")
    with pytest.raises(JobError):
        asking.quarantine(built.uri, stream="x' or '1'='1")


def test_verify_finds_nothing_wrong_and_then_a_flipped_byte(built: Builder) -> None:
    assert asking.verify(built.uri).ok
    (path,) = Path(built.uri, "shards/docs/text").iterdir()
    with path.open("r+b") as file:
        data = file.read()
        at = data.index(b"\1\0\2\0\3\0")
        file.seek(at)
        file.write(b"\1\0\2\0\4\0")
    report = asking.verify(built.uri)
    assert not report.ok
    assert path.name in asking.problems(report)["where"][0].as_py()
    with pytest.raises(JobError):
        asking.verify(built.uri, share=2)
    with pytest.raises(JobError, match="did you mean 'late'"):
        asking.verify(built.uri, pipeline="lat")


def test_a_tag_keeps_the_current_snapshot_under_a_name(built: Builder) -> None:
    first = asking.tag(built.uri, "v1")
    built.encode("docs", "text", {input_("d"): [doc("d", text=[1])]})
    second = asking.tag(built.uri, "v2")
    assert asking.tags(built.uri).to_pylist() == [
        {"tag": "v1", "snapshot": first},
        {"tag": "v2", "snapshot": second},
    ]
    with pytest.raises(StoreError, match="another snapshot"):
        asking.tag(built.uri, "v1")
    assert asking.tag(built.uri, "v1", snapshot=second[:10], move=True) == second
    asking.untag(built.uri, "v2")
    assert asking.tags(built.uri)["tag"].to_pylist() == ["v1"]


def test_a_query_may_read_an_older_snapshot(built: Builder) -> None:
    asking.tag(built.uri, "v1")
    built.encode("more", "text", {input_("d"): [doc("d", text=[1])]})
    count = "select count(*) n from shards"
    assert asking.query(built.uri, count)["n"][0].as_py() == 4
    assert asking.query(built.uri, count, tag="v1")["n"][0].as_py() == 3


def test_vacuum_spares_the_young_and_touches_nothing_unasked(built: Builder) -> None:
    orphan = Path(built.uri, "shards/docs/text/orphan-0-000.arrow")
    orphan.write_bytes(b"x" * 10)
    os.utime(orphan, (1, 1))
    report = asking.vacuum(built.uri)
    assert report.orphans == ("shards/docs/text/orphan-0-000.arrow",) and orphan.exists()
    assert asking.vacuum(built.uri, delete=True, grace="1h").orphan_bytes == 10
    assert not orphan.exists() and asking.verify(built.uri).ok


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("7d", 604_800)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert asking.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "7 weeks", "-1d"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="7d"):
        asking.duration(text)


def test_maintain_leaves_the_answers_as_they_are(built: Builder) -> None:
    before = asking.ls(built.uri)
    asking.maintain(built.uri)
    assert asking.ls(built.uri).equals(before)


def test_export_takes_a_pipeline_and_streams(built: Builder, tmp_path: Path) -> None:
    report = asking.export(
        built.uri, "parquet", str(tmp_path / "out"), pipeline="docs", streams=["text"]
    )
    table = pq.read_table(tmp_path / "out" / report.files[0])
    assert table.column_names == ["id", "key", "source", "pipeline", "text"] and len(table) == 5


def test_asking_where_there_is_no_store_says_so(tmp_path: Path) -> None:
    for ask in (asking.ls, asking.info, asking.tags, asking.verify, asking.vacuum, asking.maintain):
        with pytest.raises(StoreError):
            ask(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


# -- the command line ------------------------------------------------------------------------


def cli(*words: str, stdin: str | None = None) -> Any:
    app = typer.Typer(add_completion=False)
    register(app)
    return CliRunner().invoke(app, list(words), input=stdin)


def answer(*words: str, stdin: str | None = None) -> str:
    result = cli(*words, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.stdout)


def test_every_verb_has_a_help_text() -> None:
    text = answer("--help")
    for verb in ("query", "ls", "info", "quarantine", "verify", "export", "tag", "vacuum"):
        assert verb in text
        assert "STORE" in answer(verb, "--help")


def test_the_command_line_asks_in_every_format(built: Builder) -> None:
    sql = "select stream, sum(tokens) as tokens from shards group by 1 order by 1"
    assert json.loads(answer("query", built.uri, sql, "--format", "json")) == [
        {"stream": "image", "tokens": 10},
        {"stream": "text", "tokens": 13},
    ]
    assert answer("query", built.uri, sql, "-f", "csv") == "stream,tokens\nimage,10\ntext,13\n"
    assert "image" in answer("query", built.uri, "-", stdin=sql)
    assert json.loads(answer("info", built.uri, "-f", "json"))["tokens"] == 23


def test_ls_for_people_ends_with_the_tags(built: Builder) -> None:
    asking.tag(built.uri, "release-1")
    text = answer("ls", built.uri)
    assert "release-1" in text and "damaged_inputs" in text and "superseded_rows" not in text
    assert len(json.loads(answer("ls", built.uri, "-f", "json"))) == 3
    assert json.loads(answer("ls", built.uri, "--tags", "-f", "json"))[0]["tag"] == "release-1"


def test_every_other_verb_answers(built: Builder, tmp_path: Path) -> None:
    assert "invalid-utf8" in answer("quarantine", built.uri)
    assert "b/0" in answer("quarantine", built.uri, "--rows", "--limit", "9")
    assert json.loads(answer("verify", built.uri, "-f", "json"))["problems"] == []
    assert "snapshot" in answer("tag", built.uri, "v1")
    assert "v1" in answer("tag", built.uri)
    assert "removed" in answer("tag", built.uri, "v1", "--remove")
    assert "shards kept" in answer("vacuum", built.uri)
    assert json.loads(answer("vacuum", built.uri, "-f", "json"))["dry_run"] is True
    assert "files_after" in answer("maintain", built.uri)
    out = str(tmp_path / "out")
    assert "webdataset" in answer("export", built.uri, out, "--to", "webdataset")
    space = f"text={space_of('one')}"
    more = ("--force", "--space", space, "--stream", "text")
    assert "parquet" in answer("export", built.uri, out, "--to", "parquet", *more)


def failure(*words: str) -> TokenmillError:
    """The error that the lead's main() turns into an exit code."""
    result = cli(*words)
    assert isinstance(result.exception, TokenmillError), (result.output, result.exception)
    return result.exception


def test_mistakes_are_errors_of_the_right_exit_code(built: Builder, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert failure("query", built.uri, "selec").exit_code == 2
    assert failure("query", built.uri, "select 1", "-f", "xml").exit_code == 2
    assert failure("ls", str(tmp_path / "none")).exit_code == 3
    assert failure("export", built.uri, out, "--to", "lance").exit_code == 2
    wrong = ("--space", f"text={space_of('two')}")
    assert failure("export", built.uri, out, "--to", "parquet", *wrong).exit_code == 2
    assert failure("export", built.uri, out, "--to", "parquet", "--space", "text").exit_code == 2
    assert failure("tag", built.uri, "--move").exit_code == 2
    assert failure("vacuum", built.uri, "--grace", "soon").exit_code == 2
    assert failure("query", built.uri, "select 1", "--tag", "none").exit_code == 3


def test_verify_shows_the_problems_and_fails(built: Builder) -> None:
    (path,) = Path(built.uri, "shards/docs/text").iterdir()
    path.unlink()
    result = cli("verify", built.uri)
    assert path.name in result.stdout
    assert isinstance(result.exception, CorruptStore) and result.exception.exit_code == 3


def test_a_question_is_asked_by_its_name(built: Builder) -> None:
    assert "@tokens-by-day" in answer("query", "--questions")
    found = json.loads(answer("query", built.uri, "@failures", "-w", "stream=text", "-f", "json"))
    assert {row["reason"] for row in found} == {"invalid-utf8", "too-large", "truncated"}
    assert "did you mean 'growth'" in str(failure("query", built.uri, "@grwoth"))
    assert "NAME=VALUE" in str(failure("query", built.uri, "@growth", "-w", "timezone"))
    assert "--with belongs" in str(failure("query", built.uri, "select 1", "-w", "a=b"))
    assert "--questions" in str(failure("query", built.uri))
