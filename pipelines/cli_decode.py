"""`tokenmill decode`: one sample's tokens as a picture, a text, … to look at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipelines.cli_asking import Pipeline, Snapshot, Store, Tag
from tokenmill.pipelines.decode import Wanted, decode_sample, write
from tokenmill.schemas.errors import JobError


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(decode)


def decode(
    store: Store,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="The sample's key; the first that has it.")
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", help="Its id instead: 32 hex digits, always one.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The file: .png .jpg .webp .gif .mp4 .txt")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Which stream, where several fit.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The original beside it, read from its source.")
    ] = False,
    pipeline: Pipeline = None,
    tag: Tag = None,
    snapshot: Snapshot = None,
) -> None:
    """Turn one sample's tokens back into media.

    Without -o, its text streams are printed.
    """
    if (key is None) == (id is None):
        raise JobError("which sample?", remedy="tokenmill decode STORE --key KEY (or --id HEX)")
    path = Path(out) if out else None
    wanted = Wanted(
        store=store, key=key, id=id, stream=stream, pipeline=pipeline, tag=tag, snapshot=snapshot
    )
    found = decode_sample(wanted, suffix=path.suffix if path else None, compare=compare)
    for one in found:
        if path is None:
            head = f"{one.stream}: " if len(found) > 1 else ""
            sys.stdout.write(f"{head}{one.media}\n")
            continue
        write(one, path)
        axes = "x".join(map(str, one.shape))
        print(f"wrote {path}: {one.key}, stream {one.stream}, {axes} tokens", file=sys.stderr)
