"""Runs that are stopped, limited, or meet each other (G4, G5)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_run import CLI, LOCAL, cli, environment

import tokenmill
from tests.chaos.proxy import Proxy
from tests.workers.jobs import make_job, write
from tokenmill.pipelines.coordinator import FAILED_STARTS, WorkerLost, WorkerReady
from tokenmill.pipelines.session import Options, Session
from tokenmill.schemas.errors import StoreError
from tokenmill.schemas.work import FailureClass
from tokenmill.store.access import Access

UNITS = 12


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Twelve units of half a second."""
    (tmp_path / "in").mkdir()
    for number in range(UNITS):
        text = f"{number} <slow>" + "x" * 160
        (tmp_path / "in" / f"{number:02d}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: slow\nstore: store\npipelines:\n  docs:\n"
        "    source: {uri: in, format: jsonl, unit_inputs: 1}\n    streams:\n"
        "      text: {field: text, tokenizer: 'tests.workers.toy:Bytes'}\n"
    )
    return path


def started(job: Path) -> subprocess.Popen[str]:
    """A run of which the first shard is written."""
    command = [*CLI, "run", str(job), "--executor", "local", "--workers", "1"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    shards = job.parent / "store" / "shards"
    while not list(shards.rglob("*-000.arrow")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def samples(job: Path) -> int:
    return len(list(tokenmill.open(str(job.parent / "store"))))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order_and_what_was_finished_is_committed(job: Path, number: int) -> None:
    process = started(job)
    process.send_signal(number)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 4, said
    assert said.rstrip().splitlines()[-1] == f"go on: tokenmill run {job}"
    assert 1 <= samples(job) < UNITS
    cli("run", job, *LOCAL)
    assert samples(job) == UNITS
    states = tokenmill.open(str(job.parent / "store")).sql("select state from runs order by run")
    assert sorted(states["state"].to_pylist()) == ["finished", "stopped"]
    cli("verify", job.parent / "store")


def test_a_limit_stops_in_order(job: Path) -> None:
    text = job.read_text()
    job.write_text(text + "limits: {minutes: 0.02}\n")
    said = cli("run", job, "--executor", "local", "--workers", "1", expect=4)
    assert "limits.minutes" in said and "go on: tokenmill run" in said
    assert samples(job) < UNITS
    job.write_text(text)
    cli("run", job, *LOCAL)
    assert samples(job) == UNITS


def test_a_stop_before_the_first_task_is_a_stop_too(job: Path) -> None:
    """A service manager that changes its mind while we list and load."""
    process = subprocess.Popen(
        [*CLI, "run", str(job), *LOCAL], env=environment(), stdout=subprocess.PIPE, text=True
    )
    lease = job.parent / "store" / "leases" / "docs.json"
    while not lease.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 4, said
    assert json.loads(lease.read_text())["released"]


def test_a_nightly_run_that_meets_yesterdays_is_told_who_holds_it(job: Path) -> None:
    yesterday = started(job)
    said = cli("run", job, *LOCAL, expect=3)
    assert str(yesterday.pid) in said and os.uname().nodename in said
    yesterday.communicate(timeout=100)
    assert yesterday.returncode == 0
    assert "Nothing new" in cli("run", job, *LOCAL)
    assert samples(job) == UNITS


class Dying:
    """An executor whose first workers die."""

    name, cpus, gpus = "local", 2.0, 0.0

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.events: list[object] = []

    def start(self, worker: int, pool: object) -> None:
        self.deaths -= 1
        lost = WorkerLost(worker=worker, kind=FailureClass.WORKER, why="killed")
        self.events.append(lost if self.deaths >= 0 else WorkerReady(worker=worker))

    def wait(self, timeout: float) -> Iterator[object]:
        events, self.events = self.events, []
        return iter(events)

    def stop(self, worker: int) -> None:
        pass

    def facts(self) -> dict[object, object]:
        return {}


def test_a_worker_that_dies_while_it_starts_is_replaced_some_times(tmp_path: Path) -> None:
    write(tmp_path, ["a"])
    session = Session(make_job(tmp_path), Options(executor="local"))
    executor = Dying(FAILED_STARTS - 1)
    session.probe(executor, session.limits(executor))
    assert list(session.kept) == [FAILED_STARTS - 1]
    with pytest.raises(StoreError, match="die at their start"):
        session.probe(Dying(FAILED_STARTS), session.limits(executor))


@pytest.mark.s3
def test_credentials_that_are_gone_stop_the_run_and_quarantine_nothing(
    s3, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storm: every sample of every unit fails in the same way, and none is to blame."""
    root = s3()
    for file in sorted((job.parent / "in").iterdir()):
        Access(root).put(file, f"in/{file.name}")
    proxy = Proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), seed=0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    text = job.read_text().replace("uri: in", f"uri: {root}/in")
    job.write_text(text + "policy: {store_patience: 3}\n")
    process = started(job)
    proxy.shares = {"expired": 1.0}
    said, _ = process.communicate(timeout=150)
    assert process.returncode == 3, said
    assert "go on: tokenmill run" in said
    proxy.shares = {}
    rows = tokenmill.open(str(job.parent / "store")).sql("select * from quarantine_history")
    assert rows.num_rows == 0 and samples(job) < UNITS
    cli("run", job, *LOCAL)
    assert samples(job) == UNITS
    proxy.shutdown()
