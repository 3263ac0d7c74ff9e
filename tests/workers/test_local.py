from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing.connection import wait

import psutil
import pytest

from tests.workers.jobs import make_job, make_task, rows, sample_ids, write
from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.workers.inflight import Held
from tokenmill.workers.local import LocalWorker

PATIENCE = 60


@pytest.fixture
def start():
    made = []

    def make(job):
        made.append(LocalWorker.start(job, "docs", "text"))
        return made[-1]

    yield make
    for worker in made:
        if not worker.connection.closed:
            worker.kill()


def receive(worker, *kinds):
    """The next message of one of these kinds; ("dead", exit code) where the process ended."""
    while True:
        ready = wait([worker.connection, worker.sentinel], PATIENCE)
        assert ready, "nothing was heard"
        if worker.connection in ready:
            try:
                kind, body = worker.connection.recv()
            except (EOFError, ConnectionError):
                worker.process.wait(PATIENCE)
                return "dead", worker.exit_code()
            if kind in kinds:
                return kind, body
        else:
            worker.process.wait(PATIENCE)
            return "dead", worker.exit_code()


def recipe(worker):
    kind, facts = receive(worker, "ready", "failed")
    assert kind == "ready" and isinstance(facts, WorkerFacts), facts
    return facts.identity.recipe


def test_tasks_go_out_and_results_come_back(tmp_path, start):
    write(tmp_path, ["a", "bb"])
    job = make_job(tmp_path)
    worker = start(job)
    wanted = recipe(worker)
    for attempt in range(3):
        worker.send(make_task(job, wanted, attempt=attempt))
    results = [receive(worker, "result", "failure") for _ in range(3)]
    assert sorted(r.attempt for _, r in results) == [0, 1, 2]
    assert all(rows(job, r) == [b"a", b"bb"] for _, r in results)
    assert worker.stop() == 0
    assert not worker.page.exists()


def test_what_cannot_load_says_why(tmp_path, start):
    job = make_job(tmp_path, stream={"output": "pictures"})
    kind, error = receive(start(job), "ready", "failed")
    assert kind == "failed"
    assert isinstance(error, TokenizerError) and "pictures" in str(error)


def test_a_crash_in_native_code_leaves_its_samples_on_the_page(tmp_path, start):
    write(tmp_path, [f"{n}" for n in range(1024)], ["a", "<crash>", "b"])
    job = make_job(tmp_path)
    worker = start(job)
    task = make_task(job, recipe(worker))
    worker.send(task)
    assert receive(worker, "result", "failure") == ("dead", -signal.SIGKILL)
    held = worker.in_flight()
    assert held == Held(unit=task.unit.id, samples=tuple(sample_ids(job)[1024:]))
    assert worker.kill() == -signal.SIGKILL


def test_progress_moves_while_a_task_runs(tmp_path, start):
    texts = ["<slow>" + "x" * 16 * 30] * 2
    write(tmp_path, texts)
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    worker = start(job)
    task = make_task(job, recipe(worker))
    worker.send(task)
    kind, progress = receive(worker, "progress", "result")
    assert kind == "progress"
    assert (progress[0].unit, progress[0].attempt) == (task.unit.id, 0)
    assert receive(worker, "result")[1].enumerated == 2


def test_ctrl_c_and_term_are_the_drivers_to_handle(tmp_path, start):
    write(tmp_path, ["a"])
    job = make_job(tmp_path)
    worker = start(job)
    task = make_task(job, recipe(worker))
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    worker.send(task)
    assert receive(worker, "result", "failure")[0] == "result"


def test_a_stopped_worker_takes_its_children_with_it(tmp_path, start):
    write(tmp_path, ["a", "<hang>"])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    worker = start(job)
    worker.send(make_task(job, recipe(worker)))
    receive(worker, "progress")
    family = psutil.Process(worker.pid).children(recursive=True)
    assert len(family) == 2  # the fork server and a child
    assert worker.stop(timeout=0.1) == -signal.SIGKILL
    assert psutil.wait_procs(family, timeout=10)[1] == []


DRIVER = """
import sys
from pathlib import Path
from tests.workers.jobs import make_job, make_task
from tokenmill.workers.local import LocalWorker
job = make_job(Path(sys.argv[1]), tokenizer="Bytes", stream={"config": {"child": True}})
worker = LocalWorker.start(job, "docs", "text")
kind, facts = worker.connection.recv()
worker.send(make_task(job, facts.identity.recipe))
assert worker.connection.recv()[0] == "progress"
print(worker.pid, flush=True)
worker.connection.recv()
"""


def test_a_killed_driver_leaves_no_worker_and_no_child_behind(tmp_path):
    write(tmp_path, ["a", "<spin>"])
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    family = [worker, *worker.children(recursive=True)]
    assert len(family) == 3
    driver.kill()
    driver.wait()
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_script_without_a_main_guard_can_start_workers(tmp_path):
    write(tmp_path, ["a"])
    script = tmp_path / "script.py"
    script.write_text(DRIVER.replace('connection.recv()[0] == "progress"', "connection.recv()")
                      .rpartition("worker.connection")[0] + "print(worker.stop())")  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109 - pytest's rootdir
    )
    assert done.stdout.split()[-1] == "0", done.stderr
