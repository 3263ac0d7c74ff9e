"""`tokenmill tokenizers`: list, check (the conformance suite) and fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tokenmill.pipelines.session import load_job
from tokenmill.schemas.errors import JobError, SampleError, TokenizerError
from tokenmill.schemas.job import Pipeline
from tokenmill.schemas.samples import SampleBatch
from tokenmill.schemas.tokenizer import Fits
from tokenmill.schemas.work import Span
from tokenmill.workers import conformance, registry
from tokenmill.workers.sources import open_source

app = typer.Typer(no_args_is_help=True, help="List tokenizers, check one, or fit one.")

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the tokenizer: name=value (YAML).")
]
Name = Annotated[str, typer.Argument(help="A tokenizer's name, or module:Class.")]


def _config(settings: list[str] | None) -> dict[str, Any]:
    config = {}
    for setting in settings or []:
        name, sign, value = setting.partition("=")
        if not sign:
            raise JobError(f"--set {setting!r} is not name=value")
        config[name] = yaml.safe_load(value)
    return config


@app.command("list")
def list_() -> None:
    """List the tokenizers that are installed."""
    for name in registry.names():
        descriptor = registry.tokenizer_class(name).describe({})
        outputs = ", ".join(o.name for o in descriptor.outputs)
        print(f"{name:16} {descriptor.modality:8} outputs: {outputs}")


@app.command()
def check(
    name: Name,
    checkpoint: Annotated[str | None, typer.Option(help="Its weights or vocabulary.")] = None,
    settings: Settings = None,
) -> None:
    """Run the conformance suite on a tokenizer."""
    report = conformance.check(name, checkpoint, _config(settings))
    for item in report.checks:
        print(f"{item.verdict:5} {item.name}{': ' + item.detail if item.detail else ''}")
    for note in report.notes:
        print(f"note  {note}")
    if not report.ok:
        raise TokenizerError(f"{name} does not conform", remedy="see the lines marked fail")


@app.command()
def fit(
    name: Name,
    job: Annotated[
        str, typer.Option(help="A job file: the corpus is its first pipeline's source.")
    ],
    out: Annotated[str, typer.Option(help="The artefact to write.")],
    settings: Settings = None,
    field: Annotated[str, typer.Option(help="The source's field to learn from.")] = "text",
) -> None:
    """Learn a vocabulary from a job's source."""
    cls = registry.tokenizer_class(name)
    if not (isinstance(cls, type) and issubclass(cls, Fits)):
        raise TokenizerError(f"{name} cannot be fitted")
    loaded = load_job(job)
    pipeline = next(iter(loaded.pipelines.values()))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    lineage = cls.fit(_samples(pipeline, field), out, _config(settings))
    print(json.dumps(dict(lineage), indent=2, default=str))


def _samples(pipeline: Pipeline, field: str) -> Iterator[Mapping[str, Any]]:
    source = open_source(pipeline.source)
    for input_ in source.list():
        span = Span(input=input_, start=0, end=input_.extent)
        for batch in source.read([span], [field]):
            if isinstance(batch, SampleBatch):
                for value in batch.fields[field]:
                    if value is not None and not isinstance(value, SampleError):
                        yield {"text": value}
