"""The asking verbs of the command line, registered on the lead's app; asking.py does the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenmill.pipelines import asking
from tokenmill.pipelines.tables import FORMATS, check_format, human_bytes, show
from tokenmill.schemas.errors import CorruptStore, JobError
from tokenmill.store.export import FILE_BYTES

Store = Annotated[str, typer.Argument(metavar="STORE", help="A folder or s3://bucket/prefix.")]
Output = Annotated[
    str, typer.Option("--format", "-f", help=f"{' | '.join(FORMATS)}", metavar="FORMAT")
]
Tag = Annotated[str | None, typer.Option(help="Read the snapshot that this tag keeps.")]
Snapshot = Annotated[
    str | None, typer.Option(help="Read this snapshot: its hash, or the beginning of it.")
]
Pipeline = Annotated[str | None, typer.Option(help="Only this pipeline.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`, in the order in which --help lists them."""
    for verb in (query, ls, info, quarantine, verify, export, tag, vacuum, maintain):
        app.command()(verb)


def query(
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A folder or s3://bucket/prefix.")
    ] = None,
    sql: Annotated[
        str | None,
        typer.Argument(metavar="SQL|@NAME", help="One SELECT (- reads it from stdin), or @NAME."),
    ] = None,
    questions: Annotated[
        bool, typer.Option("--questions", help="List the questions that have names.")
    ] = False,
    given: Annotated[
        list[str] | None,
        typer.Option("--with", "-w", metavar="NAME=VALUE", help="A parameter of the question."),
    ] = None,
    format: Output = "table",
    tag: Tag = None,
    snapshot: Snapshot = None,
) -> None:
    """Ask a store in SQL, or a question by its name: `query STORE @tokens-by-day`.

    Views: shards, inputs, quarantine, quarantine_history, runs, tokenizers;
    "describe shards" lists the columns of one.
    """
    check_format(format)
    if questions:
        show(asking.list_questions(), format)
        return
    if store is None or sql is None:
        raise JobError(
            "query needs a store and a question",
            remedy='tokenmill query STORE "select …", or @NAME: --questions lists the names',
        )
    if sql.startswith("@"):
        values = dict(_parameter(text) for text in given or ())
        answer = asking.ask(store, sql[1:], values, tag=tag, snapshot=snapshot)
    elif given:
        raise JobError("--with belongs to a question with a name", remedy="query STORE @NAME")
    else:
        text = sys.stdin.read() if sql == "-" else sql
        answer = asking.query(store, text, tag=tag, snapshot=snapshot)
    show(answer, format)


def ls(
    store: Store,
    format: Output = "table",
    tags: Annotated[bool, typer.Option("--tags", help="List the tags instead.")] = False,
) -> None:
    """List pipelines and streams: inputs, samples, tokens, quarantined, bytes."""
    check_format(format)
    answer = asking.tags(store) if tags else asking.ls(store)
    if format != "table" or tags:
        show(answer, format)
        return
    show(_for_people(answer))
    kept = asking.tags(store)
    if kept.num_rows:
        sys.stdout.write("\n")
        show(kept)


def info(
    target: Annotated[
        str, typer.Argument(metavar="STORE", help="A store, or one of its shard files (.arrow).")
    ],
    format: Output = "table",
) -> None:
    """Show the facts of a store or of one shard file."""
    check_format(format)
    show(asking.info(target), format)


def quarantine(
    store: Store,
    pipeline: Pipeline = None,
    stream: Annotated[str | None, typer.Option(help="Only this stream.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="One by one instead of counted by reason.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="With --rows: at most so many.")] = None,
    format: Output = "table",
) -> None:
    """Show which samples have no tokens, and why."""
    check_format(format)
    answer = asking.quarantine(
        store, pipeline=pipeline, stream=stream, reason=reason, rows=rows, limit=limit
    )
    show(answer, format)


def verify(
    store: Store,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Read the bytes of this share of the units.")
    ] = 1.0,
    pipeline: Pipeline = None,
    format: Output = "table",
) -> None:
    """Check that ledger and shards agree: hashes, counts, verdicts, order, descriptors.

    Exit code 3 where they do not.
    """
    check_format(format)
    with bar("verifying") as progress:
        report = asking.verify(store, share=share, pipeline=pipeline, progress=progress)
    facts = asdict(report)
    found = facts.pop("problems")
    if format == "table":
        show({**facts, "problems": len(found)})
        if found:
            sys.stdout.write("\n")
            show(asking.problems(report))
    elif format == "json":
        show({**facts, "problems": found}, format)
    else:
        show(asking.problems(report), format)
    if found:
        raise CorruptStore(
            f"{len(found)} problems in this store",
            where=store,
            remedy="restore the files named above, or tokenize their units again: "
            "`tokenmill run JOB --retokenize`",
        )


def export(
    store: Store,
    to: Annotated[
        str, typer.Option("--to", help="parquet | webdataset | hf | mds | litdata | megatron")
    ],
    out: Annotated[str, typer.Argument(metavar="TARGET", help="An empty folder or s3:// prefix.")],
    tag: Tag = None,
    snapshot: Snapshot = None,
    pipeline: Pipeline = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="Only this stream; may be given again.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="STREAM=HEX: refuse tokens of another space; may be given again."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export in TARGET.")
    ] = False,
    file_bytes: Annotated[
        int, typer.Option(min=1, help="About how large one file may get (mds, litdata: 64 MiB).")
    ] = FILE_BYTES,
    format: Output = "table",
) -> None:
    """Write a snapshot's samples in the format of another library."""
    check_format(format)
    report = asking.export(
        store,
        to,
        out,
        tag=tag,
        snapshot=snapshot,
        pipeline=pipeline,
        streams=stream,
        spaces=dict(_pair(text) for text in space or ()),
        force=force,
        file_bytes=file_bytes,
    )
    facts = asdict(report)
    if format == "table":
        facts["files"] = len(report.files)
    show(facts, format)


def tag(
    store: Store,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Left out: list the tags.")
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(help="Which snapshot; by default the current one.")
    ] = None,
    move: Annotated[bool, typer.Option("--move", help="Take the name from another one.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Let the tag go.")] = False,
    format: Output = "table",
) -> None:
    """Keep a snapshot for ever under a name, or list the names."""
    check_format(format)
    if name is None:
        if remove or move or snapshot:
            raise JobError("which tag?", remedy="tokenmill tag STORE NAME")
        show(asking.tags(store), format)
    elif remove:
        asking.untag(store, name)
        show({"tag": name, "removed": True}, format)
    else:
        hash = asking.tag(store, name, snapshot=snapshot, move=move)
        show({"tag": name, "snapshot": hash}, format)


def vacuum(
    store: Store,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove them; without it nothing is touched.")
    ] = False,
    grace: Annotated[
        str, typer.Option(help="Spare what is younger. Shorter only while nothing writes.")
    ] = "7d",
    format: Output = "table",
) -> None:
    """Find files that neither ledger nor snapshot names, and remove them with --delete."""
    check_format(format)
    report = asking.vacuum(store, delete=delete, grace=grace)
    if format != "table":
        show(asdict(report), format)
        return
    verb = "removed" if delete else "would be removed"
    for path in (*report.orphans, *(f"snapshot {hash}" for hash in report.lapsed)):
        show({verb: path})
    show(
        {
            f"files {verb}": len(report.orphans),
            f"bytes {verb}": human_bytes(report.orphan_bytes),
            f"snapshots {verb}": len(report.lapsed),
            f"ledger files {verb}": len(report.ledger_files),
            "shards kept": report.kept,
            "unnamed but too young": report.young,
        }
    )
    if not delete and (report.orphans or report.lapsed or report.ledger_files):
        sys.stdout.write("nothing was touched: add --delete to remove them\n")


def maintain(store: Store, format: Output = "table") -> None:
    """Compact the ledger's small files; runs and readers may go on meanwhile."""
    check_format(format)
    show(asdict(asking.maintain(store)), format)


def _for_people(streams: pa.Table) -> pa.Table:
    """`ls` without the columns that say nothing here."""
    quiet = [n for n in ("damaged_inputs", "superseded_rows") if not any(streams[n].to_pylist())]
    for name in ("spaces", "recipes"):
        counts = [len(each) for each in streams[name].to_pylist()]
        if max(counts, default=0) <= 1:
            quiet.append(name)  # one each, as it should be: `info` names them
        else:
            index = streams.column_names.index(name)
            streams = streams.set_column(index, name, pa.array(counts))
    streams = streams.drop_columns([*quiet, "shards"])
    # nine columns in a terminal of eighty
    return streams.rename_columns(
        ["last" if n == "last_commit" else n for n in streams.column_names]
    )


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise JobError(f"--with {text!r} is not NAME=VALUE", remedy="--with timezone=Europe/Zurich")
    return name, value


def _pair(text: str) -> tuple[str, str]:
    stream, equals, space = text.partition("=")
    if not equals or not stream or not space:
        raise JobError(f"--space {text!r} is not STREAM=HEX", remedy="--space text=4fa0…")
    return stream, space


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
