"""One simulated `run`: the real Session.plan, Coordinator, Committer, loop.turn and Ledger, with
simulated workers. A step is one event and what follows from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from sim.corpus import Corpus, CorpusSource
from sim.machines import Machines
from tokenmill.pipelines.coordinator import Coordinator, Event, Pool, PoolLimits, Tick
from tokenmill.pipelines.loop import Committer, turn
from tokenmill.pipelines.session import Options, Session, refuse_outdated
from tokenmill.schemas.errors import TokenmillError
from tokenmill.schemas.job import parse_job
from tokenmill.schemas.tokenizer import Descriptor, OutputSpec, TokenizerIdentity, WorkerFacts
from tokenmill.store.access import Access
from tokenmill.store.ledger import Ledger, StreamFacts

PIPELINE = "p"
STREAMS = ("a", "b", "c")
PARENTS = {"c": "a"}  # c is made from the committed tokens of a
# What a Session wants to begin with; its sources, store and cuts are exchanged for simulated ones.
_JOB = parse_job(
    """
name: job
store: /nowhere
pipelines:
  p:
    source: {uri: "/nowhere/*.txt", format: text}
    streams: {a: {tokenizer: bpe, checkpoint: none}, b: {tokenizer: bpe, checkpoint: none}}
""",
    name="job.yaml",
    folder="/nowhere",
)


class DriverKilled(BaseException):
    """SIGKILL in the middle of something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How one run is started. revisions: stream -> revision of its recipe."""

    name: str
    unit_bytes: int
    unit_inputs: int
    cpus: int
    revisions: Mapping[str, int]
    retokenize: bool


_FACTS: dict[tuple[str, int], WorkerFacts] = {}


def facts_of(stream: str, revision: int) -> WorkerFacts:
    """Of a child, `revision` is its parent's: its own code never changes."""
    if (stream, revision) not in _FACTS:
        identity = TokenizerIdentity(
            name="toy", space="ab" * 32, parts={"ids_revision": revision, "stream": stream}
        )
        if stream in PARENTS:
            above = facts_of(PARENTS[stream], revision).identity
            identity = identity.child_of(above.space, above.recipe)
        _FACTS[stream, revision] = WorkerFacts(
            stream=stream,
            identity=identity,
            descriptor=Descriptor(
                name="toy",
                modality="text",
                ids_revision=revision,
                fields=("text",),
                outputs=(OutputSpec(dtype="uint32", codebook_sizes=(1 << 16,)),),
            ),
            output=OutputSpec(dtype="uint32", codebook_sizes=(1 << 16,)),
            checkpoint=None,
            checkpoint_sha256=None,
            config={},
            modality="text",
        )
    return _FACTS[stream, revision]


class Driver:
    """`step` until `over`. exit_code: None where it was killed."""

    def __init__(
        self,
        settings: Settings,
        *,
        corpus: Corpus,
        access: Access,
        ledger: Callable[[], Ledger],
        machines: Machines,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.machines = machines
        self.queue: deque[Event] = deque()
        self.exit_code: int | None = None
        self.why = ""
        self.over = False
        self.listed: Mapping[str, int] = {}  # uri -> how often it had changed when we listed
        self._corpus = corpus
        self._clock = clock
        self._open = ledger
        self.facts: dict[Pool, WorkerFacts] = {
            (PIPELINE, s): facts_of(s, settings.revisions[s]) for s in STREAMS
        }
        self.session = _session(settings, corpus, access, self.facts)
        self.coordinator: Coordinator | None = None
        self._phase = self._list

    def step(self, next_event: Callable[[], Event]) -> None:
        """Raises whatever no user may ever see: a fault of ours."""
        try:
            self._phase(next_event)
        except DriverKilled:
            self._end(None, "killed")
        except TokenmillError as error:
            self._end(error.exit_code, str(error))

    def kill(self) -> None:
        self._end(None, "killed")

    def _list(self, _next: Callable[[], Event]) -> None:
        self.listed = {uri: self._corpus.changes[uri] for uri in self._corpus.files}
        self.session.list()
        self._phase = self._plan

    def _plan(self, _next: Callable[[], Event]) -> None:
        self.ledger = self._open()
        plans = self.session.plan(self.ledger)
        if not self.settings.retokenize:
            refuse_outdated(plans, self.session, self.ledger)
        self.coordinator = Coordinator(
            run=self.settings.name,
            pools={pool: PoolLimits(most=2) for pool in self.facts},
            cpus=self.settings.cpus,
        )
        self.coordinator.add(self.session.tasks(plans))
        self._committer = Committer(
            ledger=self.ledger,
            run=self.settings.name,
            facts={PIPELINE: {s: _stream_facts(self.facts[PIPELINE, s]) for s in STREAMS}},
            run_row={"job": "job", "host": "here", "job_json": "{}"},
        )
        self.queue.append(Tick())
        self._phase = self._turn

    def _turn(self, next_event: Callable[[], Event]) -> None:
        assert self.coordinator is not None
        finish = turn(
            self.coordinator,
            self.queue.popleft() if self.queue else next_event(),
            self.machines,
            self._committer,
            replan=lambda p, uris: list(
                self.session.tasks(self.session.plan(self.ledger, only=(p, uris)))
            ),
            clock=self._clock,
        )
        if finish is None:
            return
        if finish.error is not None and not isinstance(finish.error, TokenmillError):
            raise finish.error
        self.exit_code, self.why = finish.exit_code, finish.why
        state = {0: "finished", 4: "stopped"}.get(finish.exit_code, "failed")
        self.ledger.finish_run(PIPELINE, self.settings.name, state, {})
        self._end(finish.exit_code, finish.why)

    def _end(self, exit_code: int | None, why: str) -> None:
        self.exit_code, self.why, self.over = exit_code, why, True
        for worker in list(self.machines.workers):
            self.machines.stop(worker)


def _session(
    settings: Settings, corpus: Corpus, access: Access, facts: Mapping[Pool, WorkerFacts]
) -> Session:
    """A Session whose job and sources are simulated; its planning is the real one."""
    session = Session(_JOB, Options(retokenize=settings.retokenize))
    source = SimpleNamespace(unit_bytes=settings.unit_bytes, unit_inputs=settings.unit_inputs)
    streams = {s: SimpleNamespace(parent=PARENTS.get(s)) for s in STREAMS}
    pipeline = SimpleNamespace(source=source, streams=streams)
    session.job = SimpleNamespace(name="job", pipelines={PIPELINE: pipeline})  # type: ignore[assignment]
    session.access = access
    session.sources = {PIPELINE: CorpusSource(corpus)}  # type: ignore[dict-item]
    session.facts = dict(facts)
    session.forgotten = {}
    session._again = None
    return session


def _stream_facts(found: WorkerFacts) -> StreamFacts:
    return StreamFacts(
        stream=found.stream,
        modality=found.modality,
        identity=found.identity,
        descriptor=found.descriptor,
        checkpoint=found.checkpoint,
        checkpoint_sha256=found.checkpoint_sha256,
        config=found.config,
    )
