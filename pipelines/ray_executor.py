"""Workers as Ray actors: pinned to their CPUs and GPUs, each stream with its own runtime_env.

Only Ray *core*: actors are long-lived, units are planned before launch, and only small records
cross the object store (design section 3). The head node needs no CPUs.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import ray
from ray import exceptions as ray_errors

from tokenmill.pipelines.coordinator import (
    Answered,
    CapacityChanged,
    Event,
    Pool,
    WorkerFailed,
    WorkerLost,
    WorkerReady,
)
from tokenmill.pipelines.executors import Running, too_long
from tokenmill.pipelines.placement import Node
from tokenmill.schemas.errors import StoreError, TokenmillError
from tokenmill.schemas.job import Job, Resources
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.schemas.work import FailureClass, Task
from tokenmill.workers.actor import actor_class, in_flight, in_flight_on
from tokenmill.workers.inflight import Held

# The object store carries only small records; the default of 30 % of memory is pages wasted.
OBJECT_STORE_BYTES = 128 << 20
PAGE_SECONDS = 30.0  # to read a dead actor's page on another node
# How soon a node that joined or left is noticed.
NODES_SECONDS = 2.0
# Of a stream; an autoscaler that brings so many at a time is fast enough.
MOST_SCOUTS = 16


def connect(address: str | None) -> None:
    """Join the cluster at `address` (auto, host:port, ray://…) or start one on this machine.

    Authentication is Ray's: `RAY_AUTH_MODE` and `RAY_AUTH_TOKEN_PATH` are honoured when set. Unset,
    a cluster of our own is started without token, so that it leaves no token file behind that
    would turn a later `ray start` on this machine token-only.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # stdout belongs to our progress and JSON lines
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if ray.is_initialized():
        return
    try:
        if address and address != "local":
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **common,
            )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise StoreError(
            "cannot reach a Ray cluster" if address else "cannot start Ray on this machine",
            where=address or "local",
            why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            remedy="check --address (`ray status` there), or run with --executor local",
        ) from error


class RayExecutor:
    """See `Executor`. Owns the cluster only where it started it."""

    name = "ray"

    def __init__(self, job: Job, address: str | None = None) -> None:
        self._job = job
        self._ours = not ray.is_initialized()
        self._ours_alone = self._ours and address in (None, "local")
        connect(address)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.cpus = float(resources.get("CPU", 0))
        self.gpus = float(resources.get("GPU", 0))
        self._actors: dict[int, Any] = {}
        self._pools: dict[int, Pool] = {}
        self._pages: dict[int, str] = {}
        self._refs: dict[Any, tuple[str, int]] = {}
        self._homes: dict[int, str] = {}
        self._facts: dict[Pool, WorkerFacts] = {}
        self._running: dict[int, Running] = {}
        # in-flight pages lie in each node's own folder: read back where this is that node
        self._tag = uuid.uuid4().hex[:12]
        self._nodes = _nodes()
        self._looked = time.monotonic()
        self._scouts: dict[Pool, list[Any]] = {}
        self._nothing = ray.remote(_nothing)

    def start(self, worker: int, pool: Pool) -> None:
        need = self._job.resources.get(pool[1], Resources())
        stream = self._job.pipelines[pool[0]].streams[pool[1]]
        page = f"{self._tag}-{worker}"
        actor = actor_class(
            # a machine with fewer CPUs than a worker asks for still does the work; a cluster may
            # yet get the node that is asked for
            num_cpus=min(need.cpus_per_worker, self.cpus)
            if self._ours_alone
            else need.cpus_per_worker,
            num_gpus=need.gpus_per_worker,
            **({"label_selector": dict(need.labels)} if need.labels else {}),
            runtime_env=stream.runtime_env or None,
        ).remote(self._job, pool[0], pool[1], page)
        self._actors[worker], self._pools[worker], self._pages[worker] = actor, pool, page
        self._refs[actor.facts.remote()] = ("facts", worker)
        self._refs[actor.node.remote()] = ("node", worker)

    def assign(self, worker: int, task: Task) -> None:
        actor = self._actors[worker]
        self._refs[actor.run.remote(task)] = ("run", worker)

    def stop(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)
        self._forget(worker)

    def wait(self, timeout: float) -> list[Event]:
        return [*self._capacity(), *self._answers(timeout)]

    def nodes(self) -> tuple[Node, ...]:
        return self._nodes

    def _capacity(self) -> list[Event]:
        if time.monotonic() - self._looked < NODES_SECONDS:
            return []
        found = _nodes()
        self._looked = time.monotonic()
        if found == self._nodes:
            return []
        self._nodes = found
        return [CapacityChanged(nodes=found)]

    def want(self, wanted: Mapping[Pool, int]) -> None:
        """Show an autoscaler what there is no room for: as tasks that wait for it and do nothing.

        Not `request_resources`: what that asks for outlives a killed driver, and nodes with it.
        """
        if self._ours_alone:
            return
        for pool, count in wanted.items():
            need = self._job.resources.get(pool[1], Resources())
            have = sum(self._pools[worker] == pool for worker in self._actors)
            takes = need.cpus_per_worker or need.gpus_per_worker
            missing = min(max(0, count - have), MOST_SCOUTS) if takes else 0
            self._scout(pool, need, missing)

    def _scout(self, pool: Pool, need: Resources, count: int) -> None:
        waiting = self._scouts.pop(pool, [])
        if waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        while len(waiting) > count:
            ray.cancel(waiting.pop())
        scout = self._nothing.options(
            num_cpus=need.cpus_per_worker,
            num_gpus=need.gpus_per_worker,
            max_retries=0,
            **({"label_selector": dict(need.labels)} if need.labels else {}),
        )
        while len(waiting) < count:
            waiting.append(scout.remote())
        if waiting:
            self._scouts[pool] = waiting

    def _answers(self, timeout: float) -> list[Event]:
        if not self._refs:
            return []
        ready, _ = ray.wait(
            list(self._refs), num_returns=len(self._refs), timeout=0, fetch_local=True
        )
        if not ready:
            ready, _ = ray.wait(list(self._refs), num_returns=1, timeout=timeout)
        events: list[Event] = []
        for ref in ready:
            what, worker = self._refs.pop(ref, ("", -1))
            if worker in self._actors:
                events += self._receive(ref, what, worker)
        return events

    def _receive(self, ref: Any, what: str, worker: int) -> list[Event]:
        pool = self._pools[worker]
        try:
            value = ray.get(ref)
        except ray_errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return [WorkerFailed(worker=worker, error=cause)]
        except ray_errors.RuntimeEnvSetupError as error:
            return [WorkerFailed(worker=worker, error=_runtime_env_error(pool, error))]
        except (ray_errors.RayActorError, ray_errors.WorkerCrashedError) as error:
            if isinstance(error.__cause__, TokenmillError):
                return [WorkerFailed(worker=worker, error=error.__cause__)]
            return self._lost(worker, error)
        match what:
            case "facts":
                self._facts[pool] = value
                return [WorkerReady(worker=worker)]
            case "run":
                self._running.pop(worker, None)
                return [Answered(worker=worker, pipeline=pool[0], answer=value)]
            case "node":
                self._homes[worker] = value
            case "progress":
                self._running[worker] = Running(
                    samples=sum(p.samples for p in value), tokens=sum(p.tokens for p in value)
                )
        return []

    def _lost(self, worker: int, error: Exception) -> list[Event]:
        creation = getattr(error, "cause", None)
        if isinstance(creation, TokenmillError):  # raised by the actor's __init__
            return [WorkerFailed(worker=worker, error=creation)]
        place = isinstance(error, ray_errors.ActorUnavailableError) or _node_gone(error)
        held = None if place else self._held(worker)
        patience = self._job.policy.encode_seconds
        overdue = held is not None and 0 < patience <= held.seconds
        self.stop(worker)
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = FailureClass.PLACE if place else FailureClass.WORKER
        return [
            WorkerLost(
                worker=worker,
                kind=kind,
                why=too_long(self._job.policy) if overdue else why,
                reason="timeout" if overdue else "process-died",
                in_flight=tuple(held.samples) if held else (),
                unit=held.unit if held else None,
            )
        ]

    def _held(self, worker: int) -> Held | None:
        """What the dead actor's page says, on whichever node it lies."""
        node, page = self._homes.get(worker), self._pages[worker]
        if node is None or node == ray.get_runtime_context().get_node_id():
            return in_flight(page)
        return in_flight_on(node, page, PAGE_SECONDS)

    def _forget(self, worker: int) -> None:
        self._running.pop(worker, None)
        for ref in [r for r, (_, w) in self._refs.items() if w == worker]:
            del self._refs[ref]

    def facts(self) -> Mapping[Pool, WorkerFacts]:
        return self._facts

    def running(self) -> Running:
        """As the actors last said; asks them again for the next time."""
        asked = {w for what, w in self._refs.values() if what == "progress"}
        busy = {w for what, w in self._refs.values() if what == "run"}
        for worker in busy - asked:
            self._refs[self._actors[worker].progress.remote()] = ("progress", worker)
        values = self._running.values()
        return Running(samples=sum(r.samples for r in values), tokens=sum(r.tokens for r in values))

    def close(self) -> None:
        for worker in list(self._actors):
            self.stop(worker)
        for waiting in self._scouts.values():
            for scout in waiting:
                ray.cancel(scout)
        if self._ours:
            ray.shutdown()


def _nothing() -> None:
    pass


def _nodes() -> tuple[Node, ...]:
    """Nodes that live, sorted. One that is being drained counts until it is gone: Ray places
    nothing more on it, so a worker that we start meanwhile waits a little."""
    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            have = node["Resources"]
            found.append(
                Node(
                    cpus=float(have.get("CPU", 0)),
                    gpus=float(have.get("GPU", 0)),
                    labels=dict(node.get("Labels") or {}),
                    id=node["NodeID"],
                )
            )
    return tuple(sorted(found, key=lambda each: each.id))


def _runtime_env_error(pool: Pool, error: Exception) -> TokenmillError:
    return StoreError(
        f"the runtime environment of stream {pool[1]!r} cannot be set up",
        where=f"pipelines.{pool[0]}.streams.{pool[1]}.runtime_env",
        why=str(error).strip().splitlines()[0],
        remedy="check its pip or conda requirements against the cluster's nodes",
    )


def _node_gone(error: Exception) -> bool:
    """Whether the actor went with its node: lost, drained or preempted."""
    if getattr(error, "preempted", False):
        return True
    text = str(error).lower()
    return "node" in text and ("died" in text or "dead" in text) and "node was terminated" in text
