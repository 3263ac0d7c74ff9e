"""The verbs that change what a store says of samples it has met: forget, retry."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.pipelines import asking, summary
from tokenmill.pipelines.cli_asking import Output, Store, bar
from tokenmill.pipelines.progress import progress
from tokenmill.pipelines.run import run as run_job
from tokenmill.pipelines.session import load_job, options_of
from tokenmill.pipelines.tables import check_format, human_bytes, show
from tokenmill.schemas.errors import JobError
from tokenmill.store.forget import Receipt


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`, in the order in which --help lists them."""
    app.command()(retry)
    app.command()(forget)


def retry(
    job: Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job, mended.")],
    where: Annotated[
        str, typer.Option(metavar="SQL", help="Over the view `quarantine`; by default all of it.")
    ] = "true",
    executor: Annotated[
        str, typer.Option(help="ray (default; a cluster with --address) | local.")
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster: auto, host:port, ray://host:port.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of each stream, at most.")
    ] = None,
) -> None:
    """Tokenize again the units of quarantined samples, after a fix; the history is kept.

    Whole units go again under their own cut, so that streams stay aligned; new inputs wait for the
    next `run`.
    """
    options = options_of(executor, address, workers, retry=where)
    with progress() as shown:
        report = run_job(load_job(job), options, watch=shown, say=shown.say)
    summary.show_run(report, job, verb="retry")
    raise typer.Exit(report.exit_code)


def forget(
    store: Store,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Of pipeline, key, source, id, span: \"key = 'x.txt'\"."),
    ] = None,
    rewrite: Annotated[
        bool,
        typer.Option("--rewrite", help="Also remove ids and keys of all forgotten from shards."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without it nothing is touched.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, for the `forgotten` view.")] = "",
    receipt: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the receipt there, as JSON.")
    ] = None,
    format: Output = "table",
) -> None:
    """Take samples out of every later snapshot, and with --rewrite out of the shards.

    Without --where, --rewrite finishes what an earlier call began.
    """
    check_format(format)
    if where is None and not rewrite:
        raise JobError("which samples?", remedy="--where \"source like '%/alice/%'\"")
    with bar("reading shards") as progress:
        done = asking.forget(
            store, where, reason=reason, rewrite=rewrite, apply=yes, progress=progress
        )
    if receipt is not None:
        try:
            Path(receipt).write_text(json.dumps(asdict(done), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise JobError("the receipt cannot be written", where=receipt, why=str(error)) from None
    if format != "table":
        show(asdict(done), format)
        return
    show(_for_people(done))
    for line in _how_to_go_on(store, done, rewrite):
        sys.stdout.write(f"{line}\n")


def _for_people(done: Receipt) -> dict[str, object]:
    freed = sum(each.bytes_before - each.bytes_after for each in done.rewritten)
    return {
        "samples": done.samples,
        "not forgotten before": done.fresh,
        "shards that held them": len(done.shards),
        "tokens in these shards": done.tokens,
        "shards rewritten": len(done.rewritten),
        "bytes of difference": human_bytes(freed),
        "files that a snapshot still names": len(done.pinned),
        "receipt": done.run,
    }


def _how_to_go_on(store: str, done: Receipt, rewrite: bool) -> list[str]:
    if done.dry_run:
        return ["nothing was touched: add --yes"]
    lines = []
    if done.shards and not rewrite:
        lines.append(f"their bytes are still in shards: tokenmill forget {store} --rewrite --yes")
    names = sorted({name for names in done.pinned.values() for name in names})
    if names:
        lines.append(f"old files are kept by {', '.join(n[:16] for n in names[:5])}: untag them")
    if done.rewritten:
        lines.append(f"old files go, after the grace, with: tokenmill vacuum {store} --delete")
    return lines
