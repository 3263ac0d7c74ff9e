"""StreamWorker: everything one stream needs beside its data, and `run(task)`.

The same class stands in a Ray actor, in a local child process and in a test. Two tasks may run at
once (two slots): the reading and decoding of one overlaps the encoding of the other.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tokenmill.schemas.errors import JobError, TokenizerError
from tokenmill.schemas.identity import canonical_uri
from tokenmill.schemas.job import Job, Policy, Source, Stream, nearest
from tokenmill.schemas.shard import ShardMeta, order_hash
from tokenmill.schemas.tokenizer import (
    Checkpoint,
    Descriptor,
    FlatTokenizer,
    OutputSpec,
    Tokenizer,
    TokenizerIdentity,
    UnitChecker,
    WorkerFacts,
)
from tokenmill.schemas.work import FailureClass, Task, TaskFailure, TaskResult, TaskStats
from tokenmill.store import packed
from tokenmill.store.access import Access
from tokenmill.store.columns import DTYPES
from tokenmill.store.shards import ShardWriter
from tokenmill.workers import registry
from tokenmill.workers.child import GIB, MIB, ChildLimits, ForkServer, ForkServerGone
from tokenmill.workers.device import peak_gpu_bytes
from tokenmill.workers.encode import Gate, Restart, Stopped, TaskRun, encode_flat
from tokenmill.workers.faults import StormDetector, SystematicFault, task_failure
from tokenmill.workers.inflight import InFlightPage
from tokenmill.workers.media.video import reader_family, reader_versions
from tokenmill.workers.parents import ParentReader
from tokenmill.workers.reading import UnitReader
from tokenmill.workers.rows import RowSink, SharedStorms
from tokenmill.workers.sources import open_source
from tokenmill.workers.windows import SamplePool, WindowPath

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far one running task is."""

    unit: bytes
    stream: str
    attempt: int
    samples: int
    tokens: int


class StreamWorker:
    """Loads the stream's tokenizer, opens its source and the store.

    page: file of the in-flight page (created; removed by `close`); None for none.
    limits: of the decode children, by default those of the job's policy. killable: this process is
    the worker's own, so that a batch that never comes back may kill it.
    Raises TokenizerError (checkpoint, plug-in, licence policy), JobError (names), StoreError.
    """

    def __init__(
        self,
        job: Job,
        pipeline: str,
        stream: str,
        *,
        page: Path | None = None,
        limits: ChildLimits | None = None,
        killable: bool = False,
    ) -> None:
        if pipeline not in job.pipelines or stream not in job.pipelines[pipeline].streams:
            raise JobError(f"the job has no stream {pipeline}.{stream}", where=job.name)
        config = job.pipelines[pipeline]
        self._pipeline, self._stream = pipeline, stream
        self._config = config.streams[stream]
        self._where = f"pipelines.{pipeline}.streams.{stream}"
        checkpoint = self._config.checkpoint
        self._tokenizer: Tokenizer = registry.load(
            self._config.tokenizer,
            Checkpoint(uri=checkpoint, sha256=self._config.sha256) if checkpoint else None,
            self._config.config,
        )
        descriptor = self._tokenizer.descriptor
        self._check_policy(job, descriptor)
        self._output = _output(descriptor, self._config, self._where)
        _check_parent(descriptor, self._config, self._where)
        self._fields = _fields(descriptor, self._config, self._where)
        identity = self._tokenizer.identity()
        # what the source does to media stands in a parent's recipe, and by it in the child's
        of_media = self._config.parent is None
        self._identity = _identified(identity, config.source) if of_media else identity
        self._source = open_source(config.source)
        self._access = Access(job.store)
        resources = job.resources.get(stream)
        # half of the CPUs for each of the two slots' children
        cpus = resources.cpus_per_worker if resources else 1.0
        self._pools = _Pools(
            self._tokenizer, max(1, round(cpus / 2)), limits or _limits(job.policy)
        )
        self._page = InFlightPage(page) if page else None
        policy = job.policy
        self._gate = Gate(self._page, patience=policy.encode_seconds if killable else 0.0)
        self._storms = SharedStorms(StormDetector(policy.systematic_share, policy.systematic_row))
        self._running: dict[tuple[bytes, int], tuple[Task, RowSink]] = {}

    def _check_policy(self, job: Job, descriptor: Descriptor) -> None:
        if descriptor.use_policy not in job.policy.licences:
            raise TokenizerError(
                f"the job's policy does not accept {descriptor.name}",
                where=f"{self._where}.tokenizer",
                why=f"its use policy is {descriptor.use_policy!r} (code: "
                f"{descriptor.licence_code or 'unknown'}, weights: "
                f"{descriptor.licence_weights or 'unknown'}); "
                f"policy.licences is {list(job.policy.licences)}",
                remedy="choose another tokenizer, or add the policy to policy.licences",
            )

    def facts(self) -> WorkerFacts:
        """What plan and ledger must know of this stream's tokenizer."""
        checkpoint = self._config.checkpoint
        return WorkerFacts(
            stream=self._stream,
            identity=self._identity,
            descriptor=self._tokenizer.descriptor,
            output=self._output,
            checkpoint=canonical_uri(checkpoint) if checkpoint else None,
            checkpoint_sha256=self._config.sha256
            or self._identity.provenance.get("checkpoint_sha256"),
            config=dict(registry.split_variant(self._config.tokenizer, self._config.config)[1]),
            modality=self._tokenizer.descriptor.modality,
        )

    def progress(self) -> tuple[Progress, ...]:
        """How far the running tasks are; callable from any thread."""
        return tuple(
            Progress(
                unit=unit,
                stream=task.stream,
                attempt=attempt,
                samples=sink.samples,
                tokens=sink.tokens,
            )
            for (unit, attempt), (task, sink) in list(self._running.items())
        )

    def run(self, task: Task) -> TaskResult | TaskFailure:
        """The task's result, or the failure and its class. Never raises for a task's sake."""
        try:
            self._check(task)
            # twice: both slots' tasks may each find the engine wrong once
            for again in range(3):
                try:
                    return self._pass(task, again)
                except Restart:
                    continue
            raise RuntimeError("the tokenizer changed its engine again and again")
        except SystematicFault as fault:
            return fault.failure(task)
        except Stopped:
            return _failure(task, FailureClass.PLACE, "the worker was told to stop")
        except ForkServerGone as error:
            return _failure(task, FailureClass.WORKER, str(error))
        except Exception as error:  # noqa: BLE001 - reported whole: the driver stops with 70
            return task_failure(error, task)

    def stop(self) -> None:
        """Running tasks end at their next batch, as failures of the class PLACE."""
        self._gate.stopping = True

    def close(self) -> None:
        """Children, page and their files go. After the last `run` has returned."""
        self.stop()
        self._pools.close()
        if self._page:
            self._page.close()

    def _identity_of(self, task: Task) -> TokenizerIdentity:
        """A child's ids depend on its parent's too."""
        if task.parent is None:
            return self._identity
        return self._identity.child_of(task.parent.space, task.parent.recipe)

    def _check(self, task: Task) -> None:
        here = self._identity_of(task).recipe
        if task.recipe != here or task.stream != self._stream:
            raise JobError(
                "this worker's recipe is not the plan's",
                where=self._where,
                why=f"planned {task.recipe[:12]}, here {here[:12]}: another "
                "checkpoint, configuration or plug-in version than on the driver",
                remedy="make driver and workers run the same environment, and run again",
            )

    def _pass(self, task: Task, again: int) -> TaskResult:
        """The task from its beginning. Raises Restart, SystematicFault, or what escapes."""
        run = TaskRun(task, self._gate)
        if isinstance(self._tokenizer, UnitChecker):
            with self._gate.encoding(run, ()):
                self._tokenizer.start_unit(run.unit)
        identity = self._identity_of(task)
        reader = self._reader(task)
        writer = self._writer(task, again)
        sink = RowSink(task, writer, self._storms)
        name = (run.unit, task.attempt)
        self._running[name] = (task, sink)
        try:
            self._encode(run, reader, sink)
            with self._gate.encoding(run, ()):  # rows of an engine found wrong go no further
                notes = self._notes(run)
            before = time.perf_counter()
            shards = writer.close()
            sink.seconds += time.perf_counter() - before
        except BaseException:
            writer.abort()
            raise
        finally:
            self._running.pop(name, None)
        return TaskResult(
            unit=run.unit,
            stream=task.stream,
            attempt=task.attempt,
            recipe=identity.recipe,
            space=identity.space,
            shards=shards,
            cells=reader.cells,
            enumerated=reader.enumerated,
            with_tokens=sink.with_tokens,
            absent=sink.absent,
            tokens=sink.tokens,
            quarantined=tuple(sink.quarantined),
            input_faults=tuple(reader.input_faults),
            order_hash=writer.order_hash or order_hash(()),
            stats=TaskStats(
                read=reader.seconds,
                prepare=run.prepare,
                encode=run.encode,
                write=sink.seconds,
                wait=run.wait,
                wall=time.perf_counter() - run.began,
                bytes_read=reader.bytes_read,
                batches=run.batches,
                filled=run.filled,
                gpu_bytes=peak_gpu_bytes(),
            ),
            notes=notes,
        )

    def _reader(self, task: Task) -> UnitReader | ParentReader:
        if task.parent is None:
            return UnitReader(self._source, task.unit, self._fields)
        role = next(iter(self._fields))
        return ParentReader(self._access, task.unit, task.parent, role, self._tokenizer.descriptor)

    def _encode(self, run: TaskRun, reader: UnitReader | ParentReader, sink: RowSink) -> None:
        tokenizer, required = self._tokenizer, self._config.required
        if self._flat:
            assert isinstance(tokenizer, FlatTokenizer)
            encode_flat(
                reader.blocks(),
                role=next(iter(self._fields)),
                tokenizer=tokenizer,
                run=run,
                sink=sink,
                required=required,
                dtype=self._output.dtype,
            )
            return
        path = WindowPath(
            tokenizer=tokenizer,
            output=self._output,
            run=run,
            sink=sink,
            required=required,
            recipe=run.task.recipe,
        )
        if tokenizer.descriptor.prepare_in == "worker":
            path.encode(reader.blocks(), tokenizer.preparer())
            return
        with self._pools.taken() as pool:
            waited = pool.waited
            path.encode(reader.blocks(), pool)
            run.prepare = pool.waited - waited  # that the children kept us waiting

    @property
    def _flat(self) -> bool:
        one = len(self._fields) == 1 and len(self._output.axes) == 1
        return one and isinstance(self._tokenizer, FlatTokenizer)

    def _notes(self, run: TaskRun) -> tuple[str, ...]:
        own = self._tokenizer.notes() if isinstance(self._tokenizer, UnitChecker) else ()
        return (*own, *run.notes)

    def _writer(self, task: Task, again: int) -> ShardWriter:
        attempt = _UNSAFE.sub("_", f"{task.run}-{task.attempt}")
        descriptor = self._tokenizer.descriptor
        identity = self._identity_of(task)
        return ShardWriter(
            self._access,
            meta=ShardMeta(
                pipeline=self._pipeline,
                stream=self._stream,
                unit=task.unit.id.hex(),
                modality=descriptor.modality,
                tokenizer=descriptor.name,
                output=self._output.name,
                space=identity.space,
                recipe=identity.recipe,
                dtype=self._output.dtype,
                axes=self._output.axes,
                codebook_sizes=self._output.codebook_sizes,
            ),
            folder=f"shards/{self._pipeline}/{self._stream}",
            attempt=f"{attempt}-r{again}" if again else attempt,
            encoding=self._config.encoding,
            sources=[span.input.uri for span in task.unit.spans],
        )


def _limits(policy: Policy) -> ChildLimits:
    memory = policy.sample_mib * MIB
    return ChildLimits(progress=policy.sample_seconds, memory=memory, file=min(memory, GIB))


def _identified(identity: TokenizerIdentity, source: Source) -> TokenizerIdentity:
    """What the source does to media before a tokenizer sees them is part of the recipe.

    Raises TokenizerError where the library that does it is not installed.
    """
    if source.clips is None:
        return identity
    try:
        family = reader_family(source.clips.reader)
    except ImportError as error:
        raise TokenizerError("clips cannot be cut here", why=str(error)) from None
    parts = {"clips": source.clips.model_dump(mode="json"), "clips_decoder": family}
    return replace(
        identity,
        parts={**identity.parts, **parts},
        provenance={**reader_versions(), **identity.provenance},
    )


def _failure(task: Task, kind: FailureClass, message: str) -> TaskFailure:
    return TaskFailure(
        unit=task.unit.id, stream=task.stream, attempt=task.attempt, kind=kind, message=message
    )


class _Pools:
    """Decode children: a pool for each slot, made when first needed and kept."""

    def __init__(self, tokenizer: Tokenizer, count: int, limits: ChildLimits) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._limits = limits
        self._lock = threading.Lock()
        self._server: ForkServer | None = None
        self._free: list[SamplePool] = []

    @contextmanager
    def taken(self) -> Iterator[SamplePool]:
        with self._lock:
            if self._server is not None and not self._server.alive:
                self._server = None
                self._free.clear()  # pools of a dead server
            pool = self._free.pop() if self._free else self._new()
        try:
            yield pool
        finally:
            with self._lock:
                if pool.server is self._server:
                    self._free.append(pool)

    def _new(self) -> SamplePool:
        preparer = self._tokenizer.preparer()
        if self._server is None:
            self._server = ForkServer((type(preparer).__module__,))
        return SamplePool(self._server, preparer, count=self._count, limits=self._limits)

    def close(self) -> None:
        """Kill all children: the fork server takes them with it."""
        with self._lock:
            for pool in self._free:
                pool.close()
            if self._server is not None:
                self._server.close()


def _output(descriptor: Descriptor, config: Stream, where: str) -> OutputSpec:
    try:
        output = descriptor.output(config.output)
    except KeyError as error:
        raise TokenizerError(str(error.args[0]), where=f"{where}.output") from None
    if output.dtype not in DTYPES or output.continuous != output.dtype.startswith("float"):
        raise TokenizerError(
            f"{descriptor.name}'s output {output.name!r} is {output.dtype}",
            where=f"{where}.output",
            why="shards hold unsigned integer ids, or continuous latents of float16 or float32",
        )
    if config.encoding == "packed" and packed.width(output.codebook_sizes, output.dtype) is None:
        raise TokenizerError(
            f"ids of {descriptor.name}'s output {output.name!r} cannot be packed",
            where=f"{where}.encoding",
            why="it does not say how large its codebook is",
            remedy="encoding: auto",
        )
    return output


def _check_parent(descriptor: Descriptor, config: Stream, where: str) -> None:
    if descriptor.parent is not None and config.parent is None:
        raise TokenizerError(
            f"{descriptor.name} reads the tokens of another stream",
            where=f"{where}.parent",
            remedy=f"name the stream of this pipeline that holds {descriptor.parent!r} ids",
        )
    if descriptor.parent is None and config.parent is not None:
        raise TokenizerError(
            f"{descriptor.name} reads fields of the source, not the tokens of {config.parent!r}",
            where=f"{where}.parent",
            remedy="name a field instead",
        )


def _fields(descriptor: Descriptor, config: Stream, where: str) -> Mapping[str, str]:
    """Tokenizer role -> source field; a role left out is looked for under its own name."""
    roles = (*descriptor.fields, *descriptor.conditions)
    if config.field is not None:
        if len(roles) != 1:
            raise TokenizerError(
                f"{descriptor.name} reads {len(roles)} fields ({', '.join(roles)}), not one",
                where=f"{where}.field",
                remedy="name them: `fields: {role: source field, …}`",
            )
        return {roles[0]: config.field}
    for role in config.fields:
        if role not in roles:
            raise TokenizerError(
                f"{descriptor.name} reads no field {role!r}{nearest(role, roles)}",
                where=f"{where}.fields",
            )
    return {role: config.fields.get(role, role) for role in roles}
