"""Submitting to a real cluster with a dashboard and token authentication, and the rules behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tokenmill
from tests.pipelines.heads import ROOT, Head, running_head
from tokenmill.pipelines.cli_cluster import progress_line
from tokenmill.pipelines.cluster_auth import Auth, find_auth
from tokenmill.pipelines.metric_names import COUNTERS, GAUGES, exported
from tokenmill.pipelines.ray_jobs import _Lines
from tokenmill.pipelines.submission import (
    AlreadyThere,
    Package,
    Submission,
    attempt_id,
    check_paths,
    package,
    submission_id,
    submit,
)
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.job import Job, parse_job
from tokenmill.schemas.work import Input

TOKEN = "a-token-of-the-tests-0123456789abcdef"
JOB = """
name: nightly
store: store
pipelines:
  docs:
    source: {uri: in, format: jsonl, unit_inputs: 1}
    streams: {text: {tokenizer: "tests.workers.toy:Bytes", field: text}}
"""


def job(**changes: str) -> Job:
    text = JOB
    for old, new in changes.items():
        text = text.replace(f"{old}: {old}", f"{old}: {new}")
    return parse_job(text, name="job.yaml", folder="/data")


def input_(name: str, version: str = "1") -> Input:
    return Input(uri=f"/data/in/{name}", version=version, size=1)


# ------------------------------------------------------------------------------ the rules


class FakeJobs:
    """A cluster as far as submission.py sees it."""

    def __init__(self, *there: Submission) -> None:
        self.there = {each.id: each for each in there}
        self.raced = False

    def submit(self, id: str, package: Package) -> None:
        if id in self.there or self.raced:
            raise AlreadyThere(id)
        self.there[id] = Submission(id=id, state="PENDING")

    def find(self, id: str) -> Submission | None:
        return self.there.get(id)

    def list(self) -> Sequence[Submission]:
        return list(self.there.values())

    def stop(self, id: str) -> bool:
        return True

    def follow(self, id: str) -> Iterator[str]:
        yield from ()


def how(jobs: FakeJobs, **options: object) -> tuple[str, str]:
    done = submit(jobs, "n-1", package(job()), **{"attempts": 3} | options)  # type: ignore[arg-type]
    return done.how, done.id


def test_an_id_is_a_function_of_the_job_its_options_and_its_inputs() -> None:
    one = {"docs": [input_("a"), input_("b")]}
    base = submission_id(job(), one)
    assert base == submission_id(job(), {"docs": iter(one["docs"])})
    assert re.fullmatch(r"nightly-[0-9a-f]{12}", base)
    others = {
        submission_id(job(), {"docs": [input_("a")]}),
        submission_id(job(), {"docs": [input_("a"), input_("b", "2")]}),
        submission_id(job(store="other"), one),
        submission_id(job(), one, arguments=["--retokenize"]),
        submission_id(job(), one, checkpoints={"/v.json": "1"}),
        submission_id(job(), one, checkpoints={"/v.json": "2"}),
    }
    assert len(others) == 6 and base not in others


def test_submitting_twice_is_submitting_once() -> None:
    jobs = FakeJobs()
    assert how(jobs) == ("submitted", "n-1")
    assert how(jobs) == ("already running", "n-1")
    jobs.there["n-1"] = Submission(id="n-1", state="SUCCEEDED")
    assert how(jobs) == ("already done", "n-1")
    assert how(jobs, again=True) == ("submitted", "n-1-2")


def test_a_lost_race_for_the_id_is_no_error() -> None:
    jobs = FakeJobs()
    jobs.raced = True
    assert how(jobs) == ("already running", "n-1")


def test_what_the_infrastructure_lost_is_tried_again_so_often_and_no_more() -> None:
    jobs = FakeJobs(Submission(id="n-1", state="FAILED", exit_code=3))
    assert how(jobs) == ("submitted", "n-1-2")
    jobs.there["n-1-2"] = Submission(id="n-1-2", state="FAILED", exit_code=None)
    assert how(jobs) == ("submitted", "n-1-3")
    jobs.there["n-1-3"] = Submission(id="n-1-3", state="FAILED", exit_code=137)
    with pytest.raises(JobError, match="failed 3 times"):
        how(jobs)
    assert how(jobs, again=True) == ("submitted", "n-1-4")


@pytest.mark.parametrize("code", [1, 2, 70])
def test_what_would_fail_again_is_not_tried_again(code: int) -> None:
    jobs = FakeJobs(Submission(id="n-1", state="FAILED", exit_code=code))
    with pytest.raises(JobError, match="would fail again"):
        how(jobs)
    assert list(jobs.there) == ["n-1"]


def test_a_stopped_job_goes_on_when_submitted_again() -> None:
    assert how(FakeJobs(Submission(id="n-1", state="STOPPED"))) == ("submitted", "n-1-2")


def test_our_exit_code_is_the_drivers_or_says_infrastructure() -> None:
    codes = [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", None, 3), ("FAILED", 137, 3),
             ("STOPPED", None, 4), ("FAILED", 70, 70)]  # fmt: skip
    for state, code, ours in codes:
        found = Submission(id="x", state=state, exit_code=code)  # type: ignore[arg-type]
        assert found.our_exit_code == ours
    assert [attempt_id("x", n) for n in (1, 2)] == ["x", "x-2"]


def test_local_paths_do_not_travel_unless_told_so() -> None:
    with pytest.raises(JobError, match="files of this machine"):
        check_paths(job(), "http://head:8265", shared_files=False)
    check_paths(job(), "http://head:8265", shared_files=True)
    for here in ("http://127.0.0.1:8265", "localhost:8265"):
        check_paths(job(), here, shared_files=False)


def test_the_package_is_the_resolved_job_and_carries_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    made = package(job(), arguments=["--workers", "2"], python="/opt/py thon")
    assert parse_job(made.files["job.yaml"], name="j", folder="/elsewhere") == job()
    assert made.entrypoint.startswith("'/opt/py thon' -m tokenmill run job.yaml")
    assert made.metadata["tokenmill"] == tokenmill.__version__
    assert "secret" not in repr(made)


def test_the_token_is_the_one_named_and_never_one_found_by_chance(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("left-behind\n")
    (tmp_path / "mine").write_text("mine\n")
    mine = str(tmp_path / "mine")
    for environment, file, expected in (
        ({}, None, None),
        ({"RAY_AUTH_MODE": "token"}, None, "left-behind"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, None, None),
        ({"RAY_AUTH_TOKEN": "t"}, None, "t"),
        ({"RAY_AUTH_TOKEN_PATH": mine}, None, "mine"),
        ({"RAY_AUTH_TOKEN": "t"}, mine, "mine"),
    ):
        found = find_auth(file, environment, tmp_path)
        assert found.token == expected
        assert "mine" not in repr(found).partition("came_from")[0]
        exported: dict[str, str] = {}
        found.export(exported)
        assert exported["RAY_AUTH_MODE"] == ("token" if expected else "disabled")
    assert Auth(token="t").headers == {"Authorization": "Bearer t"} and Auth().headers == {}
    with pytest.raises(JobError, match="cannot be read"):
        find_auth(str(tmp_path / "none"), {})
    with pytest.raises(JobError, match="no authentication token"):
        find_auth(None, {"RAY_AUTH_TOKEN": "two\nlines"})


def test_a_log_that_begins_anew_is_shown_once() -> None:
    lines = _Lines()
    assert list(lines.more(iter(["a\nb", "c\n"]))) == ["a", "bc"]
    assert list(lines.more(iter(["a\nbc", "\nd\ne"]))) == ["d"]
    assert list(lines.more(iter(["a\nbc\nd\ne"]))) == [] and list(lines.rest()) == ["e"]


def test_progress_lines_are_readable_and_others_stay() -> None:
    event = {"event": "progress", "tasks": 9, "finished": 2, "committed": 0, "samples": 1234,
             "tokens": 5, "tokens_per_second": 1, "quarantined": 3}  # fmt: skip
    assert progress_line(json.dumps(event)) == (
        "2/9 tasks  1,234 samples  5 tokens  1 tokens/s  3 quarantined"
    )
    for other in ("{not json", '{"event": "progress"}', "[1]", "plain", '{"event": "note"}'):
        assert progress_line(other) == other


# --------------------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("the dashboard needs the extra `cluster`")
    with running_head("--num-cpus=2", token=TOKEN) as head:
        yield head


def cli(head: Head, *words: object, token: str | None = TOKEN) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"RAY_AUTH_TOKEN": token} if token else {})
    command = [sys.executable, "-m", "tokenmill", *map(str, words), "--address", head.address]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def answer(head: Head, *words: object, expect: int = 0, token: str | None = TOKEN) -> str:
    process = cli(head, *words, token=token)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == expect, said
    return said


def make(folder: Path, count: int, *, slow: int = 0) -> Path:
    (folder / "in").mkdir(parents=True)
    (folder / "job.yaml").write_text(JOB)
    for number in range(count):
        add(folder, number, slow=slow)
    return folder / "job.yaml"


def add(folder: Path, number: int, *, slow: int = 0) -> None:
    """slow: windows of the sample, each of which takes 50 ms."""
    text = f"document {number}" if not slow else "<slow>".ljust(16 * slow, ".")
    (folder / "in" / f"{number:03d}.jsonl").write_text(json.dumps({"text": text}) + "\n")


def driver_of(folder: Path) -> int:
    """The pid of the run whose lease the store holds."""
    lease = folder / "store" / "leases" / "docs.json"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if lease.exists() and list((folder / "store").glob("shards/**/*.arrow")):
            return int(json.loads(lease.read_text())["pid"])
        time.sleep(0.05)
    raise AssertionError("the run did not start")


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_is_submitted_once_followed_and_its_growth_is_another_submission(
    head: Head, tmp_path: Path
) -> None:
    """G3 through the front door: two nights with new data between."""
    path = make(tmp_path, 2)
    said = answer(head, "submit", path, "--follow")
    assert "submitted: nightly-" in said and "tasks committed" in said and "SUCCEEDED" in said
    assert "already done: nightly-" in answer(head, "submit", path)
    add(tmp_path, 7)
    assert "1 of 1" in answer(head, "submit", path, "--follow")
    runs = tokenmill.open(str(tmp_path / "store")).sql(
        "select samples from runs r join (select run, sum(samples) as samples from shards group by "
        "run) using (run) order by r.started_at"
    )
    assert runs["samples"].to_pylist() == [2, 1]
    listed = json.loads(answer(head, "jobs", "-f", "json"))
    assert [row["state"] for row in listed] == ["SUCCEEDED"] * 2
    assert [row["exit_code"] for row in listed] == [0, 0]


@pytest.mark.slow
@pytest.mark.ray
def test_a_lost_driver_is_replaced_by_the_next_attempt(head: Head, tmp_path: Path) -> None:
    """G4 through the front door: the driver is killed, `submit --follow` starts another."""
    path = make(tmp_path, 8, slow=30)
    following = cli(head, "submit", path, "--follow", "--id", "killed")
    os.kill(driver_of(tmp_path), signal.SIGKILL)
    said, _ = following.communicate(timeout=120)
    assert following.returncode == 0, said
    assert "killed was lost" in said and "submitted: killed-2 (attempt 2 of 3)" in said
    assert len(list(tokenmill.open(str(tmp_path / "store")))) == 8


@pytest.mark.slow
@pytest.mark.ray
def test_a_stopped_job_commits_what_is_finished(head: Head, tmp_path: Path) -> None:
    path = make(tmp_path, 600, slow=20)
    answer(head, "submit", path, "--id", "stopped")
    driver_of(tmp_path)
    assert "asked stopped to stop" in answer(head, "stop", "stopped")
    said = answer(head, "status", "stopped", "--follow", expect=4)
    assert "stopped as told" in said
    assert 0 < len(list(tokenmill.open(str(tmp_path / "store")))) < 600
    assert "ended already" in answer(head, "stop", "stopped")


@pytest.mark.slow
@pytest.mark.ray
def test_every_metric_of_ours_is_exported_while_a_run_is_at_work(
    head: Head, tmp_path: Path
) -> None:
    path = make(tmp_path, 6, slow=40)
    (tmp_path / "in" / "bad.jsonl").write_text("not json\n")
    answer(head, "submit", path, "--id", "measured")
    wanted = {exported(name) for name in (*COUNTERS, *GAUGES)}
    found: set[str] = set()
    until = time.monotonic() + 90
    while found < wanted and time.monotonic() < until:
        with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics}/metrics") as page:
            lines = page.read().decode().splitlines()
        found |= {line.partition("{")[0] for line in lines if line.startswith("ray_tokenmill_")}
        time.sleep(0.3)
    assert wanted == found


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_with_tokens_refuses_us_without_one(head: Head, tmp_path: Path) -> None:
    said = answer(head, "jobs", token=None, expect=3)
    assert "does not accept us" in said and "--token-file" in said
    assert "does not accept us" in answer(head, "jobs", token="wrong", expect=3)
    (tmp_path / "token").write_text(TOKEN)
    answer(head, "jobs", "--token-file", tmp_path / "token", token=None)
    assert "knows no job" in answer(head, "status", "none", expect=2)
