"""What carries the coordinator's decisions out: one contract, two executors.

`LocalExecutor` runs workers as processes of this machine, `RayExecutor` (ray_executor.py) as
actors of a cluster. Both run the same worker code; they differ only in how work starts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

from tokenmill.pipelines.coordinator import (
    Answered,
    Event,
    Pool,
    WorkerFailed,
    WorkerLost,
    WorkerReady,
)
from tokenmill.pipelines.placement import Node
from tokenmill.schemas.job import Job, Policy
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.schemas.work import FailureClass, Task
from tokenmill.workers.local import LocalWorker


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """Samples and tokens of tasks under way: only for the progress bar."""

    samples: int = 0
    tokens: int = 0


class Executor(Protocol):
    """Starts, feeds and stops workers, and reports what became of them."""

    name: str
    cpus: float
    gpus: float

    def start(self, worker: int, pool: Pool) -> None: ...

    def assign(self, worker: int, task: Task) -> None: ...

    def stop(self, worker: int) -> None: ...

    def wait(self, timeout: float) -> list[Event]:
        """What happened, at the latest after `timeout` seconds (then perhaps nothing)."""
        ...

    def facts(self) -> Mapping[Pool, WorkerFacts]:
        """What the workers that became ready said of their tokenizers."""
        ...

    def running(self) -> Running: ...

    def nodes(self) -> tuple[Node, ...]:
        """What there is room on, by node."""
        ...

    def want(self, wanted: Mapping[Pool, int]) -> None:
        """So many workers could be kept busy: news for an autoscaler."""
        ...

    def close(self) -> None:
        """Stop every worker that is left, at once."""
        ...


class LocalExecutor:
    """Workers as child processes: no cluster, the same worker code."""

    name = "local"

    def __init__(self, job: Job) -> None:
        self._job = job
        self.cpus = float(len(os.sched_getaffinity(0)))
        self.gpus = float(os.environ.get("TOKENMILL_LOCAL_GPUS", "0"))
        self._workers: dict[int, LocalWorker] = {}
        self._pools: dict[int, Pool] = {}
        self._facts: dict[Pool, WorkerFacts] = {}
        self._running: dict[tuple[int, int], Running] = {}

    def start(self, worker: int, pool: Pool) -> None:
        self._pools[worker] = pool
        self._workers[worker] = LocalWorker.start(self._job, pool[0], pool[1], worker)

    def assign(self, worker: int, task: Task) -> None:
        # a dead one is reported by its sentinel, with this task among those it held
        with suppress(BrokenPipeError):
            self._workers[worker].send(task)

    def stop(self, worker: int) -> None:
        local = self._workers.pop(worker, None)
        if local is not None:
            local.kill()  # nothing it still does is wanted
        self._forget_running(worker)

    def wait(self, timeout: float) -> list[Event]:
        by_handle: dict[Any, int] = {}
        for id_, worker in self._workers.items():
            by_handle[worker.connection] = id_
            by_handle[worker.sentinel] = id_
        if not by_handle:
            return []
        ready = {by_handle[handle] for handle in wait(list(by_handle), timeout)}
        events: list[Event] = []
        for id_ in sorted(ready):
            events += self._receive(id_)
        return events

    def _receive(self, id_: int) -> list[Event]:
        """All messages of one worker; its death comes after its last message."""
        worker, pool = self._workers[id_], self._pools[id_]
        events: list[Event] = []
        try:
            while worker.connection.poll():
                kind, body = worker.connection.recv()
                match kind:
                    case "ready":
                        self._facts[pool] = body
                        events.append(WorkerReady(worker=id_))
                    case "failed":
                        events.append(WorkerFailed(worker=id_, error=body))
                    case "result" | "failure":
                        self._running.pop((id_, body.attempt), None)
                        events.append(Answered(worker=id_, pipeline=pool[0], answer=body))
                    case "progress":
                        for p in body:
                            running = Running(samples=p.samples, tokens=p.tokens)
                            self._running[id_, p.attempt] = running
        except (EOFError, ConnectionResetError):
            pass  # it died: the sentinel says how
        if worker.exit_code() is not None:
            held = worker.in_flight()  # before kill: that removes the page
            code = worker.kill()
            overdue = code == -signal.SIGALRM
            del self._workers[id_]
            self._forget_running(id_)
            events.append(
                WorkerLost(
                    worker=id_,
                    kind=FailureClass.WORKER,
                    why=too_long(self._job.policy) if overdue else _death(code),
                    reason="timeout" if overdue else "process-died",
                    in_flight=tuple(held.samples) if held else (),
                    unit=held.unit if held else None,
                )
            )
        return events

    def _forget_running(self, worker: int) -> None:
        for key in [k for k in self._running if k[0] == worker]:
            del self._running[key]

    def facts(self) -> Mapping[Pool, WorkerFacts]:
        return self._facts

    def running(self) -> Running:
        values = self._running.values()
        return Running(samples=sum(r.samples for r in values), tokens=sum(r.tokens for r in values))

    def nodes(self) -> tuple[Node, ...]:
        return (Node(cpus=self.cpus, gpus=self.gpus),)

    def want(self, wanted: Mapping[Pool, int]) -> None:
        pass  # this machine does not grow

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()


def too_long(policy: Policy) -> str:
    return f"it did not come back within policy.encode_seconds ({policy.encode_seconds:g} s)"


def _death(code: int) -> str:
    """`killed by SIGKILL` or `exit code 1`."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (the kernel's out-of-memory killer, perhaps)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
