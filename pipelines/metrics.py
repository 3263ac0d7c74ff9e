"""A run's numbers for Prometheus, through Ray: each node's agent offers them beside Ray's own.

Everything is observed on the driver, from committed tasks: what is counted is what the ledger has.
Ray puts `ray_` before every name and its own labels beside ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from tokenmill.pipelines.coordinator import Coordinator
from tokenmill.pipelines.metric_names import COUNTERS, GAUGES, PREFIX
from tokenmill.pipelines.tally import ACTIVITIES, StreamTally
from tokenmill.schemas.work import TaskResult


class RunMetrics:
    """One run's. Needs an initialized Ray."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._counters = {
            name: Counter(PREFIX + name, description=text, tag_keys=tags)
            for name, (text, tags) in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + name, description=text, tag_keys=tags)
            for name, (text, tags) in GAUGES.items()
        }
        self._gauges["store_waiting"].set(0, tags={"job": job})
        self._sums: dict[tuple[str, str], StreamTally] = {}

    def committed(self, pipeline: str, results: Sequence[TaskResult]) -> None:
        for result in results:
            tags = self._tags(pipeline, result.stream)
            self._count(result, tags)
            tally = self._sums.setdefault((pipeline, result.stream), StreamTally())
            tally.add(result)
            self._gauges["gpu_memory_bytes"].set(tally.gpu_bytes, tags=tags)
            if tally.batch_fill is not None:
                self._gauges["batch_fill"].set(tally.batch_fill, tags=tags)

    def _count(self, result: TaskResult, tags: dict[str, str]) -> None:
        amounts: dict[str, float] = {
            "samples": result.enumerated,
            "tokens": result.tokens,
            "shard_bytes": sum(shard.size for shard in result.shards),
            "source_bytes": result.stats.bytes_read,
            "tasks": 1,
        }
        for name, amount in amounts.items():
            self._inc(name, amount, tags)
        for activity in (*ACTIVITIES, "wait"):
            spent = getattr(result.stats, activity)
            self._inc("worker_seconds", spent, {**tags, "activity": activity})
        for fault in (*result.quarantined, *result.input_faults):
            self._inc("quarantined", 1, {**tags, "reason": fault.reason})

    def _inc(self, name: str, amount: float, tags: dict[str, str]) -> None:
        if amount > 0:  # Ray refuses to count nothing
            self._counters[name].inc(amount, tags=tags)

    def watch(self, coordinator: Coordinator) -> None:
        for (pipeline, stream), load in coordinator.load().items():
            tags = self._tags(pipeline, stream)
            self._gauges["tasks_queued"].set(load.queued, tags=tags)
            self._gauges["tasks_running"].set(load.running, tags=tags)
            self._gauges["workers"].set(load.workers, tags=tags)
        waiting = 1 if coordinator.paused_for else 0
        self._gauges["store_waiting"].set(waiting, tags={"job": self._job})

    def ended(self, exit_code: int) -> None:
        # a counter: the gauges of a driver that is gone are gone as well
        self._inc("runs", 1, {"job": self._job, "exit_code": str(exit_code)})

    def _tags(self, pipeline: str, stream: str) -> dict[str, str]:
        return {"job": self._job, "pipeline": pipeline, "stream": stream}
