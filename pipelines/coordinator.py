"""The coordinator: a pure state machine. Events in, decisions out; no clock, no I/O, no Ray.

A thin loop (pipelines/loop.py) turns what happens into events and carries the decisions out; a
simulator can do the same a million times faster. One attempt token per assignment: a late answer
of an attempt that was given up is recognised by its token and ignored.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tokenmill.pipelines.placement import Need, Node, fits
from tokenmill.schemas.ledger import FORGOTTEN
from tokenmill.schemas.work import (
    FailureClass,
    ParentRows,
    Task,
    TaskFailure,
    TaskResult,
    WorkUnit,
)

Pool = tuple[str, str]  # (pipeline, stream): each has its own workers
Name = tuple[str, bytes, str]  # (pipeline, unit, stream)

# Two tasks a worker: the next unit's reading overlaps this one's encoding.
SLOTS = 2
COMMIT_SECONDS = 15.0
COMMIT_UNITS = 64
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# Samples condemned one after the other without a finished task between them: not their fault.
CONDEMNED_IN_A_ROW = 20
REPLANS = 3
# A pool whose workers die before they are ready, so often in a row, is not going to start.
FAILED_STARTS = 3
# A worker's start costs about this much, with weights from a node's cache.
IDLE_SECONDS = 30.0
_TAKEN_OUT = (FORGOTTEN, "taken out by `tokenmill forget`")


# ---------------------------------------------------------------------------------- events


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReady:
    worker: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFailed:
    """A worker could not start for a reason of the job's: a bad checkpoint, a licence."""

    worker: int
    error: Exception


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLost:
    """The process died (kind WORKER) or its node did (kind PLACE)."""

    worker: int
    kind: FailureClass
    why: str
    in_flight: tuple[bytes, ...] = ()  # samples that native code held
    unit: bytes | None = None  # the unit they belong to
    reason: str = "process-died"  # what a sample alone in native code is quarantined with


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    worker: int
    pipeline: str
    answer: TaskResult | TaskFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    pipeline: str
    committed: tuple[tuple[bytes, str], ...]
    dropped: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitPostponed:
    """The store did not take the commit; the entries are still ours."""

    pipeline: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Replanned:
    """New tasks in place of those whose inputs changed or whose cells others committed."""

    tasks: tuple[NewTask, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplanPostponed:
    """The places could not be looked at: the store or the source did not answer."""

    decision: Replan
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StopAsked:
    why: str
    exit_code: int = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityChanged:
    """Nodes joined, left or are being drained."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time went by."""


Event = (
    WorkerReady
    | WorkerFailed
    | WorkerLost
    | Answered
    | Committed
    | CommitPostponed
    | Replanned
    | ReplanPostponed
    | StopAsked
    | CapacityChanged
    | Tick
)


# ------------------------------------------------------------------------------- decisions


@dataclass(frozen=True, kw_only=True, slots=True)
class StartWorker:
    worker: int
    pool: Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class StopWorker:
    worker: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assign:
    worker: int
    task: Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    pipeline: str
    results: tuple[tuple[NewTask, TaskResult], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replan:
    """Look again at these places (all of the pipeline's, when none is named)."""

    pipeline: str
    uris: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    exit_code: int
    why: str
    error: Exception | None = None


Decision = StartWorker | StopWorker | Assign | Commit | Replan | Finish


# ----------------------------------------------------------------------------------- state


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTask:
    """What the plan asks for.

    after: the parent stream, whose task of the same unit is added before this one and must be
    committed first. parent: the committed rows to read; known at once, or from that commit on.
    """

    unit: WorkUnit
    stream: str
    recipe: str
    planned_seq: int  # the ledger's sequence that the plan knew
    replaces: bool = False
    forgotten: frozenset[bytes] = frozenset()  # samples that get no tokens, unread
    after: str | None = None
    parent: ParentRows | None = None

    @property
    def pool(self) -> Pool:
        return self.unit.pipeline, self.stream

    @property
    def name(self) -> Name:
        return self.unit.pipeline, self.unit.id, self.stream


@dataclass(kw_only=True, slots=True)
class _Work:
    """One task's way through the run."""

    new: NewTask
    state: Literal["blocked", "waiting", "running", "done", "committing", "failed"] = "waiting"
    lost: int = 0  # unexplained deaths of its worker: these are the attempts
    attempt: int | None = None
    avoid: int | None = None  # a worker it failed on
    isolate: frozenset[bytes] = frozenset()
    alone: dict[bytes, int] = field(default_factory=dict)  # deaths while native code held only it
    condemned: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    tolerate: frozenset[str] = frozenset()
    suspected: frozenset[str] = frozenset()
    result: TaskResult | None = None


@dataclass(kw_only=True, slots=True)
class _Worker:
    pool: Pool
    state: Literal["starting", "ready"] = "starting"
    running: dict[int, Name] = field(default_factory=dict)
    idle_since: float | None = None


@dataclass(kw_only=True, slots=True)
class _Held:
    """Places to plan again, as soon as none of these tasks is under way there: a plan made before
    would overlap what they are about to commit."""

    uris: set[str] = field(default_factory=set)
    blockers: set[Name] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLimits:
    """How many workers a pool may have, and what of the shared capacity one of them takes."""

    most: int
    cpus: float = 1.0
    gpus: float = 0.0
    least: int = 0  # kept although they have nothing to do
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def need(self) -> Need:
        return Need(cpus=self.cpus, gpus=self.gpus, labels=self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One pool, for people who watch."""

    queued: int
    running: int
    workers: int


@dataclass(kw_only=True)
class Counts:
    """For the progress bar and the summary."""

    planned: int = 0
    finished: int = 0
    committed: int = 0
    failed: int = 0
    samples: int = 0
    tokens: int = 0
    quarantined: int = 0  # without those that were forgotten before
    absent: int = 0
    input_faults: int = 0
    stored: int = 0  # bytes of shard files


def _quarantined(result: TaskResult) -> int:
    return sum(fault.reason != FORGOTTEN for fault in result.quarantined)


class Coordinator:
    """`handle(event, now)` returns the decisions to carry out, in order."""

    def __init__(
        self,
        *,
        run: str,
        pools: Mapping[Pool, PoolLimits],
        cpus: float,
        gpus: float = 0.0,
        attempts: int = 3,
        store_patience: float = 600.0,
        nodes: Sequence[Node] | None = None,
    ) -> None:
        """cpus, gpus: of one machine, unless `nodes` says what there is."""
        self._run = run
        self._pools = dict(pools)
        self._nodes = tuple(nodes) if nodes is not None else (Node(cpus=cpus, gpus=gpus),)
        self._attempts = attempts
        self._store_patience = store_patience
        self._work: dict[Name, _Work] = {}
        self._waiting: dict[Pool, deque[Name]] = {pool: deque() for pool in pools}
        # a task -> those that wait for its commit, each once though it was planned again
        self._children: dict[Name, dict[Name, None]] = {}
        self._workers: dict[int, _Worker] = {}
        self._next_worker = 0
        self._next_attempt = 0
        self._done: dict[str, list[Name]] = {}
        self._committing: dict[str, list[Name]] = {}  # told of group by group
        self._oldest_done: float | None = None
        self._paused_until = 0.0
        self._pause = FIRST_PAUSE
        self._store_failing_since: float | None = None
        self._store_why = ""
        self._stop: StopAsked | None = None
        self._fatal: Finish | None = None
        self._finished = False
        self._condemned_in_a_row = 0
        self._failed_starts: dict[Pool, int] = {}
        self._replans: dict[str, int] = {}
        self._held: dict[str, _Held] = {}
        self._asked: Replan | None = None
        self._abandoned: list[str] = []
        self._room: dict[Pool, tuple[object, bool]] = {}
        self.counts = Counts()

    # -- from outside -----------------------------------------------------------------

    def add(self, tasks: Iterable[NewTask]) -> None:
        for new in tasks:
            if new.name in self._work:
                continue
            self._work[new.name] = _Work(new=new)
            self.counts.planned += 1
            if new.after is None:
                self._waiting[new.pool].append(new.name)
            else:
                self._block(new.name, (new.unit.pipeline, new.unit.id, new.after))

    def adopt(self, worker: int, pool: Pool) -> None:
        """A worker that the probe has started already."""
        self._workers[worker] = _Worker(pool=pool, state="ready")
        self._next_worker = max(self._next_worker, worker + 1)

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or waits for its commit."""
        return not self._work or all(w.state == "failed" for w in self._work.values())

    @property
    def workers(self) -> int:
        return len(self._workers)

    def load(self) -> dict[Pool, Load]:
        found = {}
        for pool, queue in self._waiting.items():
            mine = [w for w in self._workers.values() if w.pool == pool]
            running = sum(len(w.running) for w in mine)
            found[pool] = Load(queued=len(queue), running=running, workers=len(mine))
        return found

    @property
    def paused_for(self) -> str:
        """Why the run waits, or "": for the progress bar."""
        return self._store_why if self._store_failing_since is not None else ""

    def handle(self, event: Event, now: float) -> list[Decision]:
        if self._finished:
            return []
        decisions: list[Decision] = []
        match event:
            case WorkerReady():
                self._on_ready(event)
            case WorkerFailed():
                self._on_failed_start(event)
            case WorkerLost():
                self._on_lost(event)
            case Answered():
                decisions += self._on_answer(event, now)
            case Committed():
                self._on_committed(event)
            case CommitPostponed():
                self._give_back(event.pipeline)
                self._store_fails(event.why, now)
            case Replanned():
                self._asked = None
                self.add(event.tasks)
            case ReplanPostponed():
                self._asked = None
                self._hold(event.decision.pipeline, event.decision.uris)
                self._store_fails(event.why, now)
            case StopAsked():
                self._stop = self._stop or event
            case CapacityChanged():
                self._nodes = event.nodes
            case Tick():
                pass
        decisions += self._advance(now)
        return decisions

    # -- events -----------------------------------------------------------------------

    def _on_ready(self, event: WorkerReady) -> None:
        worker = self._workers.get(event.worker)
        if worker is not None:
            worker.state = "ready"
            self._failed_starts[worker.pool] = 0

    def _on_failed_start(self, event: WorkerFailed) -> None:
        self._workers.pop(event.worker, None)
        code = getattr(event.error, "exit_code", 70)
        self._fatal = Finish(exit_code=code, why=str(event.error), error=event.error)

    def _on_lost(self, event: WorkerLost) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        if worker.state == "starting" and event.kind is not FailureClass.PLACE:
            failed = self._failed_starts.get(worker.pool, 0) + 1
            self._failed_starts[worker.pool] = failed
            if failed >= FAILED_STARTS:
                self._fatal = Finish(
                    exit_code=3,
                    why=f"workers of stream {worker.pool[1]!r} die before they are ready, "
                    f"{failed} in a row: {event.why}",
                )
        suspects = frozenset(event.in_flight)
        blamed = False
        for name in worker.running.values():
            work = self._work[name]
            if event.kind is FailureClass.PLACE or (event.unit and event.unit != name[1]):
                pass  # the worker's other task is innocent
            elif suspects - work.isolate - work.condemned.keys():
                work.isolate |= suspects  # next time these go one by one
            elif len(suspects) == 1:
                blamed = self._suspect(work, next(iter(suspects)), event)
            else:
                work.lost += 1
                work.avoid = event.worker
            self._requeue(name, f"its worker was lost {work.lost} times: {event.why}")
        self._condemned_in_a_row += blamed
        if self._condemned_in_a_row >= CONDEMNED_IN_A_ROW:
            self._fatal = Finish(
                exit_code=3,
                why=f"workers died on {CONDEMNED_IN_A_ROW} samples in a row: not the samples' "
                "fault; nothing of this was committed",
            )

    def _suspect(self, work: _Work, sample: bytes, event: WorkerLost) -> bool:
        """Whether the sample is condemned. Whoever kills from outside hits innocents too, so that
        one death alone proves nothing: all but one of the attempts must have died on it so."""
        deaths = work.alone.get(sample, 0) + 1
        work.alone[sample] = deaths
        if deaths < self._attempts - 1:
            return False
        text = f"the worker died {deaths} times while it encoded this sample alone: {event.why}"
        work.condemned[sample] = (event.reason, text)
        return True

    def _requeue(self, name: Name, why: str) -> None:
        work = self._work[name]
        work.attempt = None
        if work.lost >= self._attempts:
            work.state = "failed"
            self.counts.failed += 1
            first = work.new.unit.spans[0].input.uri
            self._abandoned.append(f"{name[0]}/{name[2]}, unit from {first}: {why}")
            self._give_up_children(name)
        else:
            work.state = "waiting"
            self._waiting[work.new.pool].appendleft(name)

    def _block(self, name: Name, parent: Name) -> None:
        """`name` waits for the commit of `parent`, or fails with it."""
        if parent not in self._work:
            raise ValueError(f"{name} waits for {parent}, which is not planned")
        self._work[name].state = "blocked"
        self._children.setdefault(parent, {})[name] = None
        if self._work[parent].state == "failed":
            self._give_up_children(parent)

    def _blocked(self, parent: Name) -> list[Name]:
        """Those that have waited for `parent` until now, but for those planned anew meanwhile."""
        children = self._children.pop(parent, {})
        return [n for n in children if n in self._work and self._work[n].state == "blocked"]

    def _give_up_children(self, name: Name) -> None:
        """Their parent has failed: there will be nothing to read in this run."""
        for child in self._blocked(name):
            self._work[child].state = "failed"
            self.counts.failed += 1
            self._give_up_children(child)

    def _free_children(self, name: Name, parent: ParentRows) -> None:
        """Their parent is committed: its rows can be read."""
        for child in self._blocked(name):
            work = self._work[child]
            work.new = replace(work.new, after=None, parent=parent)
            work.state = "waiting"
            self._waiting[work.new.pool].append(child)

    def _on_answer(self, event: Answered, now: float) -> Iterator[Decision]:
        answer = event.answer
        name: Name = (event.pipeline, answer.unit, answer.stream)
        worker = self._workers.get(event.worker)
        if worker is not None:
            worker.running.pop(answer.attempt, None)
        work = self._work.get(name)
        if work is None or work.state != "running" or work.attempt != answer.attempt:
            return  # an attempt that was given up answers late
        work.attempt = None
        if isinstance(answer, TaskResult):
            self._on_result(name, work, answer, now)
        else:
            yield from self._on_failure(name, work, answer, event.worker, now)

    def _on_result(self, name: Name, work: _Work, result: TaskResult, now: float) -> None:
        work.state, work.result = "done", result
        self._done.setdefault(name[0], []).append(name)
        if self._oldest_done is None:
            self._oldest_done = now
        self._condemned_in_a_row = 0
        self._store_works()
        counts = self.counts
        counts.finished += 1
        counts.samples += result.enumerated
        counts.tokens += result.tokens
        counts.quarantined += _quarantined(result)
        counts.absent += result.absent
        counts.input_faults += len(result.input_faults)
        counts.stored += sum(s.size for s in result.shards)

    def _on_failure(
        self, name: Name, work: _Work, failure: TaskFailure, worker: int, now: float
    ) -> Iterator[Decision]:
        match failure.kind:
            case FailureClass.STORE:
                self._store_fails(failure.message, now)
                self._requeue(name, failure.message)
            case FailureClass.PLACE:
                self._requeue(name, failure.message)
            case FailureClass.WORKER:
                work.lost += 1
                work.avoid = worker
                self._requeue(name, failure.message)
            case FailureClass.INPUT_CHANGED:
                self._on_changed(name, failure)
            case FailureClass.SYSTEMATIC:
                yield from self._on_systematic(name, work, failure, worker)
            case FailureClass.JOB | FailureClass.PROGRAM:
                code = failure.exit_code
                if code is None:
                    code = 2 if failure.kind is FailureClass.JOB else 70
                self._fatal = Finish(exit_code=code, why=failure.message, error=failure.error)

    def _on_changed(self, name: Name, failure: TaskFailure) -> None:
        """Back to planning, the places of the unit that did not change too."""
        pipeline, places = name[0], self._places(name)
        self._drop([name])
        held = self._held.get(pipeline, _Held())
        for uri in failure.changed:
            if uri not in held.uris:  # each task that met the same change tells of it
                self._replans[uri] = self._replans.get(uri, 0) + 1
        restless = [uri for uri in failure.changed if self._restless(uri)]
        if restless:
            self.counts.failed += 1
            self._abandoned.append(f"{', '.join(restless)}: changes while it is read")
        self._hold(pipeline, places)

    def _restless(self, uri: str) -> bool:
        return self._replans.get(uri, 0) > REPLANS

    def _hold(self, pipeline: str, uris: Iterable[str]) -> None:
        """Plan these places again, and with them those of every task that waits to read there."""
        held = self._held.setdefault(pipeline, _Held())
        held.uris.update(uris)
        while True:
            touching = [n for n in self._work if n[0] == pipeline and self._touches(n, held.uris)]
            waiting = [n for n in touching if self._work[n].state in ("blocked", "waiting")]
            if not waiting:
                break
            for name in waiting:
                held.uris |= self._places(name)
            self._drop(waiting)
        held.blockers = set(touching)
        held.uris -= {uri for uri in held.uris if self._restless(uri)}

    def _places(self, name: Name) -> set[str]:
        return {span.input.uri for span in self._work[name].new.unit.spans}

    def _touches(self, name: Name, uris: set[str]) -> bool:
        return any(span.input.uri in uris for span in self._work[name].new.unit.spans)

    def _release(self) -> Iterator[Decision]:
        """Ask for the plans that nothing of ours stands in the way of any more, one at a time."""
        for pipeline, held in list(self._held.items()):
            held.blockers = {
                n for n in held.blockers if n in self._work and self._work[n].state != "failed"
            }
            for name in list(held.blockers):
                if name in self._work and self._work[name].state == "waiting":  # it was lost
                    self._hold(pipeline, self._places(name))
            if held.blockers or self._asked is not None:
                continue
            del self._held[pipeline]
            if held.uris:
                self._asked = Replan(pipeline=pipeline, uris=tuple(sorted(held.uris)))
                yield self._asked

    def _held_up(self) -> bool:
        """Whether a plan waits for the commit of what is finished."""
        blockers = (n for held in self._held.values() for n in held.blockers)
        return any(n in self._work and self._work[n].state == "done" for n in blockers)

    def _drop(self, names: Sequence[Name]) -> None:
        gone = set(names)
        for pool in {self._work.pop(name).new.pool for name in names}:
            queue = self._waiting[pool]
            if not gone.isdisjoint(queue):
                self._waiting[pool] = deque(n for n in queue if n not in gone)
        self.counts.planned -= len(names)

    def _on_systematic(
        self, name: Name, work: _Work, failure: TaskFailure, worker: int
    ) -> Iterator[Decision]:
        """The same fault again and again: another worker decides whose it is.

        Passes there: the first worker was broken, and is replaced. Fails there too, beside good
        samples: the samples' fault. Fails there and nothing is good: stop, commit no quarantine.
        """
        error = str(failure.details.get("error", failure.message))
        if error in work.suspected:
            if failure.details.get("good"):
                work.tolerate |= {error}
                self._requeue(name, error)
                return
            self._fatal = Finish(
                exit_code=3,
                why=f"the same error on every sample and on two workers: {error}; "
                "no quarantine of it was committed",
            )
            return
        work.suspected |= {error}
        work.avoid = worker
        self._requeue(name, error)
        if worker in self._workers:
            yield from self._replace(worker)

    def _replace(self, worker: int) -> Iterator[Decision]:
        for name in self._workers.pop(worker).running.values():
            self._requeue(name, "its worker was replaced")
        yield StopWorker(worker=worker)

    def _on_committed(self, event: Committed) -> None:
        told = {(event.pipeline, *name) for name in (*event.committed, *event.dropped)}
        left = [n for n in self._committing.pop(event.pipeline, []) if n not in told]
        if left:  # another group of the same commit
            self._committing[event.pipeline] = left
        self._store_works()
        for unit, stream in event.committed:
            name = (event.pipeline, unit, stream)
            result = self._work.pop(name).result
            assert result is not None
            self.counts.committed += 1
            self._free_children(name, result.as_parent())
        uris: set[str] = set()
        for unit, stream in event.dropped:
            work = self._work.pop((event.pipeline, unit, stream))
            uris.update(s.input.uri for s in work.new.unit.spans)
            self._uncount(work.result)
        if uris:
            self._hold(event.pipeline, uris)

    def _uncount(self, result: TaskResult | None) -> None:
        """Another run committed it: it is not part of what this run did."""
        if result is not None:
            self.counts.planned -= 1
            self.counts.finished -= 1
            self.counts.samples -= result.enumerated
            self.counts.tokens -= result.tokens
            self.counts.quarantined -= _quarantined(result)
            self.counts.absent -= result.absent
            self.counts.input_faults -= len(result.input_faults)
            self.counts.stored -= sum(s.size for s in result.shards)

    def _give_back(self, pipeline: str) -> None:
        """The entries of a commit that the store did not take wait for the next one."""
        names = self._committing.pop(pipeline, [])
        for name in names:
            self._work[name].state = "done"
        if names:  # the oldest go first
            self._done[pipeline] = names + self._done.get(pipeline, [])

    # -- the store --------------------------------------------------------------------

    def _store_fails(self, why: str, now: float) -> None:
        if self._store_failing_since is None:
            self._store_failing_since = now
        self._store_why = why
        if now >= self._paused_until:  # one step a pause, however many tasks report it
            self._paused_until = now + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if now - self._store_failing_since > self._store_patience:
            self._fatal = Finish(
                exit_code=3,
                why=f"the store has failed for {now - self._store_failing_since:.0f} s: {why}",
            )

    def _store_works(self) -> None:
        self._store_failing_since = None
        self._pause = FIRST_PAUSE
        self._paused_until = 0.0

    # -- what to do next --------------------------------------------------------------

    def _advance(self, now: float) -> Iterator[Decision]:
        if self._fatal is not None:
            # what is finished is good, whatever stopped us: commit it before the end
            self._stop = self._stop or StopAsked(
                why=self._fatal.why, exit_code=self._fatal.exit_code
            )
        if now >= self._paused_until:
            yield from self._commits(now)
        if self._stop is None and now >= self._paused_until:
            yield from self._release()
            yield from self._assign()
            yield from self._retire_idle(now)
            yield from self._resize()
        yield from self._end()

    def _commits(self, now: float) -> Iterator[Decision]:
        waiting = sum(len(names) for names in self._done.values())
        if not waiting:
            return
        due = (
            self._stop is not None
            or self._held_up()
            or waiting >= COMMIT_UNITS
            or (self._oldest_done is not None and now - self._oldest_done >= COMMIT_SECONDS)
            or not any(w.state in ("waiting", "running") for w in self._work.values())
        )
        if not due:
            return
        for pipeline in [p for p in self._done if p not in self._committing]:
            names = self._done.pop(pipeline)
            batch, rest = names[:COMMIT_UNITS], names[COMMIT_UNITS:]
            if rest:
                self._done[pipeline] = rest
            results = []
            for name in batch:
                work = self._work[name]
                work.state = "committing"
                assert work.result is not None
                results.append((work.new, work.result))
            self._committing[pipeline] = batch
            yield Commit(pipeline=pipeline, results=tuple(results))
        self._oldest_done = now if self._done else None

    def _assign(self) -> Iterator[Decision]:
        # the least loaded worker first, so that no slot doubles up while another worker idles
        ready = [(len(w.running), i) for i, w in self._workers.items() if w.state == "ready"]
        for load in range(SLOTS):
            for _, worker_id in sorted(r for r in ready if r[0] <= load):
                worker = self._workers[worker_id]
                if len(worker.running) > load:
                    continue
                name = self._next_for(worker_id, worker.pool)
                if name is not None:
                    yield Assign(worker=worker_id, task=self._attempt(name, worker_id))

    def _next_for(self, worker: int, pool: Pool) -> Name | None:
        queue = self._waiting[pool]
        for _ in range(len(queue)):
            name = queue.popleft()
            if self._work[name].avoid != worker:
                return name
            queue.append(name)
            if sum(w.pool == pool for w in self._workers.values()) == 1:
                return queue.pop()  # there is no other worker to prefer
        return None

    def _attempt(self, name: Name, worker: int) -> Task:
        work = self._work[name]
        attempt = self._next_attempt
        self._next_attempt += 1
        work.state, work.attempt = "running", attempt
        self._workers[worker].running[attempt] = name
        return Task(
            unit=work.new.unit,
            stream=work.new.stream,
            recipe=work.new.recipe,
            attempt=attempt,
            run=self._run,
            isolate=work.isolate,
            condemned={**dict.fromkeys(work.new.forgotten, _TAKEN_OUT), **work.condemned},
            tolerate=work.tolerate,
            parent=work.new.parent,
        )

    def _resize(self) -> Iterator[Decision]:
        """Stop what has nothing to do while others wait, then start what capacity allows."""
        starved = [p for p, q in self._waiting.items() if q and not self._has_worker(p)]
        if starved:
            for id_, worker in list(self._workers.items()):
                if not worker.running and not self._waiting[worker.pool]:
                    del self._workers[id_]
                    yield StopWorker(worker=id_)
        # pools without any worker first, then those with the longest queue for each worker
        while True:
            pool = self._neediest()
            if pool is None:
                return
            id_ = self._next_worker
            self._next_worker += 1
            self._workers[id_] = _Worker(pool=pool)
            yield StartWorker(worker=id_, pool=pool)

    def _retire_idle(self, now: float) -> Iterator[Decision]:
        """Let workers go that have had nothing to do for a while: their GPUs cost money, and an
        autoscaler takes only nodes that nobody holds."""
        for id_, worker in list(self._workers.items()):
            if worker.running or worker.state != "ready" or self._waiting[worker.pool]:
                worker.idle_since = None
                continue
            if worker.idle_since is None:
                worker.idle_since = now
            have = sum(w.pool == worker.pool for w in self._workers.values())
            if now - worker.idle_since >= IDLE_SECONDS and have > self._pools[worker.pool].least:
                del self._workers[id_]
                yield StopWorker(worker=id_)

    def wanted(self) -> dict[Pool, int]:
        """Workers that each pool could keep busy, whatever there is room for: an autoscaler's
        demand. Nothing once the run is to stop."""
        found = {}
        for pool, queue in self._waiting.items():
            limits = self._pools[pool]
            mine = [w for w in self._workers.values() if w.pool == pool]
            busy = sum(bool(w.running) for w in mine)
            more = -(-len(queue) // SLOTS)
            count = min(limits.most, max(busy + more, limits.least if mine or queue else 0))
            found[pool] = 0 if self._stop or self._finished else count
        return found

    def _has_worker(self, pool: Pool) -> bool:
        return any(w.pool == pool for w in self._workers.values())

    def _neediest(self) -> Pool | None:
        """The pool that should have one more worker: without any first, then below its minimum,
        then by its queue for each worker."""
        best: tuple[float, Pool] | None = None
        for pool, queue in self._waiting.items():
            limits = self._pools[pool]
            mine = [w for w in self._workers.values() if w.pool == pool]
            starting = sum(w.state == "starting" for w in mine)
            enough = len(queue) <= starting * SLOTS and (not queue or len(mine) >= limits.least)
            if enough or len(mine) >= limits.most:
                continue
            need = float("inf") if not mine else len(queue) / len(mine)
            if (best is None or need > best[0]) and self._room_for(pool):
                best = (need, pool)
        return best[1] if best else None

    def _room_for(self, pool: Pool) -> bool:
        if not self._workers:
            return True  # a machine with less than a worker asks for still does the work
        counts = Counter(w.pool for w in self._workers.values())
        counts[pool] += 1
        # the coordinator asks at every event and the answer rarely changes
        key = (self._nodes, tuple(sorted(counts.items())))
        if self._room.get(pool, (None, False))[0] != key:
            needs = [self._pools[p].need for p, n in counts.items() for _ in range(n)]
            self._room[pool] = (key, fits(self._nodes, needs))
        return self._room[pool][1]

    def _end(self) -> Iterator[Decision]:
        if self._committing or any(self._done.values()):
            if self._fatal is None or self._store_failing_since is None:
                return  # the last commit is on its way
        elif self._stop is None and (not self.idle or self._held or self._asked is not None):
            return
        for id_ in list(self._workers):
            del self._workers[id_]
            yield StopWorker(worker=id_)
        self._finished = True
        if self._fatal is not None:
            yield self._fatal
        elif self._stop is not None:
            yield Finish(exit_code=self._stop.exit_code, why=self._stop.why)
        elif self._abandoned:
            yield Finish(exit_code=3, why="not finished: " + "; ".join(self._abandoned[:5]))
        else:
            yield Finish(exit_code=0, why="")
