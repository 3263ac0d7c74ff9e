"""`tokenmill fit`: learn what a tokenizer needs from a job's source."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
import yaml

from tokenmill.pipelines.fit import fit as fit_tokenizer
from tokenmill.schemas.errors import JobError

Name = Annotated[str, typer.Argument(help="A tokenizer's name, or module:Class.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the tokenizer: name=value (YAML).")
]


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(fit)


def config_of(settings: list[str] | None) -> dict[str, Any]:
    """`--set name=value` as a mapping. Raises JobError."""
    config = {}
    for setting in settings or []:
        name, sign, value = setting.partition("=")
        if not sign:
            raise JobError(f"--set {setting!r} is not name=value")
        config[name] = yaml.safe_load(value)
    return config


def fit(
    name: Name,
    job: Annotated[str, typer.Option(help="A job file: its source is what is learnt from.")],
    out: Annotated[str, typer.Option(help="The file to write: a vocabulary, weights, …")],
    settings: Settings = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="The source's field to learn from, or ROLE=FIELD where there are more."),
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="Learn from this pipeline's source.")] = None,
) -> None:
    """Learn a tokenizer's vocabulary or weights from a job's source.

    The field is that of the job's stream of this tokenizer, unless --field names another. Prints
    where the result came from (its lineage) as JSON.
    """
    fields = {}
    for one in field or []:
        role, sign, value = one.rpartition("=")
        fields[role if sign else ""] = value
    lineage = fit_tokenizer(name, job, out, config_of(settings), fields=fields, pipeline=pipeline)
    print(json.dumps(dict(lineage), indent=2, default=str))
