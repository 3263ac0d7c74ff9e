"""Faults planted in the real parts: each is what the code would be without one of its guards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import sim.checks
import tokenmill.pipelines.session as session_module
import tokenmill.store.ledger as ledger_module
from sim.machines import Attempt, WorkerCode
from sim.memory import MemoryTable
from sim.world import Parts
from tokenmill.pipelines.coordinator import Answered, Coordinator
from tokenmill.pipelines.plan import Plan, plan
from tokenmill.pipelines.session import Session
from tokenmill.schemas.work import Task, TaskFailure
from tokenmill.store import upkeep
from tokenmill.store.access import Access
from tokenmill.store.alignment import plan_pipeline
from tokenmill.store.conflict import Rivals
from tokenmill.store.ledger import Entry, Ledger

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """parts: exchanged in the world. patches: (object, attribute, new value)."""

    name: str
    parts: Parts = field(default_factory=Parts)
    patches: Sequence[Patch] = ()

    @contextmanager
    def planted(self) -> Iterator[Parts]:
        with ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield self.parts


# -- the ledger ----------------------------------------------------------------------------


class NoCompare(MemoryTable):
    """The version that was read is forgotten: whatever others appended meanwhile stays unseen."""

    def append(self, rows: Any, *, app: str, seq: int, commit_id: str) -> None:
        self.version = len(self._log.commits)
        super().append(rows, app=app, seq=seq, commit_id=commit_id)


_conflict = Rivals._conflict


def _without_versions(self: Rivals, *args: Any) -> str | None:
    with mock.patch.object(self, "versions", {}):
        return _conflict(self, *args)


def _all_fresh(entries: Sequence[Entry], _now: float) -> tuple[list[Entry], dict[Any, str]]:
    return list(entries), {}


# -- the plan ------------------------------------------------------------------------------


def _by_unit(
    pipeline: str, inputs: Any, recipes: Any, coverage: Mapping[str, Any], **more: Any
) -> Plan:
    """Units that were committed are done; everything else is cut as if nothing was."""
    whole = plan(pipeline, inputs, recipes, {}, **more)
    done = {(stream, cell.unit) for stream, cells in coverage.items() for cell in cells}
    left = tuple(t for t in whole.tasks if (t.stream, t.unit.id) not in done)
    return dataclasses.replace(whole, tasks=left)


_plan = Session.plan


def _seq_last(self: Session, ledger: Ledger, only: Any = None) -> Any:
    plans = _plan(self, ledger, only)
    return {name: (made, ledger.seq(name)) for name, (made, _) in plans.items()}


def _in_part(*args: Any, **more: Any) -> Plan:
    with (
        mock.patch("tokenmill.pipelines.plan._whole_cells", lambda *_: True),
        mock.patch(
            "tokenmill.pipelines.plan._apart",
            lambda need, _: tuple((whole, False) for whole in need),
        ),
    ):
        return plan(*args, **more)


# -- the coordinator -----------------------------------------------------------------------

_on_answer = Coordinator._on_answer


def _any_attempt(self: Coordinator, event: Answered, now: float) -> Any:
    name = (event.pipeline, event.answer.unit, event.answer.stream)
    work = self._work.get(name)
    if work is not None and work.attempt is not None:
        answer = dataclasses.replace(event.answer, attempt=work.attempt)
        event = dataclasses.replace(event, answer=answer)
    return _on_answer(self, event, now)


def _changed_only(self: Coordinator, name: Any, failure: TaskFailure) -> None:
    self._drop([name])
    self._hold(name[0], failure.changed)


_hold = Coordinator._hold


def _at_once(self: Coordinator, pipeline: str, uris: Any) -> None:
    _hold(self, pipeline, uris)
    self._held[pipeline].blockers = set()


def _condemn_at_once(self: Coordinator, work: Any, sample: bytes, why: str) -> bool:
    work.condemned[sample] = ("process-died", why)
    return True


# -- the worker ----------------------------------------------------------------------------


class AnswersFirst(WorkerCode):
    """Shards are uploaded in the background, after the answer: by the next task of the run."""

    late: dict[tuple[int, str], list[tuple[str, bytes]]] = {}  # noqa: RUF012 - of all workers

    def advance(self, attempt: Attempt) -> Any:
        if attempt.phase != "written":
            for path, data in self.late.pop(self._key(attempt), []):
                self._folder.put(path, data)
        return super().advance(attempt)

    def _write(self, attempt: Attempt) -> None:
        super()._write(attempt)
        files = self._folder.files
        late = self.late.setdefault(self._key(attempt), [])
        late += [(s.path, files.pop(s.path)[0]) for s in attempt.shards]

    def _key(self, attempt: Attempt) -> tuple[int, str]:
        return id(self._folder), attempt.task.run


class NoToken(WorkerCode):
    """Every attempt writes under the same names."""

    def path(self, task: Task, number: int) -> str:
        return super().path(dataclasses.replace(task, run="run", attempt=0), number)


class ReadsAnyVersion(WorkerCode):
    def _read(self, attempt: Attempt) -> Any:
        files = self._corpus.files
        seen = {s.input.uri: s.input.version for s in attempt.task.unit.spans}
        kept = dict(files)
        for uri, version in seen.items():
            if uri in files:
                # today's content under the version that was planned
                files[uri] = _Renamed.of(kept[uri], version)
        try:
            return super()._read(attempt)
        finally:
            files.clear()
            files.update(kept)


class _Renamed:
    """A file that claims another version."""

    @staticmethod
    def of(file: Any, version: str) -> Any:
        made = dataclasses.replace(file)

        class Claims(type(made)):  # type: ignore[misc]
            __slots__ = ()

            def input(self) -> Any:
                return dataclasses.replace(super().input(), version=version)

        return Claims(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})


# -- vacuum and readers --------------------------------------------------------------------


def _ledger_first(access: Access, ledger: Ledger, **more: Any) -> Any:
    """Vacuum that reads ledger and snapshots before it lists the files."""
    snapshots = list(access.list(upkeep.FOLDER))
    named = upkeep._named(access, ledger, snapshots, set())
    with mock.patch.object(upkeep, "_named", lambda *_: named):
        return upkeep.vacuum(access, ledger, **more)


def _no_grace(access: Access, ledger: Ledger, **more: Any) -> Any:
    return upkeep.vacuum(access, ledger, grace=0.0, **more)


def _ledger_only(access: Access, ledger: Ledger, **more: Any) -> Any:
    def named(_access: Any, ledger: Ledger, *_: Any) -> set[str]:
        coverage = ledger.coverage("p")
        units = set(coverage["unit"].to_pylist())
        rows = ledger.rows("unit", columns=["unit", "path"]).to_pylist()
        return {row["path"] for row in rows if row["unit"] in units}

    with mock.patch.object(upkeep, "_named", named):
        return upkeep.vacuum(access, ledger, **more)


def _any_order(pipeline: str, files: Any) -> Any:
    return plan_pipeline(pipeline, [dataclasses.replace(f, order_hash=b"") for f in files])


def _nothing(*_: Any) -> None:
    return


RACE = ("second-driver", "kill-driver")
SLEEP = ("sleep", "vacuum")
CHANGE = ("replace-input", "restore-input", "second-driver", "put-fails")


MUTANTS = (
    Mutant(name="append without the compare-and-swap", parts=Parts(table=NoCompare, focus=RACE)),
    Mutant(name="commit before the write is durable", parts=Parts(code=AnswersFirst)),
    Mutant(
        name="no attempt token in the names of shards",
        parts=Parts(code=NoToken, focus=("zombie", "upgrade", "second-driver")),
    ),
    Mutant(
        name="no attempt token in answers",
        parts=Parts(focus=("zombie",)),
        patches=[(Coordinator, "_on_answer", _any_attempt)],
    ),
    Mutant(name="coverage by unit, not by cell", patches=[(session_module, "plan", _by_unit)]),
    Mutant(
        name="vacuum reads the ledger before it lists",
        parts=Parts(vacuum=_ledger_first, focus=SLEEP),
    ),
    Mutant(name="vacuum without a grace period", parts=Parts(vacuum=_no_grace, focus=SLEEP)),
    Mutant(
        name="vacuum deletes what is superseded",
        parts=Parts(vacuum=_ledger_only, focus=SLEEP + CHANGE),
    ),
    Mutant(
        name="commit takes shards of any age",
        parts=Parts(focus=SLEEP),
        patches=[(ledger_module, "_by_age", _all_fresh)],
    ),
    Mutant(
        name="commit does not look for newer versions",
        parts=Parts(focus=("replace-input", "second-driver")),
        patches=[(Rivals, "_conflict", _without_versions)],
    ),
    Mutant(
        name="commit does not look for its lost answer",
        parts=Parts(focus=("answer-lost",)),
        patches=[(Rivals, "learn_units", _nothing)],
    ),
    Mutant(
        name="the plan's sequence is taken after its coverage",
        parts=Parts(focus=RACE),
        patches=[(Session, "plan", _seq_last)],
    ),
    Mutant(
        name="order hashes are not compared", patches=[(sim.checks, "plan_pipeline", _any_order)]
    ),
    Mutant(
        name="a new recipe replaces cells in part",
        parts=Parts(focus=("upgrade", "stop", "second-driver", "replace-input")),
        patches=[(session_module, "plan", _in_part)],
    ),
    Mutant(
        name="only what changed is planned again",
        parts=Parts(focus=CHANGE),
        patches=[(Coordinator, "_on_changed", _changed_only)],
    ),
    Mutant(
        name="planned again while tasks are under way there",
        parts=Parts(focus=CHANGE),
        patches=[(Coordinator, "_hold", _at_once)],
    ),
    Mutant(
        name="one death alone condemns a sample",
        parts=Parts(focus=("kill-worker",)),
        patches=[(Coordinator, "_suspect", _condemn_at_once)],
    ),
    Mutant(
        name="a postponed commit is forgotten",
        parts=Parts(focus=("store-down", "append-refused")),
        patches=[(Coordinator, "_give_back", _nothing)],
    ),
    Mutant(name="reads are not conditional", parts=Parts(code=ReadsAnyVersion, focus=CHANGE)),
)
