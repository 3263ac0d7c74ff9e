"""A schedule: a small corpus, runs over it, and everything that may go wrong between them.

Actors take turns by chance; while one is in the middle of an operation on the store, others may
act (`_between`), so that every commit can lose its race and every plan be overtaken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tokenmill.pipelines.coordinator as coordinator_module
import tokenmill.store.ledger as ledger_module
import tokenmill.store.snapshot as snapshot_module
from sim.chance import Chance
from sim.corpus import ABSENT, GOOD, KILLS, REFUSED, ROOT, Corpus
from sim.driver import PARENTS, PIPELINE, STREAMS, Driver, DriverKilled, Settings
from sim.machines import Attempt, Died, Machines, Worker, WorkerCode, batches, fails
from sim.memory import Folder, Log, MemoryAccess, MemoryTable
from tokenmill.pipelines.coordinator import (
    Answered,
    Event,
    StopAsked,
    Tick,
    WorkerLost,
    WorkerReady,
)
from tokenmill.schemas.errors import StoreError, StoreUnavailable
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.schemas.work import FailureClass
from tokenmill.store import upkeep
from tokenmill.store.ledger import GRACE_SECONDS, Ledger
from tokenmill.store.snapshot import Snapshot, take_snapshot

DAY = 86_400.0
NODES = 3
# A schedule that is not over by then never is: calm ones take some hundred.
MOST_STEPS = 6_000

# What may go wrong, by where it is decided.
IN_WORKER = ("kill-worker", "lose-node", "zombie", "put-fails", "bad-node")
IN_APPEND = ("append-refused", "answer-lost", "driver-killed-in-store")
IN_STORE = ("append-refused", "answer-lost", "driver-killed-in-store", "store-down")
IN_DRIVER = ("kill-driver", "stop")
IN_WORLD = (
    "second-driver",
    "replace-input",
    "add-input",
    "delete-input",
    "cut-archive",
    "restore-input",
    "upgrade",
    "vacuum",
    "reader",
    "sleep",
    "slow-node",
)
FAULTS = (*IN_WORKER, *IN_STORE, *IN_DRIVER, *IN_WORLD)


class Hung(AssertionError):
    """The run does not end."""


@dataclass(kw_only=True, slots=True)
class Zombie:
    """An attempt of a worker that its driver believes dead."""

    driver: Driver
    worker: int
    stream: str
    attempt: Attempt


@dataclass(kw_only=True, slots=True)
class Pinned:
    """A reader's snapshot and when it renewed it last."""

    snapshot: Snapshot
    renewed: float
    tagged: bool


@dataclass
class Parts:
    """What a mutant may exchange. focus: the kinds of faults that it takes, "" for any."""

    focus: Sequence[str] = ()
    table: type[MemoryTable] = MemoryTable
    code: type[WorkerCode] = WorkerCode
    vacuum: Callable[..., Any] = upkeep.vacuum


@dataclass
class World:
    chance: Chance
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        chance = self.chance
        self.clock = 1e9
        self.corpus = Corpus()
        self.folder = Folder(clock=lambda: self.clock)
        self.log = Log()
        self.drivers: list[Driver] = []
        self.zombies: list[Zombie] = []
        self.pinned: list[Pinned] = []
        self.revisions = dict.fromkeys(STREAMS, 1)
        self.upgraded = False
        self.alone: dict[bytes, int] = {}  # sample -> kills from outside while it was alone
        self.trace: list[str] = []
        self.injected: dict[str, int] = {}
        self.steps = 0
        self.bad_node = self.slow_node = -1
        self.down_until = 0.0
        self._stack: list[Driver] = []  # who is in the middle of an operation
        self._vacuuming = False
        self.enabled = self._some_faults()
        self.budget = 1 + chance.pick(20) if self.enabled else 0
        self.rate = (30, 100, 250, 500)[chance.pick(4)]
        self.overlap = (0, 100, 300, 500)[chance.pick(4)]
        self.commit_units = (64, 1, 2, 3)[chance.pick(4)]
        self.drift = chance.happens(60)
        for _ in range(1 + chance.pick(4)):
            self._write_new()

    def _some_faults(self) -> frozenset[str]:
        """A few kinds or many, for each schedule others, so that rare ones meet each other."""
        chance = self.chance
        if self.parts.focus:
            return frozenset(self.parts.focus)
        if chance.pick(2):
            return frozenset(FAULTS[chance.pick(len(FAULTS))] for _ in range(1 + chance.pick(5)))
        share = (0, 100, 250, 500)[chance.pick(4)]
        return frozenset(f for f in FAULTS if share and chance.happens(share))

    # -- the corpus ---------------------------------------------------------------------

    def _write_new(self) -> None:
        splittable = self.chance.pick(2) == 0
        name = f"{ROOT}/{len(self.corpus.changes)}.{'txt' if splittable else 'tar'}"
        self._write(name)

    def _write(self, uri: str, cut: bool = False) -> None:
        count = self.chance.pick(6)
        kinds = [self._kind() for _ in range(count)]
        at = self.chance.pick(count) if cut and count else None
        self.corpus.write(uri, kinds, splittable=uri.endswith(".txt"), cut=at)

    def _kind(self) -> int:
        if not self.chance.happens(150):
            return GOOD
        return (ABSENT, REFUSED, KILLS)[self.chance.pick(3)]

    # -- faults -------------------------------------------------------------------------

    def note(self, what: str) -> None:
        self.trace.append(f"{self.steps:4d} {'  ' * len(self._stack)}{what}")

    def fault(self, kinds: Sequence[str], *, rate: int = 0) -> str | None:
        """One of `kinds` by chance, while the schedule has faults left."""
        if self.budget <= 0:
            return None
        possible = [k for k in kinds if k in self.enabled]
        if not possible or not self.chance.happens(rate or self.rate):
            return None
        kind = possible[self.chance.pick(len(possible))]
        self.budget -= 1
        self.injected[kind] = self.injected.get(kind, 0) + 1
        self.note(kind)
        return kind

    # -- drivers ------------------------------------------------------------------------

    def start_driver(self, *, calm: bool = False) -> Driver:
        chance = self.chance
        number = len(self.drivers)
        driver: Driver

        def before(operation: str) -> None:
            self._between(driver, operation)

        settings = Settings(
            name=f"run{number}",
            unit_bytes=1000 if calm else (1000, 20, 30, 45)[chance.pick(4)],
            unit_inputs=(10, 1, 2)[0 if calm else chance.pick(3)],
            cpus=2 if calm else 1 + chance.pick(4),
            revisions=dict(self.revisions),
            retokenize=self.upgraded,
        )
        access = MemoryAccess(self.folder, before)
        machines = Machines(
            cpus=settings.cpus,
            place=lambda: 0 if calm else chance.pick(NODES),
            stopped=lambda worker, id_: self._stopped(driver, worker, id_),
        )
        driver = Driver(
            settings,
            corpus=self.corpus,
            access=access,
            ledger=lambda: Ledger(access, self._table(driver, before)),  # type: ignore[arg-type]
            machines=machines,
            clock=lambda: self.clock,
        )
        self.drivers.append(driver)
        self.note(
            f"{settings.name} starts: units of {settings.unit_bytes} bytes, "
            f"{settings.unit_inputs} inputs, {settings.cpus} CPUs, {settings.revisions}"
        )
        return driver

    def _table(self, driver: Driver, before: Callable[[str], None]) -> MemoryTable:
        world = self

        class Table(self.parts.table):  # type: ignore[name-defined, misc]
            """Its appends may fail before or after they happen."""

            def append(self, rows: Any, *, app: str, seq: int, commit_id: str) -> None:
                before("append")
                # there are few appends: make more of them
                kind = world.fault(IN_APPEND, rate=max(world.rate, 300))
                if kind == "append-refused":
                    raise OSError("connection reset before the append")
                loaded = self.version
                super().append(rows, app=app, seq=seq, commit_id=commit_id)
                if kind is not None:
                    self.version = loaded
                if kind == "answer-lost":
                    raise OSError("connection reset after the append")
                if kind == "driver-killed-in-store":
                    raise DriverKilled

            def _nothing(self, operation: str) -> None:
                return

        return Table(self.log, before)

    def _between(self, driver: Driver, operation: str) -> None:
        """Something else may happen before an operation of `driver` on the store."""
        if self.clock < self.down_until:
            if operation == "append":
                raise OSError("503")
            raise StoreUnavailable("the store does not answer", why="503")
        kind = self.fault(("store-down", "driver-killed-in-store"))
        if kind == "store-down":
            self.down_until = self.clock + (0, 5, 60, 700)[self.chance.pick(4)]
            if operation == "append":
                raise OSError("503")
            raise StoreUnavailable("the store does not answer", why="503")
        if kind is not None:
            raise DriverKilled
        if self.overlap and len(self._stack) < 3 and self.chance.happens(self.overlap):
            for _ in range((1, 3, 9, 27)[self.chance.pick(4)]):
                self.act(1 + self.chance.pick(20))

    def _stopped(self, driver: Driver, worker: Worker, id_: int) -> None:
        """A worker that is told to stop, or whose driver died, may go on for a while."""
        if worker.attempts and "zombie" in self.enabled and self.chance.happens(300):
            self._let_go(driver, worker, id_)

    def _let_go(self, driver: Driver, worker: Worker, id_: int) -> None:
        for attempt in worker.attempts.values():
            self.zombies.append(
                Zombie(driver=driver, worker=id_, stream=worker.pool[1], attempt=attempt)
            )

    def code(self, driver: Driver, stream: str) -> WorkerCode:
        facts: WorkerFacts = driver.facts[PIPELINE, stream]
        drift = self.drift and stream == "b" and driver.settings.name.endswith(("1", "3"))
        return self.parts.code(self.corpus, self.folder, facts, drift=drift)

    # -- what happens to a driver -------------------------------------------------------

    def next_event(self, driver: Driver) -> Event:
        machines, chance = driver.machines, self.chance
        self.clock += (0.5, 3.0, 20.0)[chance.pick(3)]
        if self.fault(("stop",)):
            return StopAsked(why="SIGTERM")
        starting = [i for i, w in machines.workers.items() if not w.ready]
        running = [(i, a) for i, w in machines.workers.items() if w.ready for a in w.attempts]
        if not starting and not running:
            self.clock += 15.0
            return Tick()
        at = chance.pick(len(starting) + len(running))
        if at < len(starting):
            return self._start(driver, starting[at])
        return self._work(driver, *running[at - len(starting)])

    def _start(self, driver: Driver, id_: int) -> Event:
        kind = self.fault(("kill-worker", "lose-node"))
        if kind is not None:
            del driver.machines.workers[id_]
            return _lost(id_, kind)
        driver.machines.workers[id_].ready = True
        return WorkerReady(worker=id_)

    def _work(self, driver: Driver, id_: int, number: int) -> Event:
        worker = driver.machines.workers[id_]
        attempt = worker.attempts[number]
        if worker.node == self.bad_node and attempt.phase != "written":
            del worker.attempts[number]
            details = {"error": "OSError at read.py:1", "examples": (), "good": None}
            answer = fails(attempt.task, FailureClass.SYSTEMATIC, details=details)
            return Answered(worker=id_, pipeline=PIPELINE, answer=answer)
        if worker.node == self.slow_node and self.chance.pick(5):
            return Tick()
        kind = self.fault(IN_WORKER)
        if kind == "bad-node":
            self.bad_node = -1 if self.bad_node >= 0 else worker.node
        elif kind == "put-fails" and attempt.phase == "read":
            del worker.attempts[number]
            answer = fails(attempt.task, FailureClass.STORE)
            return Answered(worker=id_, pipeline=PIPELINE, answer=answer)
        elif kind in ("kill-worker", "lose-node", "zombie"):
            return self._lose(driver, id_, number, kind)
        answered = self.code(driver, worker.pool[1]).advance(attempt)
        if answered is None:
            return Tick()
        del worker.attempts[number]
        if isinstance(answered, Died):
            del driver.machines.workers[id_]
            return _lost(id_, "kill-worker", answered.samples, attempt.task.unit.id)
        return Answered(worker=id_, pipeline=PIPELINE, answer=answered)

    def _lose(self, driver: Driver, id_: int, number: int, kind: str) -> Event:
        worker = driver.machines.workers.pop(id_)
        attempt = worker.attempts[number]
        held: tuple[bytes, ...] = ()
        if kind == "zombie":
            self._let_go(driver, worker, id_)
        elif kind == "kill-worker" and attempt.phase == "read":
            possible = list(batches(attempt))
            if possible and self.chance.pick(3):
                held = possible[self.chance.pick(len(possible))]
        if len(held) == 1:
            self.alone[held[0]] = self.alone.get(held[0], 0) + 1
        if kind == "zombie" and self.chance.pick(2):
            kind = "kill-worker"
        return _lost(id_, kind, held, attempt.task.unit.id if held else None)

    # -- what happens beside ------------------------------------------------------------

    def act(self, turn: int = 0) -> None:
        """One step of whoever's turn it is."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Hung(f"not over after {MOST_STEPS} steps")
        kind = self.fault(IN_WORLD) or self.fault(("kill-driver",))
        if kind is not None:
            self._befall(kind)
            return
        busy = set(map(id, self._stack))
        free = [d for d in self.drivers if not d.over and id(d) not in busy]
        actors: list[Driver | Zombie] = [*free, *self.zombies]
        if not actors:
            return
        actor = actors[(turn or self.chance.pick(len(actors))) % len(actors)]
        if isinstance(actor, Zombie):
            self._haunt(actor)
        else:
            self.step(actor)

    def step(self, driver: Driver) -> None:
        self._stack.append(driver)
        try:
            driver.step(lambda: self.next_event(driver))
        finally:
            self._stack.pop()
        if driver.over:
            self.note(f"{driver.settings.name} ends: {driver.exit_code} {driver.why[:200]}")

    def _haunt(self, zombie: Zombie) -> None:
        """A worker believed dead writes late and answers late."""
        code = self.code(zombie.driver, zombie.stream)
        answered = code.advance(zombie.attempt)
        if answered is None:
            return
        self.zombies.remove(zombie)
        if not zombie.driver.over and not isinstance(answered, Died):
            self.note("a late answer")
            answer = Answered(worker=zombie.worker, pipeline=PIPELINE, answer=answered)
            zombie.driver.queue.append(answer)

    def _befall(self, kind: str) -> None:
        chance, uris = self.chance, sorted(self.corpus.files)
        uri = uris[chance.pick(len(uris))] if uris else None
        busy = set(map(id, self._stack))
        match kind:
            case "second-driver":
                self.start_driver()
            case "kill-driver":
                free = [d for d in self.drivers if not d.over and id(d) not in busy]
                if free:
                    free[chance.pick(len(free))].kill()
            case "add-input":
                self._write_new()
            case "replace-input" | "cut-archive" if uri is not None:
                self._write(uri, cut=kind == "cut-archive" and uri.endswith(".tar"))
            case "restore-input" if uri is not None:
                before = self.corpus.files[uri]
                self._write(uri)
                if chance.pick(2):
                    self.corpus.put(before)
            case "delete-input" if uri is not None:
                self.corpus.delete(uri)
            case "upgrade":
                self.upgraded = True
                self.revisions["a" if chance.pick(2) else "b"] += 1
                self.revisions |= {child: self.revisions[of] for child, of in PARENTS.items()}
            case "vacuum":
                self.vacuum()
            case "reader":
                self.read()
            case "sleep" if not self._stack:  # nobody sleeps for days in the middle of a commit
                self.clock += DAY * (1, 4, 8, 40)[chance.pick(4)]
            case "slow-node":
                self.slow_node = chance.pick(NODES)

    def vacuum(self) -> None:
        if self._vacuuming:
            return
        self._vacuuming = True

        def before(operation: str) -> None:
            if self.overlap and len(self._stack) < 3 and operation in ("list", "read", "refresh"):
                for _ in range(self.chance.pick(12)):
                    self.act(1 + self.chance.pick(20))

        access = MemoryAccess(self.folder, before)
        try:
            ledger = Ledger(access, MemoryTable(self.log, before))  # type: ignore[arg-type]
            self.parts.vacuum(access, ledger, dry_run=False)
        finally:
            self._vacuuming = False

    def read(self) -> None:
        """A trainer pins the current snapshot, or renews what it has."""
        access = MemoryAccess(self.folder)
        if self.pinned and self.chance.pick(2):
            pinned = self.pinned[self.chance.pick(len(self.pinned))]
            try:
                Snapshot.load(access, pinned.snapshot.hash)
            except StoreError:
                if self.living(pinned):
                    raise
                self.pinned.remove(pinned)
                return
            pinned.renewed = self.clock
            return
        snapshot = take_snapshot(access, Ledger(access, MemoryTable(self.log)))  # type: ignore[arg-type]
        tagged = self.chance.pick(2) == 1
        if tagged:
            upkeep.tag(access, f"tag{len(self.pinned)}", snapshot.hash)
        self.pinned.append(Pinned(snapshot=snapshot, renewed=self.clock, tagged=tagged))

    def living(self, pinned: Pinned) -> bool:
        # a reader renews at most daily
        life = upkeep.SNAPSHOT_LIFE_SECONDS - DAY
        return pinned.tagged or self.clock - pinned.renewed < life


def _lost(
    worker: int, kind: str, held: tuple[bytes, ...] = (), unit: bytes | None = None
) -> WorkerLost:
    place = kind in ("lose-node", "zombie")
    return WorkerLost(
        worker=worker,
        kind=FailureClass.PLACE if place else FailureClass.WORKER,
        why=kind,
        in_flight=held,
        unit=unit,
    )


@contextmanager
def without_clocks(world: World) -> Iterator[None]:
    """Nobody sleeps, and a day is as long as the world says."""
    calm = SimpleNamespace(sleep=lambda _seconds: None)
    clock = SimpleNamespace(time=lambda: world.clock)
    with (
        mock.patch.object(ledger_module, "time", calm),
        mock.patch.object(snapshot_module, "time", clock),
        mock.patch.object(coordinator_module, "COMMIT_UNITS", world.commit_units),
    ):
        yield


def grace() -> float:
    return GRACE_SECONDS
