"""Learning an artefact (vocabulary, merges, weights) from a job's source, for any plug-in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenmill.pipelines.session import load_job
from tokenmill.schemas.errors import JobError, SampleError, TokenizerError
from tokenmill.schemas.job import Job, Pipeline, nearest
from tokenmill.schemas.samples import SampleBatch, Source, alternatives, values_of
from tokenmill.schemas.tokenizer import Fits
from tokenmill.schemas.work import Span
from tokenmill.workers import registry
from tokenmill.workers.sources import open_source


def fit(
    name: str,
    job: str,
    out: str,
    config: Mapping[str, Any],
    *,
    fields: Mapping[str, str] | None = None,
    pipeline: str | None = None,
) -> Mapping[str, Any]:
    """Let the plug-in `name` learn from a job's samples and write `out`; its lineage.

    fields: role of the plug-in -> field of the source; a single role may be called "". Left out,
    they are those of the job's stream of this tokenizer, or the roles' own names. pipeline: whose
    source; by default the first that has such a stream, or the first.
    Raises TokenizerError where the plug-in cannot learn, JobError for names.
    """
    cls = registry.tokenizer_class(name)
    if not (isinstance(cls, type) and issubclass(cls, Fits)):
        raise TokenizerError(f"{name} cannot be fitted")
    loaded = load_job(job)
    chosen = _pipeline(loaded, name, pipeline)
    names = _names(chosen, name, cls.describe({}).fields, fields or {})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    return cls.fit(_samples(open_source(chosen.source), names), out, config)


def _pipeline(job: Job, tokenizer: str, name: str | None) -> Pipeline:
    if name is not None:
        if name not in job.pipelines:
            raise JobError(f"the job has no pipeline {name!r}{nearest(name, job.pipelines)}")
        return job.pipelines[name]
    for pipeline in job.pipelines.values():
        if any(stream.tokenizer == tokenizer for stream in pipeline.streams.values()):
            return pipeline
    return next(iter(job.pipelines.values()))


def _names(
    pipeline: Pipeline, tokenizer: str, roles: tuple[str, ...], given: Mapping[str, str]
) -> dict[str, str]:
    """Role -> field of the source."""
    names = {role: role for role in roles}
    for stream in pipeline.streams.values():
        if stream.tokenizer == tokenizer:
            only = {roles[0]: stream.field} if stream.field and len(roles) == 1 else {}
            names |= {r: f for r, f in {**only, **stream.fields}.items() if r in names}
            break
    for role, field in given.items():
        wanted = roles[0] if not role and len(roles) == 1 else role
        if wanted not in names:
            raise JobError(
                f"{tokenizer} learns from no field {role!r}{nearest(role, roles)}",
                remedy=f"give --field ROLE=FIELD, with a role of {', '.join(roles)}",
            )
        names[wanted] = field
    return names


def _samples(source: Source, names: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Every sample that has all the fields; damaged ones are passed over."""
    wanted = tuple({name: None for field in names.values() for name in alternatives(field)})
    for input_ in source.list():
        for batch in source.read([Span(input=input_, start=0, end=input_.extent)], wanted):
            if isinstance(batch, SampleBatch):
                yield from _whole(batch, names)


def _whole(batch: SampleBatch, names: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    columns = {role: values_of(batch, field) for role, field in names.items()}
    for at in range(len(batch)):
        found = {role: values[at] for role, values in columns.items()}
        bad = any(v is None or isinstance(v, SampleError) for v in found.values())
        if not bad and at not in batch.faults:
            yield found
