"""StreamWorker as a Ray actor. The only module of ours below the driver that imports ray."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenmill.schemas.job import Job
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.schemas.work import Task, TaskFailure, TaskResult
from tokenmill.workers.inflight import Held, page_folder, read_page
from tokenmill.workers.local import SLOTS
from tokenmill.workers.memory import keep_freed_memory
from tokenmill.workers.worker import Progress, StreamWorker

# two slots, and calls that must be answered while both are busy
MAX_CONCURRENCY = SLOTS + 2


class StreamActor:
    """Ray builds it at once; the tokenizer is loaded by the first `facts` or `run`.

    So a bad checkpoint is the typed error of a call (`RayTaskError.cause`), not a dead actor.
    page: a file name (no folder): each node has its own folder of in-flight pages.
    """

    def __init__(self, job: Job, pipeline: str, stream: str, page: str) -> None:
        keep_freed_memory()
        self._arguments = (job, pipeline, stream)
        self._page = page_folder() / Path(page).name
        self._lock = threading.Lock()
        self._worker: StreamWorker | None = None
        # left by an earlier life of this actor on this node, before we write our own
        self._left = read_page(self._page)

    def facts(self) -> WorkerFacts:
        """Raises TokenizerError, JobError or StoreError where the worker cannot be set up."""
        return self._ready().facts()

    def run(self, task: Task) -> TaskResult | TaskFailure:
        return self._ready().run(task)

    def progress(self) -> tuple[Progress, ...]:
        worker = self._worker
        return worker.progress() if worker else ()

    def node(self) -> str:
        """Where it runs: its page lies there."""
        return str(ray.get_runtime_context().get_node_id())

    def ping(self) -> int:
        """The process id: it lives."""
        return os.getpid()

    def left_in_flight(self) -> Held | None:
        """What an earlier actor of the same page name on this node died with."""
        return self._left

    def close(self) -> None:
        with self._lock:
            if self._worker:
                self._worker.close()
                self._worker = None

    def _ready(self) -> StreamWorker:
        with self._lock:
            if self._worker is None:
                job, pipeline, stream = self._arguments
                self._worker = StreamWorker(job, pipeline, stream, page=self._page, killable=True)
            return self._worker


def actor_class(**options: Any) -> Any:
    """The Ray actor class; `options` as for `.options()`: num_cpus, num_gpus, runtime_env, name.

    No restarts by Ray: the coordinator counts attempts and starts another.
    """
    options.setdefault("max_concurrency", MAX_CONCURRENCY)
    return ray.remote(StreamActor).options(max_restarts=0, max_task_retries=0, **options)


def in_flight_on(node: str, page: str, timeout: float) -> Held | None:
    """As `in_flight`, asked of another node; None where it does not answer in `timeout` s."""
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    asked = ray.remote(in_flight).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        held: Held | None = ray.get(asked.remote(page), timeout=timeout)
    except ray_errors.RayError:  # the node went with it
        return None
    return held


def in_flight(page: str) -> Held | None:
    """What the actor with this page held when it died, where the page lies on this node."""
    return read_page(page_folder() / Path(page).name)
