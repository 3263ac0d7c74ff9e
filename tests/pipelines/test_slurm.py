"""A night on a real Slurm of one node: slurmctld and slurmd from Debian, where they are installed.

apt-get install slurmctld slurmd slurm-client
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tokenmill
from tests.pipelines.heads import free_ports
from tests.pipelines.schedules import schedule
from tokenmill.pipelines.schedule import install
from tokenmill.schemas.job import parse_job

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel")
JOB = """
name: nightly
store: store
pipelines:
  docs:
    source: {uri: in, format: jsonl, unit_inputs: 1}
    streams: {text: {tokenizer: "tests.workers.toy:Bytes", field: text}}
"""
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctl}
SlurmdPort={d}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctl.log
SlurmdLogFile={folder}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
JobRequeue=1
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)) or os.geteuid() != 0,
        reason="needs slurmctld, slurmd and slurm-client (apt) and root",
    ),
]


@dataclass(frozen=True)
class Slurm:
    environment: dict[str, str]

    def __call__(self, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, cwd=cwd, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def queue(self) -> list[list[str]]:
        """[id, state, start] of every job."""
        return [line.split() for line in self("squeue", "-h", "-o", "%i %T %S").splitlines()]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().partition(".")[0]
    ctl, d = free_ports(2)
    conf = folder / "slurm.conf"
    cpus = os.cpu_count() or 1
    conf.write_text(CONF.format(host=host, folder=folder, ctl=ctl, d=d, cpus=cpus))
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    environment = {**os.environ, "SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT), "TZ": "UTC"}
    daemons = [
        subprocess.Popen([program, "-D"], env=environment, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
        for program in ("slurmctld", "slurmd")
    ]  # fmt: skip
    made = Slurm(environment)
    try:
        until = time.monotonic() + 60
        while "idle" not in _states(environment):
            if time.monotonic() > until or any(p.poll() is not None for p in daemons):
                logs = "".join(f.read_text()[-1500:] for f in folder.glob("*.log"))
                pytest.fail(f"Slurm does not start: {logs}")
            time.sleep(0.2)
        yield made
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def _states(environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
    )
    return done.stdout


def await_(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.2)


def make(folder: Path, documents: int, *, slow: int = 0, **changes: object) -> Path:
    """The script of a schedule whose next time is far away."""
    (folder / "in").mkdir()
    text = "<slow>".ljust(16 * slow, ".") if slow else "a document"
    for number in range(documents):
        (folder / "in" / f"{number:03d}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (folder / "job.yaml").write_text(JOB)
    made = schedule(
        {"cpus": 1, "memory": "100Mi", "hours": 1},
        job=parse_job(JOB, name="job.yaml", folder=str(folder)),
        job_file=str(folder / "job.yaml"),
        cron="0 2 1 1 *",
        python=sys.executable,
        arguments=("--executor", "local", "--workers", "1"),
        alert=f"echo $TOKENMILL_EXIT_CODE > {folder}/alerted",
        **changes,
    )
    (script,) = install.write(install.render(made, "slurm"), folder)
    return script


def samples(folder: Path) -> int:
    return len(list(tokenmill.open(str(folder / "store"))))


def test_slurm_runs_the_night_and_holds_the_next_one(slurm: Slurm, tmp_path: Path) -> None:
    """G3: two nights with new data between; the second one tokenizes only the new."""
    script = make(tmp_path, 2)
    for night in (2, 3):
        first = slurm("sbatch", "--parsable", script.name, cwd=tmp_path).strip()
        log = tmp_path / f"tokenmill-nightly-{first}.log"
        await_(lambda job=first: job not in [q[0] for q in slurm.queue()], f"{first} did not end")
        assert "tasks committed" in log.read_text(), log.read_text()
        assert samples(tmp_path) == night
        (follower,) = slurm.queue()
        assert follower[1] == "PENDING" and follower[2].endswith("-01-01T01:00:00"), follower
        slurm("scancel", follower[0])
        await_(lambda: not slurm.queue(), "scancel")
        (tmp_path / "in" / "new.jsonl").write_text('{"text": "new"}\n')
    runs = tokenmill.open(str(tmp_path / "store")).sql(
        "select sum(samples) as n from shards group by run order by min(committed_at)"
    )
    assert runs["n"].to_pylist() == [2, 1]
    assert not (tmp_path / "alerted").exists()


def test_a_cancelled_night_commits_what_is_finished(slurm: Slurm, tmp_path: Path) -> None:
    script = make(tmp_path, 40, slow=8)
    first = slurm("sbatch", "--parsable", script.name, cwd=tmp_path).strip()
    store = tmp_path / "store"
    await_(lambda: bool(list(store.glob("shards/**/*.arrow"))), "no shard was written")
    slurm("scancel", "--batch", "--signal=TERM", first)
    await_(lambda: first not in [q[0] for q in slurm.queue()], "it did not end")
    log = (tmp_path / f"tokenmill-nightly-{first}.log").read_text()
    assert "SIGTERM received" in log, log
    assert 0 < samples(tmp_path) < 40
    assert not (tmp_path / "alerted").exists(), "stopped as told is no failure"
    slurm("scancel", "--user=root")


def test_a_failed_night_alerts_and_does_not_end_the_series(slurm: Slurm, tmp_path: Path) -> None:
    script = make(tmp_path, 1)
    (tmp_path / "job.yaml").write_text(JOB.replace("field: text", "field: none"))
    first = slurm("sbatch", "--parsable", script.name, cwd=tmp_path).strip()
    await_(lambda: first not in [q[0] for q in slurm.queue()], "it did not end")
    assert (tmp_path / "alerted").read_text() == "2\n"
    assert [q[1] for q in slurm.queue()] == ["PENDING"]
    slurm("scancel", "--user=root")
