"""Who is told how a run goes, beside its progress bar: tally, log, metrics, lease, autoscaler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenmill.pipelines.coordinator import Coordinator
from tokenmill.pipelines.executors import Executor, Running
from tokenmill.pipelines.run_log import RunLog
from tokenmill.pipelines.tally import Tally
from tokenmill.schemas.work import TaskResult
from tokenmill.store.lease import Lease

if TYPE_CHECKING:
    from tokenmill.pipelines.metrics import RunMetrics

# Gauges and leases are looked at every few seconds: the loop turns more often.
EVERY_SECONDS = 1.0


class Observing:
    """executor: told what could be kept busy; metrics need Ray. log: a path, `-`, or None."""

    def __init__(
        self, *, job: str, run: str, leases: Sequence[Lease], log: str | None, executor: Executor
    ) -> None:
        self.tally = Tally()
        self._leases = leases
        self._log = RunLog(log, job=job, run=run) if log else None
        self._metrics: RunMetrics | None = None
        self._executor = executor
        if executor.name == "ray":
            # half a second of imports, and only where Ray is there already
            from tokenmill.pipelines.metrics import RunMetrics  # noqa: PLC0415 - see above

            self._metrics = RunMetrics(job)
        self._last = 0.0
        if self._log:
            self._log.event("started")

    def committed(self, pipeline: str, results: Sequence[TaskResult]) -> None:
        self.tally.add(pipeline, results)
        if self._log:
            self._log.committed(pipeline, results)
        if self._metrics:
            self._metrics.committed(pipeline, results)

    def watch(self, coordinator: Coordinator, running: Running) -> None:
        now = time.monotonic()
        if now - self._last < EVERY_SECONDS:
            return
        self._last = now
        self._executor.want(coordinator.wanted())
        if self._metrics:
            self._metrics.watch(coordinator)
        counts = coordinator.counts
        for lease in self._leases:
            lease.tell(
                {
                    "tasks": counts.planned,
                    "finished": counts.finished,
                    "samples": counts.samples + running.samples,
                    "tokens": counts.tokens + running.tokens,
                    "quarantined": counts.quarantined,
                    "workers": coordinator.workers,
                    "waiting": coordinator.paused_for,
                }
            )

    def ended(self, exit_code: int, why: str, coordinator: Coordinator) -> None:
        if self._metrics:
            self._metrics.watch(coordinator)
            self._metrics.ended(exit_code)
        if self._log:
            self._log.event("ended", exit_code=exit_code, why=why)
            self._log.close()
