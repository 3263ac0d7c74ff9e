"""The workers of one simulated run: the Executor's contract, with faults in place of processes.

The worker itself is a model of workers/worker.py: it reads conditionally on the planned version,
encodes in batches, writes under an attempt-specific name, and only then answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sim.corpus import KILLS, Corpus, Row, enumerate_span, of_parent
from sim.memory import Folder
from tokenmill.pipelines.coordinator import Pool
from tokenmill.schemas.shard import order_hash
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.schemas.work import (
    Cell,
    FailureClass,
    ParentRows,
    Quarantine,
    ShardFile,
    Task,
    TaskFailure,
    TaskResult,
)

BATCH = 2  # samples that native code holds at once
ROLL = 3  # rows of a shard file


@dataclass(kw_only=True, slots=True)
class Attempt:
    """One task in one worker: read, written, then answered."""

    task: Task
    phase: str = "assigned"  # assigned | read | written
    rows: list[Row] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    input_faults: list[Quarantine] = field(default_factory=list)
    shards: list[ShardFile] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Worker:
    pool: Pool
    node: int
    ready: bool = False
    attempts: dict[int, Attempt] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Died:
    """The worker's process died while native code held these samples."""

    samples: tuple[bytes, ...]


class Machines:
    """Starts, feeds and stops workers, as pipelines/executors.py:Executor."""

    name = "simulated"
    gpus = 0.0

    def __init__(
        self,
        *,
        cpus: float,
        place: Callable[[], int],
        stopped: Callable[[Worker, int], None],
    ) -> None:
        self.cpus = cpus
        self.workers: dict[int, Worker] = {}
        self._place = place
        self._stopped = stopped

    def start(self, worker: int, pool: Pool) -> None:
        self.workers[worker] = Worker(pool=pool, node=self._place())

    def assign(self, worker: int, task: Task) -> None:
        # a dead one has been reported, with all that it held
        if worker in self.workers:
            self.workers[worker].attempts[task.attempt] = Attempt(task=task)

    def stop(self, worker: int) -> None:
        gone = self.workers.pop(worker, None)
        if gone is not None:
            self._stopped(gone, worker)


class WorkerCode:
    """What a worker does with one attempt, a phase at a time; `facts` of its stream."""

    def __init__(
        self, corpus: Corpus, folder: Folder, facts: WorkerFacts, *, drift: bool = False
    ) -> None:
        self._corpus = corpus
        self._folder = folder
        self._facts = facts
        self._drift = drift
        self._revision = int(facts.identity.parts["ids_revision"])

    def advance(self, attempt: Attempt) -> TaskResult | TaskFailure | Died | None:
        """One phase further; an answer, a death, or nothing yet."""
        if attempt.phase == "assigned":
            return self._read(attempt)
        if attempt.phase == "read":
            self._write(attempt)
            attempt.phase = "written"
            return None
        return self._result(attempt)

    def _read(self, attempt: Attempt) -> TaskFailure | Died | None:
        task = attempt.task
        killers: set[bytes] = set()
        if task.parent is not None:
            self._read_parent(attempt, task.parent)
            attempt.phase = "read"
            return None
        for span in task.unit.spans:
            file = self._corpus.files.get(span.input.uri)
            if file is None or file.input().version != span.input.version:
                return fails(task, FailureClass.INPUT_CHANGED, changed=(span.input.uri,))
            rows = enumerate_span(file, span, task.stream, self._revision)
            if self._drift:
                rows.reverse()
            at = len(attempt.rows)
            attempt.cells.append(Cell(span=span, first_row=at, rows=len(rows)))
            attempt.rows += rows
            killers |= {r.sample for r in rows if file.kinds[int(r.key)] == KILLS}
            if file.cut is not None:
                attempt.input_faults.append(_cut_short(span.input.uri))
        for batch in batches(attempt):
            if killers & set(batch):
                return Died(samples=batch)
        attempt.phase = "read"
        return None

    def _read_parent(self, attempt: Attempt, parent: ParentRows) -> None:
        """The committed rows of another stream, as workers/parents.py reads them."""
        for span, (first, count) in zip(attempt.task.unit.spans, parent.spans, strict=True):
            at = len(attempt.rows)
            attempt.cells.append(Cell(span=span, first_row=at, rows=count))
            for row in range(first, first + count):
                (file,) = (f for f in parent.files if f.first_row <= row < f.first_row + f.rows)
                listed = json.loads(self._folder.files[file.path][0])
                sample, verdict, tokens = listed[row - file.first_row]
                found = Row(
                    sample=bytes.fromhex(sample), key="", verdict=verdict, tokens=tuple(tokens)
                )
                attempt.rows.append(of_parent(found))

    def _write(self, attempt: Attempt) -> None:
        """Shard files: their bytes are their rows, so that a reader can be simulated too."""
        task = attempt.task
        attempt.rows = [_condemned(r, task) for r in attempt.rows]
        for number, first in enumerate(range(0, len(attempt.rows), ROLL)):
            rows = attempt.rows[first : first + ROLL]
            data = json.dumps(
                [[r.sample.hex(), r.verdict, r.tokens] for r in rows], separators=(",", ":")
            ).encode()
            listed = self._folder.put(self.path(task, number), data)
            attempt.shards.append(
                ShardFile(
                    path=listed.path,
                    first_row=first,
                    rows=len(rows),
                    samples=sum(r.verdict == "tokens" for r in rows),
                    tokens=sum(len(r.tokens) for r in rows),
                    size=listed.size,
                    content_hash=hashlib.sha256(data).digest(),
                    encoding="plain",
                    written_at=listed.modified,
                )
            )

    def path(self, task: Task, number: int) -> str:
        folder = f"shards/{task.unit.pipeline}/{task.stream}"
        return f"{folder}/{task.unit.id.hex()}-{task.run}-{task.attempt}-{number}.arrow"

    def _result(self, attempt: Attempt) -> TaskResult:
        task, rows = attempt.task, attempt.rows
        refused = [(i, r) for i, r in enumerate(rows) if r.verdict not in ("tokens", "absent")]
        return TaskResult(
            unit=task.unit.id,
            stream=task.stream,
            attempt=task.attempt,
            recipe=self._facts.identity.recipe,
            space=self._facts.identity.space,
            shards=tuple(attempt.shards),
            cells=tuple(attempt.cells),
            enumerated=len(rows),
            with_tokens=sum(r.verdict == "tokens" for r in rows),
            absent=sum(r.verdict == "absent" for r in rows),
            tokens=sum(len(r.tokens) for r in rows),
            quarantined=tuple(_quarantine(attempt.cells, i, r) for i, r in refused),
            input_faults=tuple(attempt.input_faults),
            order_hash=order_hash([r.sample for r in rows]),
        )


def batches(attempt: Attempt) -> Iterator[tuple[bytes, ...]]:
    """The samples that native code holds together: the isolated ones alone."""
    task = attempt.task
    batch: list[bytes] = []
    for row in attempt.rows:
        if row.sample in task.condemned:
            continue
        if row.sample in task.isolate:
            yield (row.sample,)
            continue
        batch.append(row.sample)
        if len(batch) == BATCH:
            yield tuple(batch)
            batch = []
    if batch:
        yield tuple(batch)


def fails(task: Task, kind: FailureClass, **more: object) -> TaskFailure:
    return TaskFailure(
        unit=task.unit.id,
        stream=task.stream,
        attempt=task.attempt,
        kind=kind,
        message=str(kind),
        **more,  # type: ignore[arg-type]
    )


def _condemned(row: Row, task: Task) -> Row:
    if row.sample not in task.condemned:
        return row
    return Row(sample=row.sample, key=row.key, verdict=task.condemned[row.sample][0], tokens=())


def _quarantine(cells: Sequence[Cell], index: int, row: Row) -> Quarantine:
    cell = next(c for c in cells if c.first_row <= index < c.first_row + c.rows)
    return Quarantine(
        sample=row.sample,
        key=row.key,
        source=cell.span.input.uri,
        row=index,
        reason=row.verdict,
        message="simulated",
        stage="encode",
    )


def _cut_short(uri: str) -> Quarantine:
    return Quarantine(
        sample=None,
        key=uri,
        source=uri,
        row=None,
        reason="truncated",
        message="the archive ends early",
        stage="read",
    )
