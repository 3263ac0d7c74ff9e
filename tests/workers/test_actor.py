from __future__ import annotations

import uuid

import psutil
import pytest

from tests.workers.jobs import make_job, make_task, rows, sample_ids, write
from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.work import TaskResult
from tokenmill.workers.inflight import Held

pytestmark = pytest.mark.ray


@pytest.fixture
def actor(ray_cluster):
    from tokenmill.workers.actor import actor_class  # noqa: PLC0415 - imports ray

    made = []

    def make(job, page=None):
        name = page or uuid.uuid4().hex
        made.append(actor_class(num_cpus=0.5).remote(job, "docs", "text", name))
        return made[-1]

    yield make
    for one in made:
        ray_cluster.kill(one)


def test_an_actor_runs_two_tasks_and_answers_meanwhile(tmp_path, ray_cluster, actor):
    write(tmp_path, ["a", "bb"])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    one = actor(job)
    facts = ray_cluster.get(one.facts.remote())
    tasks = [make_task(job, facts.identity.recipe, attempt=n) for n in range(2)]
    running = [one.run.remote(task) for task in tasks]
    assert ray_cluster.get(one.ping.remote()) > 0
    results = ray_cluster.get(running)
    assert all(isinstance(r, TaskResult) for r in results), results
    assert [rows(job, r) for r in results] == [[b"a", b"bb"]] * 2
    assert ray_cluster.get(one.progress.remote()) == ()
    ray_cluster.get(one.close.remote())


def test_a_bad_checkpoint_is_a_typed_error_of_the_call(tmp_path, ray_cluster, actor):
    one = actor(make_job(tmp_path, stream={"output": "pictures"}))
    with pytest.raises(ray_cluster.exceptions.RayTaskError) as caught:
        ray_cluster.get(one.facts.remote())
    assert isinstance(caught.value.cause, TokenizerError)
    assert "pictures" in str(caught.value.cause)


def test_a_dead_actor_leaves_its_samples_and_no_child(tmp_path, ray_cluster, actor):
    from tokenmill.workers.actor import in_flight  # noqa: PLC0415 - imports ray

    write(tmp_path, ["a", "<enc-crash>", "b"])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    page = uuid.uuid4().hex
    one = actor(job, page)
    recipe = ray_cluster.get(one.facts.remote()).identity.recipe
    task = make_task(job, recipe)
    process = psutil.Process(ray_cluster.get(one.ping.remote()))
    with pytest.raises(ray_cluster.exceptions.RayActorError):
        ray_cluster.get(one.run.remote(task))
    psutil.wait_procs([process], timeout=10)
    held = Held(unit=task.unit.id, samples=(sample_ids(job)[1],))
    assert in_flight(page) == held
    assert ray_cluster.get(actor(job, page).left_in_flight.remote()) == held
    left = [p for p in psutil.process_iter(["cmdline"]) if str(process.pid) in _parent_of(p)]
    assert left == []


def _parent_of(process):
    """The launch order of a fork server names the process that started it."""
    return " ".join(a for a in process.info["cmdline"] or () if '"parent"' in a)
