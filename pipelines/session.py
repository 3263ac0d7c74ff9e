"""A job bound to its sources, store and tokenizers: what a run and a dry run begin with."""

from __future__ import annotations

import itertools
import json
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipelines.children import Attempt, Child, plan_children
from tokenmill.pipelines.coordinator import (
    FAILED_STARTS,
    NewTask,
    Pool,
    PoolLimits,
    WorkerFailed,
    WorkerLost,
    WorkerReady,
)
from tokenmill.pipelines.estimate import Estimate
from tokenmill.pipelines.executors import Executor, LocalExecutor
from tokenmill.pipelines.plan import CoveredSpan, Plan, plan
from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.schemas.identity import canonical_uri
from tokenmill.schemas.job import Job, Resources, nearest, parents_first, parse_job
from tokenmill.schemas.ledger import FORGOTTEN
from tokenmill.schemas.samples import Source, alternatives
from tokenmill.schemas.tokenizer import WorkerFacts, parent_mismatch
from tokenmill.schemas.work import Input, ParentFile
from tokenmill.store.access import Access
from tokenmill.store.dataset import open_store
from tokenmill.store.ledger import Ledger
from tokenmill.workers.sources import open_source

# Of a stream, where the job names no maximum.
MOST_WORKERS = 1024
# After so long without a worker a person should know what is waited for.
PATIENCE_SECONDS = 60.0
ExecutorName = Literal["ray", "local"]
Planned = Mapping[str, tuple[Plan, int]]  # pipeline -> its plan, the ledger's sequence it knows


@dataclass(frozen=True, kw_only=True)
class Options:
    executor: ExecutorName = "ray"
    address: str | None = None
    workers: int | None = None
    retokenize: bool = False
    lease: bool = True
    log: str | None = None
    estimate: Estimate | None = None  # what `plan --measure` said, to be compared with
    retry: str | None = None  # SQL over the quarantine view: only the units that it names


def options_of(
    executor: str,
    address: str | None,
    workers: int | None,
    *,
    retokenize: bool = False,
    lease: bool = True,
    retry: str | None = None,
) -> Options:
    """Options as the command line gives them. Raises JobError."""
    if executor not in ("ray", "local"):
        raise JobError(f"--executor {executor!r} is not known", remedy="ray or local")
    if executor == "local" and address:
        raise JobError("--address needs --executor ray", remedy="leave one of the two out")
    return Options(
        executor="local" if executor == "local" else "ray",
        address=address,
        workers=workers,
        retokenize=retokenize,
        lease=lease,
        retry=retry,
    )


def load_job(path: str) -> Job:
    """The job in the file `path`. Raises JobError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise JobError(
            f"there is no job file {path}{nearest(file.name, beside) if beside else ''}",
            remedy="`tokenmill init` writes a commented one",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError("the job file cannot be read", where=path, why=str(error)) from None
    return parse_job(text, name=path, folder=str(file.resolve().parent))


class Session:
    """What a run and a dry run share: sources, workers for the probe, ledger, plans."""

    def __init__(self, job: Job, options: Options) -> None:
        self.job, self.options = job, options
        self.access = Access(job.store)
        self.sources: dict[str, Source] = {
            name: open_source(p.source) for name, p in job.pipelines.items()
        }
        self.pools: list[Pool] = [
            (name, stream) for name, p in job.pipelines.items() for stream in p.streams
        ]
        self.inputs: dict[str, list[Input]] = {}
        self.facts: dict[Pool, WorkerFacts] = {}
        self.kept: dict[int, Pool] = {}
        self._again: dict[str, dict[str, set[bytes]]] | None = None
        self.forgotten: dict[str, Mapping[bytes, frozenset[bytes]]] = {}
        self.listing_seconds = 0.0

    def existing_ledger(self) -> Ledger | None:
        """The store's ledger, or None where there is no store yet (a dry run creates none)."""
        if not any(True for _ in self.access.list("ledger/_delta_log")):
            return None
        return Ledger.open(self.access)

    def job_without_secrets(self) -> Mapping[str, Any]:
        """The job as data for the ledger: URIs without user-info and query."""
        data = self.job.model_dump(mode="json")
        data["store"] = self.access.uri
        for name, pipeline in self.job.pipelines.items():
            kept = data["pipelines"][name]
            kept["source"]["uri"] = [canonical_uri(u) for u in pipeline.source.uris]
            for stream, config in pipeline.streams.items():
                # an environment may hold tokens
                kept["streams"][stream]["runtime_env"] = sorted(config.runtime_env)
                if config.checkpoint:
                    kept["streams"][stream]["checkpoint"] = canonical_uri(config.checkpoint)
        return data

    def executor(self) -> Executor:
        if self.options.executor == "local":
            return LocalExecutor(self.job)
        # Ray takes half a second to import and five to start: only when asked for
        from tokenmill.pipelines.ray_executor import RayExecutor  # noqa: PLC0415 - see above

        return RayExecutor(self.job, self.options.address)

    def limits(self, executor: Executor) -> dict[Pool, PoolLimits]:
        found = {}
        for pool in self.pools:
            need = self.job.resources.get(pool[1], Resources())
            if need.gpus_per_worker > executor.gpus and executor.name == "local":
                raise JobError(
                    f"a worker of stream {pool[1]!r} asks for {need.gpus_per_worker:g} GPUs, "
                    f"this machine offers {executor.gpus:g}",
                    where=f"resources.{pool[1]}.gpus_per_worker",
                    remedy="set it to 0, or run on a cluster with --address",
                )
            # nodes bound it, and on a cluster they may yet come; what takes nothing, CPUs do
            takes = need.cpus_per_worker or need.gpus_per_worker
            most = need.workers.max or (MOST_WORKERS if takes else max(1, int(executor.cpus)))
            most = self.options.workers or most
            found[pool] = PoolLimits(
                most=most,
                cpus=need.cpus_per_worker,
                gpus=need.gpus_per_worker,
                least=min(need.workers.min, most),
                labels=need.labels if executor.name == "ray" else {},
            )
        return found

    def probe(self, executor: Executor, limits: Mapping[Pool, PoolLimits]) -> None:
        """One worker of every stream says which recipe it would write; those that fit stay.

        Listing goes on beside it. Raises what a worker could not start for.
        """
        numbers = itertools.count()
        for group in _fitting(self.pools, limits, executor):
            for id_ in list(self.kept):
                executor.stop(id_)
            self.kept = {}
            for pool in group:
                self._start(executor, next(numbers), pool)
            if not self.inputs:
                self.list()
            self._await(executor, numbers)
        self.facts = self._with_parents(executor.facts())

    def _with_parents(self, facts: Mapping[Pool, WorkerFacts]) -> dict[Pool, WorkerFacts]:
        """A child's recipe holds its parent's. Raises JobError where they do not fit."""
        found = dict(facts)
        for name, config in self.job.pipelines.items():
            for stream in parents_first(config.streams):
                parent = config.streams[stream].parent
                if parent is None:
                    continue
                child, of = found[name, stream], found[name, parent]
                output, space = of.output, of.identity.space
                if why := parent_mismatch(
                    child.descriptor, output.axes, output.codebook_sizes, space
                ):
                    raise JobError(
                        f"the stream {stream!r} cannot read the tokens of {parent!r}",
                        where=f"pipelines.{name}.streams.{stream}.parent",
                        why=why,
                        remedy="name the stream or the checkpoint that belong together",
                    )
                identity = child.identity.child_of(space, of.identity.recipe)
                found[name, stream] = replace(child, identity=identity)
        return found

    def _start(self, executor: Executor, worker: int, pool: Pool) -> None:
        executor.start(worker, pool)
        self.kept[worker] = pool

    def _await(self, executor: Executor, numbers: Iterator[int]) -> None:
        """Until all that were started are ready; one that dies is replaced, some times."""
        ready: set[int] = set()
        died: Counter[Pool] = Counter()
        began, warned = time.monotonic(), False
        while starting := self.kept.keys() - ready:
            if not warned and time.monotonic() - began > PATIENCE_SECONDS:
                warned = True
                warnings.warn(_no_place(self.job, [self.kept[w] for w in starting]), stacklevel=2)
            for event in executor.wait(5.0):
                match event:
                    case WorkerReady():
                        ready.add(event.worker)
                    case WorkerFailed():
                        raise event.error
                    case WorkerLost():
                        pool = self.kept.pop(event.worker)
                        died[pool] += 1
                        if died[pool] >= FAILED_STARTS:
                            raise StoreError(
                                f"workers of stream {pool[1]!r} die at their start",
                                why=f"{died[pool]} in a row; the last: {event.why}",
                                remedy="look at their memory and at the cluster's logs, then run "
                                "again",
                            )
                        self._start(executor, next(numbers), pool)
                    case _:
                        pass

    def list(self) -> None:
        began = time.monotonic()
        for name, source in self.sources.items():
            self.inputs[name] = list(source.list())
        self.listing_seconds = time.monotonic() - began

    def check_fields(self) -> None:
        """A field that no input has is the job's mistake, not every sample's."""
        for name, stream in self.pools:
            config = self.job.pipelines[name].streams[stream]
            wanted = list(config.fields.values()) or ([config.field] if config.field else [])
            # what a multi-object input has is known from its listing; others are opened to see
            probe = [i for n, i in enumerate(self.inputs[name]) if n < 8 or i.parts]
            found = {f for i in probe for f in self.sources[name].fields(i)}
            for field_ in wanted:
                if found and found.isdisjoint(alternatives(field_)):
                    where = f"pipelines.{name}.streams.{stream}.field"
                    raise JobError(
                        f"no input has the field {field_!r}{nearest(field_, found)}",
                        where=where,
                        why=f"looked into {len(probe)} inputs, such as {probe[0].uri}",
                        remedy=f"known fields: {', '.join(sorted(found))}",
                    )

    def plan(self, ledger: Ledger | None, only: tuple[str, Sequence[str]] | None = None) -> Planned:
        """pipeline -> (its plan, the ledger's sequence that the plan knows)."""
        plans: dict[str, tuple[Plan, int]] = {}
        for name, config in self.job.pipelines.items():
            if only is not None and only[0] != name:
                continue
            inputs = self.inputs[name]
            if only is not None:
                inputs = [i for i in self.sources[name].list() if i.uri in set(only[1])]
            seq = ledger.seq(name) if ledger else 0
            self.forgotten[name] = forgotten(ledger, name) if ledger else {}
            coverage = covered(ledger, name) if ledger else {}
            again = self.again(ledger, name)
            streams = [s for s, c in config.streams.items() if c.parent is None]
            made = plan(
                name,
                inputs,
                {s: self.facts[name, s].identity.recipe for s in streams},
                coverage,
                unit_bytes=config.source.unit_bytes,
                unit_inputs=config.source.unit_inputs,
                splittable=self.sources[name].splittable,
                retokenize=self.options.retokenize,
                again=again,
            )
            if children := self._children(name):
                parents = {child.parent for child in children}
                files = parent_files(ledger, name, parents) if ledger else {}
                made = plan_children(
                    made,
                    inputs,
                    children,
                    _but(coverage, {c.stream for c in children}, again),
                    files,
                    retokenize=self.options.retokenize,
                )
                if made.orphans and only is not None:
                    raise _overtaken(name, made.orphans)
            plans[name] = (made, seq)
        return plans

    def again(self, ledger: Ledger | None, pipeline: str) -> dict[str, set[bytes]] | None:
        """With `retry`: stream -> units that hold a quarantined sample or input it names.

        Asked once: what this run quarantines again is not tried a third time. Raises JobError.
        """
        if self.options.retry is None:
            return None
        if self._again is None:
            self._again = {}
            rows = _refused(self.access, self.options.retry) if ledger else []
            for row in rows:
                streams = self._again.setdefault(row["pipeline"], {})
                streams.setdefault(row["stream"], set()).add(bytes.fromhex(row["unit"]))
        return self._again.get(pipeline, {})

    def _children(self, pipeline: str) -> Sequence[Child]:
        streams = self.job.pipelines[pipeline].streams
        return [
            Child(
                stream=stream,
                recipe=self.facts[pipeline, stream].identity.recipe,
                parent=parent,
                parent_space=self.facts[pipeline, parent].identity.space,
                parent_recipe=self.facts[pipeline, parent].identity.recipe,
            )
            for stream in parents_first(streams)
            if (parent := streams[stream].parent) is not None
        ]

    def tasks(self, plans: Planned) -> Iterator[NewTask]:
        for name, (made, seq) in plans.items():
            gone = self.forgotten[name]
            for task in made.tasks:
                places = [s.input.source for s in task.unit.spans] if gone else []
                yield NewTask(
                    unit=task.unit,
                    stream=task.stream,
                    recipe=self.facts[name, task.stream].identity.recipe,
                    planned_seq=seq,
                    replaces=task.replaces,
                    after=task.after,
                    parent=task.parent,
                    forgotten=frozenset().union(*(gone.get(place, ()) for place in places)),
                )


def _no_place(job: Job, pools: Sequence[Pool]) -> str:
    parts = []
    for _, stream in pools:
        need = job.resources.get(stream, Resources())
        text = f"{stream!r} ({need.cpus_per_worker:g} CPUs, {need.gpus_per_worker:g} GPUs"
        parts.append(text + "".join(f", {k}={v}" for k, v in need.labels.items()) + ")")
    return (
        f"no worker is ready yet of: {', '.join(parts)}. It starts as soon as a node has room; "
        "look at `ray status`, and at resources in the job"
    )


def _fitting(
    pools: Sequence[Pool], limits: Mapping[Pool, PoolLimits], executor: Executor
) -> Iterator[list[Pool]]:
    """Groups of pools that can have a worker each at once; at least one pool a group."""
    group: list[Pool] = []
    cpus, gpus = executor.cpus, executor.gpus
    for pool in pools:
        need = limits[pool]
        if group and (need.cpus > cpus or need.gpus > gpus):
            yield group
            group, cpus, gpus = [], executor.cpus, executor.gpus
        group.append(pool)
        cpus, gpus = cpus - need.cpus, gpus - need.gpus
    yield group


def _overtaken(pipeline: str, orphans: Sequence[str]) -> JobError:
    """In the middle of a run; before it, `refuse_outdated` says so."""
    return JobError(
        f"another run has tokenized the parent of stream {orphans[0]!r} with another recipe",
        where=f"pipelines.{pipeline}.streams.{orphans[0]}",
        why="this run cannot make the child of tokens that it would not have made itself",
        remedy="run again with the job of that run, or --retokenize with this one",
    )


COVERED = (
    "input",
    "span_start",
    "span_end",
    "recipe",
    "unit",
    "ordinal",
    "seq",
    "first_row",
    "rows",
)


def covered(ledger: Ledger, pipeline: str) -> dict[str, list[CoveredSpan]]:
    """stream -> its valid cells."""
    table = ledger.coverage(pipeline)
    found: dict[str, list[CoveredSpan]] = {}
    for stream in pc.unique(table["stream"]).to_pylist():
        rows = table.filter(pc.equal(table["stream"], stream))
        columns = [rows[c].to_pylist() for c in COVERED]
        found[stream] = [
            CoveredSpan(
                input=i, start=a, end=b, recipe=r, unit=u, ordinal=o, seq=q, first_row=f, rows=n
            )
            for i, a, b, r, u, o, q, f, n in zip(*columns, strict=True)
        ]
    return found


def _but(
    coverage: Mapping[str, Sequence[CoveredSpan]],
    children: Collection[str],
    again: Mapping[str, Collection[bytes]] | None,
) -> Mapping[str, Sequence[CoveredSpan]]:
    """`coverage` without the cells of children that are to be tried again."""
    if not again:
        return coverage
    kept = {s: [c for c in coverage[s] if c.unit not in again.get(s, ())] for s in coverage}
    return {s: kept[s] if s in children else cells for s, cells in coverage.items()}


def _refused(access: Access, where: str) -> list[dict[str, Any]]:
    """pipeline, stream, unit (hex) of the quarantine rows that `where` names. What was forgotten
    is not to be tried again."""
    sql = (
        "select distinct pipeline, stream, unit from "
        f"(select * from quarantine where reason <> '{FORGOTTEN}') quarantine where (\n{where}\n)"
    )
    rows: list[dict[str, Any]] = open_store(access.uri, pin=False).sql(sql).to_pylist()
    return rows


def parent_files(
    ledger: Ledger, pipeline: str, parents: Collection[str]
) -> dict[Attempt, list[ParentFile]]:
    """The committed shard files of streams, by the commit that wrote them, in row order."""
    columns = ("stream", "unit", "seq", "path", "first_row", "rows")
    table = ledger.rows("unit", pipeline=pipeline, columns=columns)
    table = table.filter(pc.is_in(table["stream"], value_set=pa.array(sorted(parents))))
    found: dict[Attempt, list[ParentFile]] = {}
    for row in table.sort_by("first_row").to_pylist():
        files = found.setdefault((row["stream"], row["unit"], row["seq"]), [])
        if row["path"] is not None:  # a unit without rows has no file
            files.append(ParentFile(path=row["path"], first_row=row["first_row"], rows=row["rows"]))
    return found


def forgotten(ledger: Ledger, pipeline: str) -> dict[bytes, frozenset[bytes]]:
    """Place -> its samples that `tokenmill forget` took out. They get no tokens again."""
    rows = ledger.rows("forgotten", pipeline=pipeline, columns=["source_id", "sample"])
    found: dict[bytes, set[bytes]] = {}
    for place, sample in zip(*(rows[c].to_pylist() for c in rows.column_names), strict=True):
        found.setdefault(place, set()).add(sample)
    return {place: frozenset(samples) for place, samples in found.items()}


def refuse_outdated(plans: Planned, session: Session, ledger: Ledger) -> None:
    """Tokens of another recipe are not replaced, nor mixed with new ones, without being told to."""
    for name, (made, _) in plans.items():
        for stream, size in made.outdated.items():
            changed = ", ".join(
                changed_parts(ledger, name, stream, made, session.facts[name, stream])
            )
            raise JobError(
                f"the recipe of stream {stream!r} has changed: {changed or 'unknown part'}",
                where=f"pipelines.{name}.streams.{stream}",
                why=f"{size:,} bytes of input are tokenized with another recipe, and readers "
                "would see a mix",
                remedy="--retokenize encodes this stream again (the others are kept); or restore "
                "the tokenizer, or use another store",
            )


def changed_parts(
    ledger: Ledger, pipeline: str, stream: str, made: Plan, facts: WorkerFacts
) -> list[str]:
    """Which parts of the recipe differ from the committed one: `space`, `parts.bos`, …"""
    table = ledger.rows("tokenizer", pipeline=pipeline)
    rows = [
        r
        for r in table.to_pylist()
        if r["stream"] == stream and r["recipe"] in made.outdated_recipes[stream]
    ]
    if not rows:
        return []
    old = rows[-1]
    changed = ["space (what an id means)"] if old["space"] != facts.identity.space else []
    before, now = json.loads(old["parts"]), dict(facts.identity.parts)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            a, b = str(before.get(key)), str(now.get(key))
            changed.append(f"{key} ({a} -> {b})" if len(a) + len(b) < 60 else key)
    return changed
