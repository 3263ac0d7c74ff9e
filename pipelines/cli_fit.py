"""`tokenmill fit`: learn what a tokenizer needs, from a job's source or from tokens."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
import yaml

from tokenmill.pipelines.fit import fit as fit_tokenizer
from tokenmill.pipelines.fit_tokens import fit_from_files, fit_from_store
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
    out: Annotated[str, typer.Option(help="The file to write: a vocabulary, weights, merges, …")],
    job: Annotated[
        str | None, typer.Option(help="A job file: its source is what is learnt from.")
    ] = None,
    settings: Settings = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="The source's field to learn from, or ROLE=FIELD where there are more."),
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="Learn from this pipeline alone.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Learn from tokens: a store, with --stream.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="The stream of the store.")] = None,
    tag: Annotated[str | None, typer.Option(help="The snapshot of the store.")] = None,
    grids: Annotated[
        list[str] | None, typer.Option(help="Learn from tokens: .npy files of codes.")
    ] = None,
) -> None:
    """Learn a tokenizer's vocabulary, merges or weights from a job's source, or from tokens.

    The field is that of the job's stream of this tokenizer, unless --field names another. Prints
    where the result came from (its lineage) as JSON.
    """
    config = config_of(settings)
    if sum(way is not None and way != [] for way in (job, store, grids)) != 1:
        raise JobError(
            "give one thing to learn from",
            remedy="--job FILE, or --store STORE --stream NAME, or --grids FILE.npy",
        )
    if store is not None and stream is None:
        raise JobError(
            "--store needs --stream", remedy="name the stream whose tokens to learn from"
        )
    if store is not None and stream is not None:
        lineage = fit_from_store(name, store, stream, out, config, pipeline=pipeline, tag=tag)
    elif grids:
        lineage = fit_from_files(name, grids, out, config)
    else:
        assert job is not None
        fields = {}
        for one in field or []:
            role, sign, value = one.rpartition("=")
            fields[role if sign else ""] = value
        lineage = fit_tokenizer(name, job, out, config, fields=fields, pipeline=pipeline)
    print(json.dumps(dict(lineage), indent=2, default=str))
