"""Workers on nodes: the arithmetic, and fake GPUs on real Ray nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenmill
from tests.pipelines.heads import running_head
from tests.pipelines.nodes import ROOT, Nodes, cluster
from tokenmill.pipelines.coordinator import (
    IDLE_SECONDS,
    CapacityChanged,
    Coordinator,
    PoolLimits,
    StartWorker,
    StopAsked,
    StopWorker,
    Tick,
)
from tokenmill.pipelines.coordinator import NewTask as Task
from tokenmill.pipelines.placement import Need, Node, fits
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.job import parse_job
from tokenmill.schemas.work import Input, Span, WorkUnit

# ------------------------------------------------------------------------------- arithmetic

GPU = Need(cpus=1, gpus=1)


@pytest.mark.parametrize(
    ("nodes", "needs", "answer"),
    [
        ([Node(cpus=4, gpus=2)], [GPU, GPU], True),
        ([Node(cpus=4, gpus=2)], [GPU] * 3, False),
        # 1.8 of 2 GPUs, but no third of 0.6 in one of them
        ([Node(cpus=4, gpus=2)], [Need(cpus=1, gpus=0.6)] * 3, False),
        ([Node(cpus=4, gpus=2)], [Need(cpus=1, gpus=0.5)] * 4, True),
        ([Node(cpus=8, gpus=2)], [Need(cpus=1, gpus=0.5), Need(cpus=1, gpus=2)], False),
        # four CPUs in two nodes hold no worker of three
        ([Node(cpus=2), Node(cpus=2)], [Need(cpus=3)], False),
        # a CPU worker leaves the GPU node to who needs it
        ([Node(cpus=1, gpus=1), Node(cpus=1)], [Need(cpus=1), GPU], True),
        ([Node(cpus=4, labels={"zone": "a"})], [Need(cpus=1, labels={"zone": "b"})], False),
        ([Node(cpus=4, labels={"zone": "a"})], [Need(cpus=1, labels={"zone": "a"})], True),
        ([Node(cpus=0)], [Need(cpus=0)], True),
        ([], [Need(cpus=1)], False),
    ],
)
def test_what_fits_on_nodes(nodes: list[Node], needs: list[Need], answer: bool) -> None:
    assert fits(nodes, needs) is answer


NEEDS = st.lists(
    st.builds(Need, cpus=st.integers(0, 3), gpus=st.sampled_from([0, 0.25, 0.5, 0.75, 1, 2])),
    max_size=8,
)
NODES = st.lists(st.builds(Node, cpus=st.integers(0, 6), gpus=st.integers(0, 3)), max_size=4)


@given(NODES, NEEDS)
def test_nothing_is_promised_twice(nodes: list[Node], needs: list[Need]) -> None:
    if fits(nodes, needs):
        assert sum(n.cpus for n in needs) <= sum(n.cpus for n in nodes)
        assert sum(n.gpus for n in needs) <= sum(n.gpus for n in nodes)
        assert fits([*nodes, Node(cpus=1)], needs)


# ------------------------------------------------------------------------ the coordinator

POOL = ("docs", "text")


def tasks(count: int) -> list[Task]:
    units = [
        WorkUnit(
            pipeline="docs",
            spans=(Span(input=Input(uri=f"/{n}", version="1", size=1), start=0, end=1),),
        )
        for n in range(count)
    ]
    return [Task(unit=u, stream="text", recipe="r", planned_seq=0) for u in units]


def coordinator(count: int, nodes: Sequence[Node], **limits: Any) -> Coordinator:
    made = Coordinator(
        run="r", pools={POOL: PoolLimits(**{"most": 64} | limits)}, cpus=0, nodes=nodes
    )
    made.add(tasks(count))
    return made


def started(decisions: Sequence[object]) -> list[int]:
    return [d.worker for d in decisions if isinstance(d, StartWorker)]


def test_no_more_workers_start_than_nodes_hold_and_more_when_one_joins() -> None:
    made = coordinator(40, [Node(cpus=4, gpus=2)], gpus=1.0)
    assert len(started(made.handle(Tick(), 0))) == 2
    grown = (Node(cpus=4, gpus=2), Node(cpus=4, gpus=1))
    assert len(started(made.handle(CapacityChanged(nodes=grown), 1))) == 1
    assert started(made.handle(CapacityChanged(nodes=grown[:1]), 2)) == []


def test_what_could_be_kept_busy_is_wanted_of_an_autoscaler() -> None:
    made = coordinator(40, [Node(cpus=0)], gpus=1.0, most=8)
    made.handle(Tick(), 0)
    assert made.wanted() == {POOL: 8}
    made = coordinator(3, [Node(cpus=0)])
    assert made.wanted() == {POOL: 2}
    made.handle(StopAsked(why="x"), 1)
    assert made.wanted() == {POOL: 0}


def test_idle_workers_go_after_a_while_but_not_below_the_minimum() -> None:
    made = coordinator(2, [Node(cpus=4)], least=1)
    for worker in range(3):
        made.adopt(worker, POOL)  # two tasks go to two of them, one each
    made.handle(Tick(), 0)
    assert not [d for d in made.handle(Tick(), IDLE_SECONDS - 1) if isinstance(d, StopWorker)]
    stopped = [d for d in made.handle(Tick(), IDLE_SECONDS) if isinstance(d, StopWorker)]
    assert [d.worker for d in stopped] == [2] and made.workers == 2
    kept = coordinator(2, [Node(cpus=4)], least=3)
    for worker in range(3):
        kept.adopt(worker, POOL)
    kept.handle(Tick(), 0)
    assert kept.handle(Tick(), IDLE_SECONDS) == []


def test_a_minimum_is_started_however_short_the_queue() -> None:
    assert len(started(coordinator(1, [Node(cpus=9)], least=3).handle(Tick(), 0))) == 3
    assert len(started(coordinator(1, [Node(cpus=9)]).handle(Tick(), 0))) == 1


def test_resources_are_checked_when_the_job_is_read() -> None:
    def parse(resources: str) -> None:
        text = "name: n\nstore: s\npipelines: {docs: {source: {uri: in, format: jsonl}, "
        text += "streams: {text: {tokenizer: bpe}}}}\nresources: {text: " + resources + "}\n"
        parse_job(text, name="j", folder="/")

    parse("{gpus_per_worker: 0.25, labels: {zone: a}, workers: {min: 1, max: 2}}")
    parse("{gpus_per_worker: 2}")
    for wrong, word in (
        ("{gpus_per_worker: 1.5}", "a fraction of one GPU"),
        ("{workers: {min: 3, max: 2}}", "less than min"),
    ):
        with pytest.raises(JobError, match=word):
            parse(wrong)


# -------------------------------------------------------------------- real nodes, fake GPUs

JOB = """
name: placed
store: store
pipelines:
  docs:
    source: {uri: in, format: jsonl, unit_inputs: 1}
    streams: STREAMS
resources: RESOURCES
"""
STREAM = '{tokenizer: "tests.pipelines.placed:Place", field: text}'


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster() as made:
        yield made


def make(folder: Path, count: int, seconds: float, resources: str, streams: str) -> Path:
    (folder / "in").mkdir()
    for n in range(count):
        (folder / "in" / f"{n:03d}.jsonl").write_text(json.dumps({"text": f"{seconds}"}) + "\n")
    job = folder / "job.yaml"
    job.write_text(JOB.replace("STREAMS", streams).replace("RESOURCES", resources))
    return job


def start(address: str, job: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-m", "tokenmill", "run", str(job), "--address", address],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(run: subprocess.Popen[str]) -> str:
    said, _ = run.communicate(timeout=150)
    assert run.returncode == 0, said
    return said


def places(job: Path, stream: str = "text") -> list[dict[str, Any]]:
    rows = tokenmill.open(str(job.parent / "store"))
    return [json.loads(row[stream].astype("uint8").tobytes()) for row in rows]


def await_(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until, f"not seen: {what}"
        time.sleep(0.1)


def gpus(log: Path) -> set[tuple[str, str]]:
    """(node, GPU) of every sample that has begun."""
    if not log.exists():
        return set()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {(line["raylet"], line["gpu"]) for line in lines}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def sharers(found: Sequence[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """(node, GPU) -> the most processes that were at work on it at one time."""
    by_gpu = defaultdict(list)
    for each in found:
        by_gpu[each["raylet"], each["gpu"]].append(each)
    return {
        gpu: max(
            len({b["pid"] for b in group if b["began"] <= a["began"] < b["ended"]}) for a in group
        )
        for gpu, group in by_gpu.items()
    }


@pytest.mark.long  # a cluster of its own, minutes of it
@pytest.mark.slow
@pytest.mark.ray
def test_one_actor_per_gpu_growth_when_a_node_joins_and_its_loss_without_loss_of_work(
    nodes: Nodes, tmp_path: Path
) -> None:
    """G4: a node joins, another dies with its actors, a third is drained; no sample is lost."""
    log = tmp_path / "log"
    hold = tmp_path / "log.hold"
    hold.touch()
    first = nodes.add(2, 2)
    stream = STREAM.replace("}", f", config: {{log: {log}}}}}")
    job = make(tmp_path, 200, 3, "{text: {gpus_per_worker: 1, cpus_per_worker: 1}}",
               f"{{text: {stream}}}")  # fmt: skip
    run = start(nodes.address, job)
    try:
        await_(lambda: len(gpus(log)) == 2, "two actors on two GPUs")
        on_first = {raylet for raylet, _ in gpus(log)}
        second = nodes.add(2, 1)
        await_(lambda: len(gpus(log)) == 3, "growth when a node joins")
        (on_second,) = {int(raylet) for raylet, _ in gpus(log)} - set(map(int, on_first))
        assert nodes.ask("kill", first) == "ok"
        third = nodes.add(2, 1)
        await_(lambda: len(gpus(log)) == 4, "growth after a loss")
        assert nodes.ask("drain", second, 3) == "ok"
        assert nodes.ask("kill", second) == "ok"  # as a preempting provider does in the end
        await_(lambda: not _alive(on_second), "the drained node is gone")
    finally:
        hold.unlink()
        said = finish(run)
    assert "200 of 200" in said
    found = places(job)
    assert len(found) == 200
    assert set(sharers(found).values()) == {1}, "one actor per GPU"
    assert len(on_first) == 1, "both on the first node"
    nodes.ask("kill", third)


@pytest.mark.long  # a cluster of its own, minutes of it
@pytest.mark.slow
@pytest.mark.ray
def test_tokenizers_share_a_gpu_by_fractions_and_labels_and_cpu_nodes_are_kept(
    nodes: Nodes, tmp_path: Path
) -> None:
    gpu = nodes.add(2, 1)
    cpu = nodes.add(1, 0)
    other = nodes.add(1, 0, zone="b")
    streams = f"{{a: {STREAM}, b: {STREAM}, c: {STREAM}, d: {STREAM}}}"
    resources = (
        "{a: {gpus_per_worker: 0.5, workers: {max: 1}}, b: {gpus_per_worker: 0.5}, "
        "c: {cpus_per_worker: 1}, d: {labels: {zone: b}}}"
    )
    job = make(tmp_path, 8, 0.1, resources, streams)
    finish(start(nodes.address, job))
    raylets = {s: {p["raylet"] for p in places(job, s)} for s in "abcd"}
    assert raylets["a"] == raylets["b"] and len(raylets["a"]) == 1
    assert not raylets["c"] & raylets["a"], "what needs no GPU keeps off its node"
    assert len(raylets["d"]) == 1 and not raylets["d"] & raylets["a"]
    assert {p["gpu"] for s in "ab" for p in places(job, s)} == {"0"}
    assert max(sharers(places(job, "a") + places(job, "b")).values()) <= 2
    for each in (gpu, cpu, other):
        nodes.ask("kill", each)


@pytest.mark.long  # pytest -m long tests/pipelines
@pytest.mark.ray
def test_a_cluster_grows_from_a_head_alone_and_shrinks_again(tmp_path: Path) -> None:
    """Ray's real autoscaler, with fake nodes: it learns from us what could be kept busy."""
    resources = {"CPU": 2, "GPU": 1, "object_store_memory": 100 << 20}
    node = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 2}
    job = make(tmp_path, 40, 0.5, "{text: {gpus_per_worker: 1}}", f"{{text: {STREAM}}}")
    with running_head("--num-cpus=0", "--num-gpus=0", autoscaler={"gpu": node}) as head:
        assert "40 of 40" in finish(start(head.gcs, job))
        shared = sharers(places(job))
        assert len({raylet for raylet, _ in shared}) == 2 and set(shared.values()) == {1}
        log = head.folder / "ray" / "session_latest" / "logs" / "monitor.log"
        until = time.monotonic() + 60
        while "Resized to 0 CPUs" not in log.read_text():
            assert time.monotonic() < until, "idle nodes were not given back"
            time.sleep(0.2)
