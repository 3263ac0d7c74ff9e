"""How a run is watched: its tally, log, lease, screen, and the dashboard's queries."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.store.built import Builder, doc, input_
from tests.workers.jobs import make_job, write
from tokenmill.pipelines.cli_watch import screen
from tokenmill.pipelines.dashboard import PANELS, dashboard
from tokenmill.pipelines.metric_names import COUNTERS, GAUGES, exported
from tokenmill.pipelines.run import Report, run
from tokenmill.pipelines.run_log import RunLog
from tokenmill.pipelines.session import Options
from tokenmill.pipelines.tally import Bound, Tally, bound_by
from tokenmill.pipelines.watching import look
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Quarantine, ShardFile, TaskResult, TaskStats
from tokenmill.store.access import Access
from tokenmill.store.lease import Lease


def result(stats: TaskStats, stream: str = "text", quarantined: int = 0) -> TaskResult:
    shard = ShardFile(
        path="p", first_row=0, rows=10, samples=10, tokens=100, size=1000, content_hash=b"",
        encoding="plain", written_at=0.0,
    )  # fmt: skip
    fault = Quarantine(
        sample=b"s", key="k", source="/s", row=0, reason="too-large", message="m", stage="read"
    )
    return TaskResult(
        unit=b"u", stream=stream, attempt=0, recipe="r", space="s", shards=(shard,), cells=(),
        enumerated=10 + quarantined, with_tokens=10, absent=0, tokens=100,
        quarantined=(fault,) * quarantined, input_faults=(), order_hash=b"", stats=stats,
    )  # fmt: skip


def tally(**seconds: float) -> Tally:
    made = Tally()
    made.add("docs", [result(TaskStats(**seconds))])  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("seconds", "listing", "starting", "by"),
    [
        ({"read": 3.0, "prepare": 4.0, "encode": 5.0}, 0.1, 1.0, "decoding"),
        ({"read": 1.0, "encode": 5.0, "write": 4.0}, 0.1, 1.0, "encoding"),
        ({"encode": 1.0, "write": 4.0}, 0.1, 1.0, "writing"),
        ({"encode": 1.0}, 80.0, 90.0, "listing"),
        ({"encode": 1.0}, 10.0, 90.0, "starting"),
    ],
)
def test_what_bounded_a_run(
    seconds: dict[str, float], listing: float, starting: float, by: str
) -> None:
    found = bound_by(tally(**seconds), listing=listing, starting=starting, working=20.0)
    assert found.by == by and str(found).startswith(by)
    assert sum(found.shares.values()) == pytest.approx(1)


def test_starving_is_the_encoders_share_of_waiting() -> None:
    found = bound_by(tally(encode=1.0, wait=3.0), listing=0, starting=0, working=9)
    assert found.starved == 0.75
    assert bound_by(Tally(), listing=9, starting=9, working=0) == Bound(by="")


def test_a_tally_sums_up_what_was_committed() -> None:
    made = tally(encode=1.0, batches=4, filled=3.0, gpu_bytes=7)
    made.add("docs", [result(TaskStats(gpu_bytes=5, bytes_read=50), quarantined=2)])
    stream = made.streams["docs", "text"]
    assert (stream.tasks, stream.samples, stream.tokens, stream.stored) == (2, 22, 200, 2000)
    assert (stream.batch_fill, stream.gpu_bytes, stream.read) == (0.75, 7, 50)
    assert stream.reasons == {"too-large": 2}


# ------------------------------------------------------------------------- a run, for real


def toy(folder: Path, **stream: object) -> Job:
    write(folder, ["one", "two", "<refuse> three"], ["four", {"text": 7}])
    return make_job(folder, tokenizer="Bytes", stream=dict(stream))


def run_here(job: Job, **options: object) -> Report:
    options = {"executor": "local", "workers": 1} | options
    return run(job, Options(**options), watch=lambda *_: None, say=print)  # type: ignore[arg-type]


def test_a_run_logs_its_tasks_and_samples_with_their_keys(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    report = run_here(toy(tmp_path), log=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["started", "ended"]
    assert {(line["job"], line["run"]) for line in lines} == {("toy", report.run)}
    tasks = [line for line in lines if line["event"] == "task"]
    assert sum(t["samples"] for t in tasks) == report.counts.samples == 5
    refused = [line for line in lines if line["event"] == "quarantined"]
    assert len(refused) == report.counts.quarantined > 0
    units = {t["unit"] for t in tasks}
    for line in refused:
        assert line["unit"] in units and line["key"] and len(line["sample"]) == 32


def test_a_run_says_what_bounded_it_and_how_full_its_batches_were(tmp_path: Path) -> None:
    job = toy(tmp_path, config={"windows": 8})
    report = run_here(job)
    assert report.bound.by in ("starting", "listing", "decoding", "encoding", "writing")
    stream = report.tally.streams["docs", "text"]
    assert stream.samples == 5 and stream.batches > 0
    assert 0 < (stream.batch_fill or 0) <= 1
    again = run_here(job)
    assert again.bound.by == "" and again.nothing_new


def test_a_log_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="log cannot be written"):
        RunLog(str(tmp_path / "none" / "log"), job="j", run="r")


# ------------------------------------------------------------------------------ the screen


def shown(store: str) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(screen(look(store)))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_screen_shows_who_is_at_work_and_how_far(tmp_path: Path) -> None:
    built = Builder(str(tmp_path / "store"))
    content = {input_("a"): [doc("a/0", text=[1, 2]), doc("a/1", text="too-large")]}
    built.encode("docs", "text", content)
    assert "no run is at work" in shown(built.uri)
    holder = {"host": "node7", "pid": 1, "run": "nightly-1", "started": "2026-01-01T00:00:00Z"}
    lease = Lease.acquire(Access(built.uri), "docs", holder)
    lease.tell({"tasks": 64, "finished": 12, "tokens": 1234, "workers": 3, "quarantined": 5})
    assert lease.renew()
    text = shown(built.uri)
    assert "nightly-1 on node7  12/64 tasks  1,234 tokens  3 workers  5 quarantined" in text
    assert re.search(r"docs +text +1 +2 ", text) and "too-large 1" in text
    lease.release()
    assert "no run is at work" in shown(built.uri)


def test_a_silent_run_is_called_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "text", {input_("a"): [doc("a/0", text=[1])]})
    Lease.acquire(Access(built.uri), "docs", {"host": "evil\x1b[31m", "run": "r"})
    monkeypatch.setattr(Access, "now", lambda _: time.time() + 300)
    text = shown(built.uri)
    assert "silent for" in text and "\x1b" not in text


# --------------------------------------------------------------------------- the dashboard


def test_every_query_of_the_dashboard_asks_for_metrics_that_are_exported() -> None:
    """test_submit.py shows that a real Ray node exports exactly these."""
    there = {exported(name) for name in (*COUNTERS, *GAUGES)}
    asked = set(re.findall(r"ray_\w+", json.dumps(dashboard())))
    assert asked == there


def test_every_label_that_a_query_groups_by_is_one_of_its_metric() -> None:
    for _, _, queries in PANELS:
        for query, legend in queries:
            (name, *_) = re.findall(r"ray_tokenmill_(\w+?)(?:_total)?\{", query)
            labels = {**COUNTERS, **GAUGES}[name][1]
            grouped = re.findall(r"by \(([\w, ]+)\)", query)
            used = {label for group in grouped for label in group.split(", ")}
            used |= set(re.findall(r"\{\{(\w+)\}\}", legend))
            assert used <= set(labels), query
            assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
