"""The coordinator under generated faults: nothing lost, nothing twice, always an end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.pipelines.coordinator import (
    Answered,
    Assign,
    Commit,
    CommitPostponed,
    Committed,
    Coordinator,
    Event,
    Finish,
    NewTask,
    PoolLimits,
    Replan,
    Replanned,
    StartWorker,
    StopAsked,
    StopWorker,
    Tick,
    WorkerLost,
    WorkerReady,
)
from tokenmill.schemas.work import (
    FailureClass,
    Input,
    Span,
    Task,
    TaskFailure,
    TaskResult,
    WorkUnit,
)

POOLS = {("p", "a"): PoolLimits(most=3), ("p", "b"): PoolLimits(most=2)}


def tasks(count: int) -> list[NewTask]:
    found = []
    for n in range(count):
        input_ = Input(uri=f"/c/{n}", version="1", size=1)
        unit = WorkUnit(pipeline="p", spans=(Span(input=input_, start=0, end=1),))
        found += [NewTask(unit=unit, stream=s, recipe="r", planned_seq=0) for s in ("a", "b")]
    return found


def result(task: Task) -> TaskResult:
    return TaskResult(
        unit=task.unit.id,
        stream=task.stream,
        attempt=task.attempt,
        recipe="r",
        space="s",
        shards=(),
        cells=(),
        enumerated=1,
        with_tokens=1,
        absent=0,
        tokens=5,
        quarantined=(),
        input_faults=(),
        order_hash=b"",
    )


def failure(task: Task, kind: FailureClass, **more) -> TaskFailure:
    return TaskFailure(
        unit=task.unit.id,
        stream=task.stream,
        attempt=task.attempt,
        kind=kind,
        message=str(kind),
        **more,
    )


@dataclass
class World:
    """Carries decisions out by chance; `chance` is the seed of every fault."""

    coordinator: Coordinator
    chance: random.Random
    faults: float
    events: list[Event] = field(default_factory=list)
    running: dict[int, list[Task]] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    late: list[Answered] = field(default_factory=list)
    committed: list[tuple[bytes, str]] = field(default_factory=list)
    most_running: int = 0
    now: float = 0.0

    def until_finish(self) -> Finish:
        self.events = self.events or [Tick()]
        for _ in range(20_000):
            self.now += self.chance.uniform(0, 2)
            for decision in self.coordinator.handle(self._next(), self.now):
                if isinstance(decision, Finish):
                    return decision
                self._carry_out(decision)
        raise AssertionError("the run never ends")

    def _carry_out(self, decision) -> None:
        match decision:
            case StartWorker():
                self.starting.add(decision.worker)
                assert len(self.starting) + len(self.running) <= 4, "more workers than CPUs"
            case StopWorker():
                self.running.pop(decision.worker, None)
                self.starting.discard(decision.worker)
            case Assign():
                self.running[decision.worker].append(decision.task)
                assert len(self.running[decision.worker]) <= 2
            case Commit():
                if self.chance.random() < self.faults:
                    self.events.append(CommitPostponed(pipeline="p", why="503"))
                    return
                names = tuple((r.unit, r.stream) for _, r in decision.results)
                self.committed += names
                self.events.append(Committed(pipeline="p", committed=names, dropped=()))
            case Replan():
                again = [t for t in tasks(30) if t.unit.spans[0].input.uri in decision.uris]
                have = set(self.committed)
                new = tuple(t for t in again if (t.unit.id, t.stream) not in have)
                self.events.append(Replanned(tasks=new))

    def _next(self) -> Event:
        if self.events:
            return self.events.pop(0)
        chance = self.chance
        if self.late and chance.random() < 0.3:
            return self.late.pop()
        if self.starting and chance.random() < 0.5:
            worker = self.starting.pop()
            self.running[worker] = []
            return WorkerReady(worker=worker)
        busy = [w for w, held in self.running.items() if held]
        if not busy:
            return Tick()
        worker = chance.choice(busy)
        if chance.random() < self.faults / 2:
            held = self.running.pop(worker)
            # believed dead, it answers all the same, later
            self.late += [Answered(worker=worker, pipeline="p", answer=result(t)) for t in held]
            kind = chance.choice([FailureClass.PLACE, FailureClass.PLACE, FailureClass.WORKER])
            return WorkerLost(worker=worker, kind=kind, why="gone")
        task = self.running[worker].pop(chance.randrange(len(self.running[worker])))
        answer: TaskResult | TaskFailure = result(task)
        if chance.random() < self.faults:
            answer = failure(task, chance.choice([FailureClass.STORE, FailureClass.PLACE]))
        return Answered(worker=worker, pipeline="p", answer=answer)


def world(seed: int, faults: float, count: int, attempts: int = 1000) -> World:
    coordinator = Coordinator(run="run", pools=POOLS, cpus=4, attempts=attempts, store_patience=1e9)
    coordinator.add(tasks(count))
    return World(coordinator=coordinator, chance=random.Random(seed), faults=faults)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 30))
def test_under_any_faults_every_task_is_committed_exactly_once(
    seed: int, faults: float, count: int
) -> None:
    made = world(seed, faults, count)
    finish = made.until_finish()
    assert finish.exit_code == 0, finish.why
    wanted = {(t.unit.id, t.stream) for t in tasks(count)}
    assert len(made.committed) == len(set(made.committed))
    assert set(made.committed) == wanted
    assert made.coordinator.counts.committed == len(wanted)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_a_stop_commits_what_is_finished_and_ends_with_4(seed: int, count: int) -> None:
    made = world(seed, 0.1, count)
    for _ in range(40):
        made.now += 1
        for decision in made.coordinator.handle(made._next(), made.now):
            if isinstance(decision, Finish):
                return  # done before it could be stopped
            made._carry_out(decision)
    finished = made.coordinator.counts.finished
    made.events.append(StopAsked(why="SIGTERM"))
    made.events += [Tick()] * 5
    finish = made.until_finish()
    assert finish.exit_code == 4 or made.coordinator.counts.committed == count * 2
    assert len(set(made.committed)) == len(made.committed) >= finished


class Hand:
    """One pool, one worker, events by hand."""

    def __init__(self, *planned: NewTask, attempts: int = 3) -> None:
        pools = {("p", "a"): PoolLimits(most=1)}
        self.coordinator = Coordinator(run="run", pools=pools, cpus=1, attempts=attempts)
        self.coordinator.add(planned or [t for t in tasks(1) if t.stream == "a"])
        self.decisions = self.coordinator.handle(Tick(), 0.0)

    def send(self, event: Event, now: float = 0.0) -> list:
        self.decisions = self.coordinator.handle(event, now)
        return self.decisions

    def worker(self) -> int:
        return next(d.worker for d in self.decisions if isinstance(d, StartWorker))

    def task(self) -> Task:
        return next(d.task for d in self.decisions if isinstance(d, Assign))

    def start(self) -> tuple[int, Task]:
        worker = self.worker()
        self.send(WorkerReady(worker=worker))
        return worker, self.task()

    def die(self, worker: int, task: Task, *samples: bytes) -> None:
        self.send(
            WorkerLost(
                worker=worker,
                kind=FailureClass.WORKER,
                why="SIGKILL",
                in_flight=samples,
                unit=task.unit.id,
            )
        )


def test_a_sample_that_kills_its_worker_is_isolated_then_condemned() -> None:
    hand = Hand(attempts=1)
    worker, task = hand.start()
    hand.die(worker, task, b"x", b"y")
    worker, task = hand.start()
    assert task.isolate == {b"x", b"y"} and not task.condemned
    hand.die(worker, task, b"y")
    _, task = hand.start()
    assert set(task.condemned) == {b"y"} and task.condemned[b"y"][0] == "process-died"


def test_unexplained_deaths_are_attempts_and_the_run_then_ends_with_3() -> None:
    hand = Hand(attempts=2)
    for _ in range(2):
        worker, task = hand.start()
        hand.die(worker, task)
    (finish,) = [d for d in hand.decisions if isinstance(d, Finish)]
    assert finish.exit_code == 3 and "/c/0" in finish.why


def test_losing_the_node_is_never_an_attempt() -> None:
    hand = Hand(attempts=1)
    for _ in range(5):
        worker, _ = hand.start()
        hand.send(WorkerLost(worker=worker, kind=FailureClass.PLACE, why="node lost"))
    assert not any(isinstance(d, Finish) for d in hand.decisions)


def test_a_programming_error_stops_the_run_with_70() -> None:
    hand = Hand()
    worker, task = hand.start()
    answer = failure(task, FailureClass.PROGRAM)
    decisions = hand.send(Answered(worker=worker, pipeline="p", answer=answer))
    assert decisions[-1].exit_code == 70


def test_a_store_that_fails_too_long_stops_the_run_with_3() -> None:
    hand = Hand()
    worker, task = hand.start()
    hand.send(
        Answered(worker=worker, pipeline="p", answer=failure(task, FailureClass.STORE)), now=0.0
    )
    assert not any(isinstance(d, Assign) for d in hand.decisions), "paused"
    hand.send(Tick(), now=2.0)
    task = hand.task()
    decisions = hand.send(
        Answered(worker=worker, pipeline="p", answer=failure(task, FailureClass.STORE)), now=700.0
    )
    assert decisions[-1].exit_code == 3


def test_a_changed_input_goes_back_to_planning() -> None:
    hand = Hand()
    worker, task = hand.start()
    answer = failure(task, FailureClass.INPUT_CHANGED, changed=("/c/0",))
    decisions = hand.send(Answered(worker=worker, pipeline="p", answer=answer))
    assert [d.uris for d in decisions if isinstance(d, Replan)] == [("/c/0",)]


def test_one_fault_on_two_workers_without_a_good_sample_stops_the_run() -> None:
    hand = Hand()
    for good in (None, None):
        worker, task = hand.start()
        answer = failure(task, FailureClass.SYSTEMATIC, details={"error": "E", "good": good})
        hand.send(Answered(worker=worker, pipeline="p", answer=answer))
    assert hand.decisions[-1].exit_code == 3


def test_one_fault_on_two_workers_beside_good_samples_is_the_samples() -> None:
    hand = Hand()
    for _ in range(2):
        worker, task = hand.start()
        answer = failure(task, FailureClass.SYSTEMATIC, details={"error": "E", "good": b"g"})
        hand.send(Answered(worker=worker, pipeline="p", answer=answer))
    assert hand.task().tolerate == {"E"}


def shared_unit(*names: str, stream: str = "a") -> NewTask:
    inputs = [Input(uri=f"/c/{n}", version="1", size=1) for n in names]
    spans = tuple(Span(input=i, start=0, end=1) for i in inputs)
    unit = WorkUnit(pipeline="p", spans=spans)
    return NewTask(unit=unit, stream=stream, recipe="r", planned_seq=0)


def test_inputs_that_share_a_unit_with_a_changed_one_are_planned_again_too() -> None:
    """Found by the simulator: the run said 0 and had left them out (G1)."""
    hand = Hand(shared_unit("x", "y"))
    worker, task = hand.start()
    answer = failure(task, FailureClass.INPUT_CHANGED, changed=("/c/x",))
    decisions = hand.send(Answered(worker=worker, pipeline="p", answer=answer))
    assert [d.uris for d in decisions if isinstance(d, Replan)] == [("/c/x", "/c/y")]


def test_places_are_planned_again_only_when_nothing_of_ours_is_under_way_there() -> None:
    """Else the new plan overlaps what is about to be committed (G5)."""
    hand = Hand(shared_unit("x"), shared_unit("x", "y"), shared_unit("x", "z"))
    worker = hand.worker()
    first, second = [d.task for d in hand.send(WorkerReady(worker=worker)) if isinstance(d, Assign)]
    answer = failure(first, FailureClass.INPUT_CHANGED, changed=("/c/x",))
    decisions = hand.send(Answered(worker=worker, pipeline="p", answer=answer))
    assert not any(isinstance(d, Replan) for d in decisions)
    decisions = hand.send(Answered(worker=worker, pipeline="p", answer=result(second)))
    assert [type(d) for d in decisions if isinstance(d, Commit | Replan)] == [Commit]
    names = ((second.unit.id, "a"),)
    decisions = hand.send(Committed(pipeline="p", committed=names, dropped=()))
    assert not any(isinstance(d, Assign) for d in decisions), "z waits for its plan"
    assert [d.uris for d in decisions if isinstance(d, Replan)] == [("/c/x", "/c/z")]


def test_a_sample_that_was_alone_in_one_killed_process_is_not_condemned() -> None:
    """Found by the simulator: two kills from outside quarantined an innocent sample (G4)."""
    hand = Hand(attempts=3)
    for held in ((b"x", b"y"), (b"x",)):
        worker, task = hand.start()
        assert not task.condemned
        hand.die(worker, task, *held)
    worker, task = hand.start()
    assert not task.condemned and task.isolate == {b"x", b"y"}
    hand.die(worker, task, b"x")
    _, task = hand.start()
    assert set(task.condemned) == {b"x"}


def test_an_input_that_never_stops_changing_ends_the_run_with_3_without_its_mates() -> None:
    hand = Hand(shared_unit("x", "y"))
    worker, task = hand.start()
    for _ in range(4):
        answer = failure(task, FailureClass.INPUT_CHANGED, changed=("/c/x",))
        decisions = hand.send(Answered(worker=worker, pipeline="p", answer=answer))
        (again,) = [d for d in decisions if isinstance(d, Replan)]
        hand.send(Replanned(tasks=(shared_unit(*(uri[-1] for uri in again.uris)),)))
        task = hand.task()
    assert again.uris == ("/c/y",)
    hand.send(Answered(worker=worker, pipeline="p", answer=result(task)))
    names = ((task.unit.id, "a"),)
    finish = hand.send(Committed(pipeline="p", committed=names, dropped=()))[-1]
    assert finish.exit_code == 3 and "/c/x" in finish.why


def test_the_second_half_of_a_commit_that_the_store_refused_is_committed_later() -> None:
    """A commit is told of group by group; what follows the first must not be forgotten, nor be
    mixed up with another commit (it was: a stop then left finished work uncommitted)."""
    hand = Hand(shared_unit("x"), shared_unit("y"))
    worker = hand.worker()
    first, second = [d.task for d in hand.send(WorkerReady(worker=worker)) if isinstance(d, Assign)]
    for task in (first, second):
        hand.send(Answered(worker=worker, pipeline="p", answer=result(task)))
    assert [len(d.results) for d in hand.decisions if isinstance(d, Commit)] == [2]
    hand.send(StopAsked(why="SIGTERM"))
    hand.send(Committed(pipeline="p", committed=((first.unit.id, "a"),), dropped=()))
    assert not any(isinstance(d, Finish | Commit) for d in hand.decisions)
    hand.send(CommitPostponed(pipeline="p", why="503"))
    assert not any(isinstance(d, Finish) for d in hand.decisions)
    (again,) = [d for d in hand.send(Tick(), now=60.0) if isinstance(d, Commit)]
    assert [r.unit for _, r in again.results] == [second.unit.id]
    hand.send(Committed(pipeline="p", committed=((second.unit.id, "a"),), dropped=()), now=61.0)
    assert hand.decisions[-1].exit_code == 4
    assert hand.coordinator.counts.committed == 2
