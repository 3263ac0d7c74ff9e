"""Children in the plan, in the coordinator under generated faults, and in the commit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coordinator import World, failure, result

from tokenmill.pipelines.children import Child, plan_children
from tokenmill.pipelines.coordinator import (
    Answered,
    Assign,
    Commit,
    Committed,
    Coordinator,
    Finish,
    NewTask,
    PoolLimits,
    Replan,
    Replanned,
    StartWorker,
    StopWorker,
    Tick,
    WorkerReady,
)
from tokenmill.pipelines.loop import turn
from tokenmill.pipelines.plan import CoveredSpan, Plan, PlannedTask, plan
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.work import Cell, FailureClass, Input, ParentFile, ShardFile, Task


@dataclass
class Store:
    """What a ledger would hold: every commit of a task, the newest on top."""

    cells: dict[str, list[CoveredSpan]] = field(default_factory=dict)
    files: dict[tuple[str, bytes, int], list[ParentFile]] = field(default_factory=dict)
    seq: int = 0

    def commit(self, task: PlannedTask, recipe: str) -> None:
        self.seq += 1
        spans = task.unit.spans
        mine = {(s.input.id, s.start, s.end) for s in spans}
        kept = [c for c in self.cells.get(task.stream, []) if not _touches(c, mine)]
        kept += [
            CoveredSpan(
                input=s.input.id,
                start=s.start,
                end=s.end,
                recipe=recipe,
                unit=task.unit.id,
                ordinal=n,
                seq=self.seq,
                first_row=3 * n,
                rows=3,
            )
            for n, s in enumerate(spans)
        ]
        self.cells[task.stream] = kept
        self.files[task.stream, task.unit.id, self.seq] = [
            ParentFile(path=f"{task.stream}/{self.seq}", first_row=0, rows=3 * len(spans))
        ]


def _touches(cell: CoveredSpan, spans: set[tuple[bytes, int, int]]) -> bool:
    return any(i == cell.input and a < cell.end and cell.start < b for i, a, b in spans)


def inputs(count: int, changed: frozenset[int] = frozenset()) -> list[Input]:
    return [
        Input(uri=f"/c/{n:03d}", version="2" if n in changed else "1", size=10, root="/c")
        for n in range(count)
    ]


def made(found: list[Input], store: Store, retokenize: bool = False, recipe: str = "ra") -> Plan:
    known = {i.id for i in found}
    coverage = {s: [c for c in cells if c.input in known] for s, cells in store.cells.items()}
    base = plan(
        "p",
        found,
        {"a": recipe},
        coverage,
        unit_bytes=1 << 20,
        unit_inputs=3,
        splittable=lambda _: False,
        retokenize=retokenize,
    )
    child = Child(
        stream="b",
        recipe=f"rb-{recipe}",
        parent="a",
        parent_space="s",
        parent_recipe=recipe,
    )
    return plan_children(base, found, [child], coverage, store.files, retokenize=retokenize)


def apply(tasks, store: Store, recipe: str = "ra") -> None:
    for task in tasks:
        store.commit(task, f"rb-{recipe}" if task.stream == "b" else recipe)


def covered(store: Store, found: list[Input]) -> None:
    """Both streams cover every input once, and every child was made after its parent's rows."""
    for input_ in found:
        ends = {}
        for stream in ("a", "b"):
            (ends[stream],) = [c for c in store.cells[stream] if c.input == input_.id]
        assert ends["b"].seq > ends["a"].seq


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_whatever_was_committed_before_a_run_leaves_both_streams_whole(data) -> None:
    """G3, G4: killed at any point, grown, changed: the next run finishes, the one after is idle."""
    store = Store()
    count = data.draw(st.integers(1, 9))
    changed: frozenset[int] = frozenset()
    for _ in range(3):
        count += data.draw(st.integers(0, 3))
        changed |= data.draw(st.frozensets(st.integers(0, count - 1), max_size=2))
        tasks = made(inputs(count, changed), store).tasks
        done = data.draw(st.integers(0, len(tasks)))
        apply(tasks[:done], store)  # parents come before their children
    found = inputs(count, changed)
    apply(made(found, store).tasks, store)
    covered(store, found)
    assert made(found, store).tasks == ()


def test_a_child_follows_the_cut_that_its_parent_gets_or_has() -> None:
    store = Store()
    first = made(inputs(5), store)
    parents = [t for t in first.tasks if t.stream == "a"]
    children = [t for t in first.tasks if t.stream == "b"]
    assert [t.unit for t in parents] == [t.unit for t in children]
    assert all(t.after == "a" and t.parent is None for t in children)
    apply(parents, store)
    again = made(inputs(5), store)
    assert [t.unit.id for t in again.tasks] == sorted(t.unit.id for t in parents)
    for task in again.tasks:
        assert task.stream == "b" and task.after is None and not task.replaces
        assert task.parent.files == tuple(store.files["a", task.unit.id, _seq(store, task)])
        assert task.parent.spans == tuple((3 * n, 3) for n in range(len(task.unit.spans)))
    assert first.bytes == {"a": 50} and again.bytes == {}, "a child reads no input"


def _seq(store: Store, task: PlannedTask) -> int:
    return next(c.seq for c in store.cells["a"] if c.unit == task.unit.id)


def test_rows_of_a_parent_made_anew_are_read_anew() -> None:
    """A retry of the parent under the same recipe: its child is not what it holds now."""
    store = Store()
    first = made(inputs(3), store)
    apply(first.tasks, store)
    parent = next(t for t in first.tasks if t.stream == "a")
    store.commit(parent, "ra")
    (again,) = made(inputs(3), store).tasks
    assert (again.stream, again.replaces, again.parent.unit) == ("b", True, parent.unit.id)
    apply([again], store)
    assert made(inputs(3), store).tasks == ()


def test_only_the_valid_cells_of_a_parents_unit_are_read() -> None:
    store = Store()
    first = made(inputs(3), store)
    apply([t for t in first.tasks if t.stream == "a"], store)
    changed = inputs(3, frozenset({1}))
    tasks = made(changed, store).tasks
    new = [t for t in tasks if t.parent is None]
    (old,) = [t for t in tasks if t.parent is not None]
    assert [(t.stream, t.after) for t in new] == [("a", None), ("b", "a")]
    assert [s.input.uri for s in old.unit.spans] == ["/c/000", "/c/002"]
    assert old.parent.spans == ((0, 3), (6, 3))


def test_a_changed_parent_recipe_outdates_its_child_and_retokenize_makes_both() -> None:
    store = Store()
    apply(made(inputs(3), store).tasks, store)
    kept = made(inputs(3), store, recipe="new")
    assert kept.tasks == () and set(kept.outdated) == {"a", "b"}
    again = made(inputs(3), store, retokenize=True, recipe="new")
    assert [(t.stream, t.replaces, t.after) for t in again.tasks] == [
        ("a", True, None),
        ("b", True, "a"),
    ]


def test_a_child_whose_parent_another_recipe_has_overtaken_is_named() -> None:
    """Found by the simulator: the run said 0, and the child was nobody's (G1)."""
    store = Store()
    apply([t for t in made(inputs(3), store, recipe="theirs").tasks if t.stream == "a"], store,
          recipe="theirs")  # fmt: skip
    overtaken = made(inputs(3), store)
    assert (overtaken.tasks, overtaken.orphans) == ((), ("b",))
    assert made(inputs(3), store, recipe="theirs").orphans == ()


def test_a_plan_that_cannot_be_made_again_ends_the_run_in_order() -> None:
    def replan(*_) -> list[NewTask]:
        raise JobError("overtaken")

    hand = Hand()
    parent = hand.assigned()
    gone = failure(parent.task, FailureClass.INPUT_CHANGED, changed=("/c/000",))
    answer = Answered(worker=parent.worker, pipeline="p", answer=gone)
    none: Any = SimpleNamespace(stop=lambda _: None)
    finish = turn(hand.coordinator, answer, none, none, replan=replan, clock=lambda: 0.0)
    assert finish is not None and (finish.exit_code, finish.why) == (2, "overtaken")


# -- the coordinator -------------------------------------------------------------------------


def family(count: int, streams: str = "abc") -> list[NewTask]:
    """Units with a parent `a`, its child `b`, and its child `c`."""
    found = []
    for task in made(inputs(count), Store()).tasks:
        if task.stream == "a":
            for stream, after in zip(streams, (None, *streams), strict=False):
                found.append(
                    NewTask(unit=task.unit, stream=stream, recipe="r", planned_seq=0, after=after)
                )
    return found


POOLS = {("p", s): PoolLimits(most=2) for s in "abc"}


class FamilyWorld(World):
    """A child is assigned only when its parent is committed, with what that commit wrote."""

    def _carry_out(self, decision) -> None:
        if isinstance(decision, Assign):
            check_parent(decision.task, self.committed)
        if isinstance(decision, Replan):
            self.events.append(Replanned(tasks=self.again(decision.uris)))
            return
        super()._carry_out(decision)

    def again(self, uris) -> tuple[NewTask, ...]:
        have = set(self.committed)
        found = []
        for task in family(30):
            if any(s.input.uri in uris for s in task.unit.spans):
                if (task.unit.id, task.stream) in have:
                    continue
                if task.after and (task.unit.id, task.after) in have:
                    parent = result(_task(task, task.after)).as_parent()
                    task = NewTask(
                        unit=task.unit, stream=task.stream, recipe="r", planned_seq=0, parent=parent
                    )
                found.append(task)
        return tuple(found)


def _task(new: NewTask, stream: str) -> Task:
    return Task(unit=new.unit, stream=stream, recipe="r", attempt=0, run="run")


def check_parent(task: Task, committed) -> None:
    before = {"a": None, "b": "a", "c": "b"}[task.stream]
    if before is None:
        assert task.parent is None
    else:
        assert task.parent is not None and task.parent.stream == before
        assert (task.unit.id, before) in committed


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 12))
def test_under_any_faults_children_come_after_their_parents_and_all_are_committed(
    seed: int, faults: float, count: int
) -> None:
    coordinator = Coordinator(run="run", pools=POOLS, cpus=4, attempts=1000, store_patience=1e9)
    coordinator.add(family(count))
    world = FamilyWorld(coordinator=coordinator, chance=random.Random(seed), faults=faults)
    finish = world.until_finish()
    assert finish.exit_code == 0, finish.why
    wanted = {(t.unit.id, t.stream) for t in family(count)}
    assert len(world.committed) == len(set(world.committed)) and set(world.committed) == wanted


class Hand:
    """Workers for every pool; events by hand."""

    def __init__(self, attempts: int = 3) -> None:
        self.coordinator = Coordinator(run="run", pools=POOLS, cpus=4, attempts=attempts)
        self.coordinator.add(family(1))
        self.pending = self.coordinator.handle(Tick(), 0.0)

    def settle(self) -> list:
        """Start what is to be started; what is left to decide."""
        left = []
        while self.pending:
            decision = self.pending.pop(0)
            match decision:
                case StartWorker():
                    self.send(WorkerReady(worker=decision.worker))
                case StopWorker():
                    pass
                case _:
                    left.append(decision)
        return left

    def send(self, event) -> None:
        self.pending += self.coordinator.handle(event, 0.0)

    def assigned(self) -> Assign:
        (decision,) = self.settle()
        assert isinstance(decision, Assign)
        return decision

    def answer(self, assign: Assign, answer) -> list:
        self.send(Answered(worker=assign.worker, pipeline="p", answer=answer))
        return self.settle()


def finished(task: Task):
    shard = ShardFile(
        path="x", first_row=0, rows=1, samples=1, tokens=5, size=9, content_hash=b"",
        encoding="plain", written_at=0.0,
    )  # fmt: skip
    cells = tuple(Cell(span=s, first_row=n, rows=1) for n, s in enumerate(task.unit.spans))
    return replace(result(task), shards=(shard,), cells=cells)


def test_a_child_gets_the_rows_that_its_parents_commit_wrote() -> None:
    hand = Hand()
    parent = hand.assigned()
    (commit,) = hand.answer(parent, finished(parent.task))
    assert isinstance(commit, Commit), "nothing else is to do: the child waits"
    names = tuple((r.unit, r.stream) for _, r in commit.results)
    hand.send(Committed(pipeline="p", committed=names, dropped=()))
    child = hand.assigned().task
    assert child.stream == "b" and child.parent.files[0].path == "x"
    assert child.parent.spans == ((0, 1),)


def test_children_of_a_parent_that_another_run_committed_are_planned_with_it() -> None:
    """G5."""
    hand = Hand()
    parent = hand.assigned()
    (commit,) = hand.answer(parent, finished(parent.task))
    names = tuple((r.unit, r.stream) for _, r in commit.results)
    hand.send(Committed(pipeline="p", committed=(), dropped=names))
    (replan,) = hand.settle()
    assert isinstance(replan, Replan) and hand.coordinator.counts.planned == 0


def test_a_parent_that_fails_for_good_does_not_leave_the_run_waiting() -> None:
    hand = Hand(attempts=1)
    parent = hand.assigned()
    (finish,) = hand.answer(parent, failure(parent.task, FailureClass.WORKER))
    assert isinstance(finish, Finish) and finish.exit_code == 3
    assert hand.coordinator.counts.failed == 3


def test_an_input_that_changes_takes_children_back_to_planning() -> None:
    hand = Hand()
    parent = hand.assigned()
    gone = failure(parent.task, FailureClass.INPUT_CHANGED, changed=("/c/000",))
    (replan,) = hand.answer(parent, gone)
    assert isinstance(replan, Replan) and hand.coordinator.counts.planned == 0


def test_a_child_without_its_parent_is_a_fault_of_ours() -> None:
    coordinator = Coordinator(run="run", pools=POOLS, cpus=4)
    with pytest.raises(ValueError, match="not planned"):
        coordinator.add([t for t in family(1) if t.stream == "b"])


def test_a_child_that_was_planned_twice_is_made_once() -> None:
    """Found by the simulator: it stood twice in the queue, and then twice in a commit (G5)."""
    hand = Hand()
    for _ in range(2):
        parent = hand.assigned()
        gone = failure(parent.task, FailureClass.INPUT_CHANGED, changed=("/c/000",))
        (replan,) = hand.answer(parent, gone)
        assert isinstance(replan, Replan)
        hand.send(Replanned(tasks=tuple(family(1))))
    parent = hand.assigned()
    (commit,) = hand.answer(parent, finished(parent.task))
    names = tuple((r.unit, r.stream) for _, r in commit.results)
    hand.send(Committed(pipeline="p", committed=names, dropped=()))
    child = hand.assigned()
    (commit,) = hand.answer(child, finished(child.task))
    assert [r.stream for _, r in commit.results] == ["b"]
