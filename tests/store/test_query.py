from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.store.built import Builder, doc, facts, input_, space_of
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.work import Quarantine
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.views import VIEWS

A, B = input_("a.tar"), input_("b.tar", size=77)
CONTENT = {
    A: [doc("a/0", text=[1, 2, 3]), doc("a/1", text=None), doc("a/2", text="invalid-utf8")],
    B: [doc("b/0", text=[4]), doc("b/1", text="too-large")],
}


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    return Builder(str(tmp_path / "store"))


@pytest.fixture
def dataset(built: Builder) -> Dataset:
    built.encode("docs", "text", CONTENT)
    return open_store(built.uri)


def rows(dataset: Dataset, text: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in dataset.sql(text).to_pylist()]


def test_shards_say_what_they_hold_and_who_wrote_them(dataset: Dataset) -> None:
    (row,) = dataset.sql("select * from shards").to_pylist()
    known = facts("text")
    assert (row["pipeline"], row["stream"], row["samples"], row["tokens"]) == ("docs", "text", 2, 4)
    assert (row["tokenizer"], row["space"], row["recipe"]) == (
        "bpe",
        space_of("one"),
        known.identity.recipe,
    )
    assert row["run"] == "run-1" and row["committed_at"].tzname() == "UTC"
    assert row["rows"] == 5 and row["superseded_rows"] == 0
    assert row["bytes"] == (Path(dataset.uri) / row["path"]).stat().st_size
    assert len(row["unit"]) == 32 and len(row["content_hash"]) == 64


def test_sums_come_back_as_whole_numbers(dataset: Dataset) -> None:
    table = dataset.sql("select sum(tokens) as tokens, 2::hugeint ** 0 as x from shards")
    assert table.schema.field("tokens").type == pa.int64() and table["tokens"][0].as_py() == 4
    huge = dataset.sql("select 170141183460469231731687303715884105727 as huge")
    assert int(huge["huge"][0].as_py()) == 2**127 - 1


def test_inputs_are_the_valid_cells(built: Builder, dataset: Dataset) -> None:
    text = "select uri, version, size, span_start, span_end, rows, run from inputs order by uri"
    assert rows(dataset, text) == [
        ("/raw/a.tar", "v1", 100, 0, 100, 3, "run-1"),
        ("/raw/b.tar", "v1", 77, 0, 77, 2, "run-1"),
    ]
    built.encode("docs", "text", {input_("a.tar", "v2"): [doc("a/0", text=[5])]}, run="run-2")
    assert rows(open_store(built.uri), text)[0] == ("/raw/a.tar", "v2", 100, 0, 100, 1, "run-2")


def test_quarantine_has_only_rows_that_still_count(built: Builder, dataset: Dataset) -> None:
    text = "select key, uri, reason, stage, row, run from quarantine order by key"
    assert rows(dataset, text) == [
        ("a/2", "/raw/a.tar", "invalid-utf8", "read", 2, "run-1"),
        ("b/1", "/raw/b.tar", "too-large", "read", 4, "run-1"),
    ]
    built.encode("docs", "text", {input_("a.tar", "v2"): [doc("a/2", text=[5])]}, run="run-2")
    now = open_store(built.uri)
    assert [row[0] for row in rows(now, text)] == ["b/1"]
    assert len(rows(now, "select key from quarantine_history")) == 2


def test_a_retried_unit_leaves_its_earlier_quarantine_rows_behind(
    built: Builder, dataset: Dataset
) -> None:
    healed = {A: [*CONTENT[A][:2], doc("a/2", text=[8])], B: CONTENT[B]}
    built.encode("docs", "text", healed, replaces=True, run="run-2")
    now = open_store(built.uri)
    assert rows(now, "select key, run from quarantine") == [("b/1", "run-2")]
    assert rows(now, "select sum(samples), count(*) from shards") == [(3, 1)]


def test_a_damaged_input_is_quarantined_without_a_row(built: Builder) -> None:
    fault = Quarantine(
        sample=None, key="a.tar", source=A.uri, row=None, reason="truncated", message="ends early",
        stage="read",
    )  # fmt: skip
    built.encode("docs", "text", {A: [doc("a/0", text=[1])], B: []}, faults=[fault])
    dataset = open_store(built.uri)
    assert rows(dataset, "select key, reason, row, sample from quarantine") == [
        ("a.tar", "truncated", None, None)
    ]
    assert rows(dataset, "select uri, rows from inputs order by uri")[1] == ("/raw/b.tar", 0)


def test_shards_count_the_rows_that_a_later_commit_superseded(
    built: Builder, dataset: Dataset
) -> None:
    built.encode("docs", "text", {input_("a.tar", "v2"): [doc("a/0", text=[5])]})
    text = "select rows, superseded_rows from shards order by rows desc"
    assert rows(open_store(built.uri), text) == [(5, 3), (1, 0)]


def test_runs_and_tokenizers_are_told(built: Builder, dataset: Dataset) -> None:
    assert rows(dataset, "select state, ended_at from runs") == [("started", None)]
    built.ledger.finish_run("docs", "run-1", "finished", {"tokens": 4})
    text = "select run, job, state, host, summary, ended_at >= started_at from runs"
    assert rows(dataset, text) == [("run-1", "nightly", "finished", "here", '{"tokens": 4}', True)]
    (tokenizer,) = dataset.sql("select * from tokenizers").to_pylist()
    assert tokenizer["checkpoint_sha256"] == "ab" * 32 and tokenizer["config"] == '{"bos":true}'


def test_shards_are_those_of_the_dataset(built: Builder, dataset: Dataset) -> None:
    built.encode("other", "text", {B: CONTENT[B]})
    old = open_store(built.uri, snapshot=dataset.snapshot)
    assert rows(old, "select distinct pipeline from shards") == [("docs",)]
    both = open_store(built.uri)
    assert rows(both, "select count(*) from shards") == [(2,)]
    assert rows(both.select(pipeline="other"), "select pipeline from shards") == [("other",)]


@pytest.mark.parametrize(
    "text",
    [
        "select i.uri from inputs i",
        "summarize inputs",
        "with x as (select * from inputs) select * from x",
        "select * from (from Inputs)",
        'select * from "INPUTS"',
        "select * from query('select uri from inputs')",
        "select * from query_table('in' || 'puts')",
        "select (select max(uri) from inputs)",
        "pivot (select uri, pipeline from inputs) on pipeline using count(*)",
        "select * from main.inputs",
    ],
)
def test_a_view_is_full_however_it_is_named(dataset: Dataset, text: str) -> None:
    table = dataset.sql(text)
    assert "/raw/b.tar" in str(table.to_pylist())


def test_parameters_never_become_sql(dataset: Dataset) -> None:
    wanted = {"p": "docs' or '1'='1"}
    assert dataset.sql("select * from shards where pipeline = $p", wanted).num_rows == 0
    assert dataset.sql("select * from shards where pipeline = $p", {"p": "docs"}).num_rows == 1


def test_every_view_can_be_described_and_selected(dataset: Dataset) -> None:
    for view in VIEWS:
        described = dataset.sql(f"describe {view}")["column_name"].to_pylist()
        assert described == dataset.sql(f"select * from {view}").column_names
        assert len(described) >= 8


SECRET = "do not leak"
password = pa.table({"secret": [SECRET]})  # a global that DuckDB could find by its name


@pytest.mark.parametrize(
    "text",
    [
        "select * from read_csv('{file}')",
        "select * from read_text('{file}')",
        "select * from read_blob('{file}')",
        "select * from read_json('{file}')",
        "select * from parquet_scan('{file}')",
        "select * from sniff_csv('{file}')",
        "select * from glob('{folder}/*')",
        "select * from '{file}'",
        "select * from password",
        "select getenv('HOME')",
        "attach '{folder}/x.db'",
        "attach ':memory:' as other",
        "copy shards to '{folder}/out.csv'",
        "copy (select 1) to '{folder}/out.parquet'",
        "export database '{folder}/out'",
        "import database '{folder}'",
        "install httpfs",
        "load httpfs",
        "load '{folder}/evil.duckdb_extension'",
        "set memory_limit = '1TB'",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "reset lock_configuration",
        "pragma memory_limit = '1TB'",
        "pragma enable_profiling",
        "set profiling_output = '{folder}/out.json'",
        "call enable_logging(storage = 'file', storage_path = '{folder}/log')",
        "select * from pragma_database_list(); drop view shards",
        "create table mine as select 1",
        "drop view shards",
        "insert into shards values (1)",
        "delete from _ledger",
        "create secret (type s3, key_id 'x')",
        "explain analyze copy (select 1) to '{folder}/out.csv'",
        "select * from arrow_scan(1, 2, 3)",
        "select * from sqlite_scan('{file}', 'x')",
        "select * from delta_scan('{folder}')",
        "select * from read_csv('https://127.0.0.1/x')",
    ],
)
def test_a_query_reaches_nothing_but_the_views(dataset: Dataset, tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text(f"a,b\n{SECRET},2\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(JobError) as refused:
        dataset.sql(text.format(file=file, folder=tmp_path))
    assert SECRET not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_query_writes_nothing_where_the_user_stands(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    dataset.sql("select count(*) from range(100000) r(i) join range(10) s(j) on r.i % 10 = s.j")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("selec 1", "syntax error"),
        ("select nothing from shards", "nothing"),
        ("select * from shard", "shards"),
        ("select 'x'::int", "x"),
        ("", "one statement"),
        ("select 1; select 2", "one statement"),
        ("insert into x values (1)", "INSERT"),
    ],
)
def test_a_users_mistake_is_told_in_duckdbs_words(dataset: Dataset, text: str, told: str) -> None:
    with pytest.raises(JobError, match=told) as refused:
        dataset.sql(text)
    assert refused.value.exit_code == 2


def test_a_query_that_needs_too_much_memory_is_refused(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.store.query.memory_limit", lambda: 64 << 20)
    with pytest.raises(JobError, match="64 MiB"):
        dataset.sql("select i from range(100000000) r(i) order by hash(i)")


def test_filters_reach_the_ledgers_files(dataset: Dataset) -> None:
    """EXPLAIN shows the scan itself filtering, not a filter above it."""
    for view in ("quarantine", "quarantine_history"):
        plan = dataset.sql(f"explain select key from {view} where reason = 'x' and pipeline = 'p'")
        text = " ".join(plan["explain_value"][0].as_py().split())
        for name in ("kind", "reason", "pipeline"):
            assert f'"{name}" = ' in text  # a filter above the scan would read: name = …
