"""The thin loop between the coordinator, an executor and the ledger."""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tokenmill.pipelines.coordinator import (
    Assign,
    Commit,
    CommitPostponed,
    Committed,
    Coordinator,
    Decision,
    Event,
    Finish,
    NewTask,
    Replan,
    Replanned,
    ReplanPostponed,
    StartWorker,
    StopAsked,
    StopWorker,
    Tick,
)
from tokenmill.pipelines.executors import Executor, Running
from tokenmill.schemas.errors import JobError, StoreUnavailable
from tokenmill.schemas.job import Limits
from tokenmill.schemas.work import TaskResult
from tokenmill.store.ledger import Entry, Ledger, StreamFacts

# Also how soon a signal or a limit is noticed.
TICK_SECONDS = 0.25


@dataclass(kw_only=True)
class Committer:
    """Puts results into the ledger, by pipeline."""

    ledger: Ledger
    run: str
    facts: Mapping[str, Mapping[str, StreamFacts]]  # pipeline -> stream -> facts
    run_row: Mapping[str, Any]
    # told (pipeline, results) of what is in the ledger now
    observers: Sequence[Callable[[str, Sequence[TaskResult]], None]] = ()
    committed: int = 0

    def commit(self, decision: Commit) -> list[Event]:
        """One event for each group of entries that were planned at the same state of the ledger.

        What a group committed stays committed when the store fails on the next one.
        """
        groups: dict[int, list[tuple[NewTask, Any]]] = defaultdict(list)
        for new, result in decision.results:
            groups[new.planned_seq].append((new, result))
        events: list[Event] = []
        for planned_seq, results in sorted(groups.items()):
            try:
                outcome = self.ledger.commit(
                    decision.pipeline,
                    [
                        Entry(
                            unit=n.unit,
                            result=r,
                            replaces=n.replaces,
                            parent=n.parent.stream if n.parent else None,
                        )
                        for n, r in results
                    ],
                    run=self.run,
                    planned_seq=planned_seq,
                    facts=self.facts[decision.pipeline],
                    run_row=self.run_row,
                )
            except StoreUnavailable as error:
                events.append(CommitPostponed(pipeline=decision.pipeline, why=str(error)))
                break
            self.committed += len(outcome.committed)
            names = set(outcome.committed)
            mine = [r for _, r in results if (r.unit, r.stream) in names]
            for observe in self.observers:
                observe(decision.pipeline, mine)
            events.append(
                Committed(
                    pipeline=decision.pipeline,
                    committed=outcome.committed,
                    dropped=outcome.dropped,
                )
            )
        return events


Replanner = Callable[[str, Sequence[str]], Sequence[NewTask]]
Watcher = Callable[[Coordinator, Running], None]


def drive(
    coordinator: Coordinator,
    executor: Executor,
    committer: Committer,
    *,
    replan: Replanner,
    watch: Watcher,
    stops: Callable[[], StopAsked | None],
) -> Finish:
    """Until the coordinator says Finish. `stops` is asked at every turn whether to stop."""
    events: list[Event] = [Tick()]
    while True:
        asked = stops()
        if asked is not None:
            events.append(asked)
        for event in events or [Tick()]:
            finish = turn(
                coordinator, event, executor, committer, replan=replan, clock=time.monotonic
            )
            if finish is not None:
                watch(coordinator, Running())
                return finish
        watch(coordinator, executor.running())
        events = executor.wait(TICK_SECONDS)
        if not events and not coordinator.workers:
            time.sleep(TICK_SECONDS)  # paused with no worker left: nothing to wait on


def turn(
    coordinator: Coordinator,
    event: Event,
    executor: Executor,
    committer: Committer,
    *,
    replan: Replanner,
    clock: Callable[[], float],
) -> Finish | None:
    """One event and all that follows from it at once."""
    pending: list[Event] = [event]
    while pending:
        for decision in coordinator.handle(pending.pop(0), clock()):
            if isinstance(decision, Finish):
                return decision
            pending += _carry_out(decision, executor, committer, replan)
    return None


def _carry_out(
    decision: Decision, executor: Executor, committer: Committer, replan: Replanner
) -> list[Event]:
    match decision:
        case StartWorker():
            executor.start(decision.worker, decision.pool)
        case StopWorker():
            executor.stop(decision.worker)
        case Assign():
            executor.assign(decision.worker, decision.task)
        case Commit():
            return committer.commit(decision)
        case Replan():
            try:
                tasks = replan(decision.pipeline, decision.uris)
            except StoreUnavailable as error:
                return [ReplanPostponed(decision=decision, why=str(error))]
            except JobError as error:  # what is finished is committed, and the run ends
                return [StopAsked(why=str(error), exit_code=error.exit_code)]
            return [Replanned(tasks=tuple(tasks))]
        case Finish():
            pass
    return []


class Stops:
    """Why a run should stop: a signal, a limit of the job, or the lease taken by another run."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._why = ""
        self._lost: Callable[[], bool] = lambda: False
        self._signal: int | None = None

    def begin(self, limits: Limits, *, lost: Callable[[], bool], gpus: float = 0.0) -> None:
        """The work begins: the clocks of the limits start."""
        self._lost = lost
        for seconds, why in _deadlines(limits, gpus):
            if self._deadline is None or time.monotonic() + seconds < self._deadline:
                self._deadline, self._why = time.monotonic() + seconds, why

    def __call__(self) -> StopAsked | None:
        if self._signal is not None:
            return StopAsked(why=f"{signal.Signals(self._signal).name} received")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return StopAsked(why=self._why)
        if self._lost():
            return StopAsked(why="the lease was taken over by another run", exit_code=3)
        return None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop in order; a second one kills at once, as is usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, _frame: Any) -> None:
            if self._signal is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._signal = number

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _deadlines(limits: Limits, gpus: float) -> Iterator[tuple[float, str]]:
    if limits.minutes is not None:
        yield limits.minutes * 60, f"limits.minutes ({limits.minutes:g}) used up"
    if limits.gpu_hours is not None and gpus > 0:
        yield limits.gpu_hours * 3600 / gpus, f"limits.gpu_hours ({limits.gpu_hours:g}) used up"
    if limits.until is not None:
        now = datetime.now().astimezone()
        hour, minute = map(int, limits.until.split(":"))
        end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if end <= now:
            end += timedelta(days=1)
        yield (end - now).total_seconds(), f"limits.until ({limits.until}) reached"
