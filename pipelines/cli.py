"""The command line. Verbs are thin: they read options, call what does the work, and print."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import click
import typer

import tokenmill
from tokenmill.pipelines import (
    cli_amending,
    cli_asking,
    cli_cluster,
    cli_decode,
    cli_fit,
    cli_schedule,
    cli_tokenizers,
    cli_watch,
    summary,
)
from tokenmill.pipelines.estimate import Estimate
from tokenmill.pipelines.progress import progress
from tokenmill.pipelines.run import dry_run
from tokenmill.pipelines.run import run as run_job
from tokenmill.pipelines.session import load_job, options_of
from tokenmill.pipelines.template import JOB_TEMPLATE
from tokenmill.schemas.errors import JobError, TokenmillError
from tokenmill.schemas.job import job_json_schema

app = typer.Typer(
    name="tokenmill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Raw multimodal corpora in, committed, queryable, streamable token shards out.\n\n"
    "Exit codes: 0 done, 1 more quarantined than tolerated, 2 the job or the command line, "
    "3 infrastructure, 4 stopped as told (run again), 70 a fault of ours.",
)

JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="`tokenmill init` writes one.")]
ExecutorOption = Annotated[
    str, typer.Option(help="ray (default; a cluster with --address) | local (processes, no Ray).")
]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster: auto, host:port, ray://host:port.")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Workers of each stream, at most.")]
Retokenize = Annotated[
    bool, typer.Option("--retokenize", help="Encode again what another recipe has encoded.")
]


def _version(value: bool) -> None:
    if value:
        print(f"tokenmill {tokenmill.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    job: JobFile,
    executor: ExecutorOption = "ray",
    address: Address = None,
    workers: WorkersOption = None,
    retokenize: Retokenize = False,
    no_lease: Annotated[
        bool, typer.Option("--no-lease", help="Run although another run may be at work.")
    ] = False,
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append JSON lines of what happens; - stderr")
    ] = None,
) -> None:
    """Tokenize what a job's sources hold and its store does not. Resumes by itself."""
    options = options_of(executor, address, workers, retokenize=retokenize, lease=not no_lease)
    options = replace(options, log=log, estimate=_estimate_of(job))
    with progress() as shown:
        report = run_job(load_job(job), options, watch=shown, say=shown.say)
    summary.show_run(report, job)
    raise typer.Exit(report.exit_code)


@app.command()
def plan(
    job: JobFile,
    executor: ExecutorOption = "local",
    address: Address = None,
    retokenize: Retokenize = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Encode a sample, and estimate what a run will cost.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="With --measure: about so long for each stream.")
    ] = 60,
    gpu_price: Annotated[float, typer.Option(min=0, help="Of a GPU-hour, in your currency.")] = 0,
    cpu_price: Annotated[float, typer.Option(min=0, help="Of a CPU-hour.")] = 0,
) -> None:
    """Show what `run` would do; write nothing into the store.

    With --measure the estimate is kept in JOB.estimate.json, and the run says how far off it was.
    """
    if measure and executor != "local":
        raise JobError("--measure works on this machine", remedy="leave --executor out")
    report, facts = dry_run(
        load_job(job),
        options_of(executor, address, None, retokenize=retokenize, lease=False),
        measure_seconds=seconds if measure else None,
        say=lambda text: print(text, file=sys.stderr),
    )
    summary.show_plan(report, facts)
    if report.estimate is not None and report.estimate.streams:
        summary.show_estimate(report.estimate, gpu_price=gpu_price, cpu_price=cpu_price)
        path = _estimate_file(job)
        try:
            path.write_text(report.estimate.to_json(), encoding="utf-8")
        except OSError as error:
            raise JobError("the estimate cannot be kept", where=str(path), why=str(error)) from None
        print(f"kept in {path}: the next run compares itself with it")


def _estimate_file(job: str) -> Path:
    return Path(job).with_suffix(".estimate.json")


def _estimate_of(job: str) -> Estimate | None:
    path = _estimate_file(job)
    if not path.is_file():
        return None
    return Estimate.from_json(path.read_text(encoding="utf-8"), where=str(path))


@app.command()
def init(
    path: Annotated[
        str, typer.Argument(metavar="JOB.yaml", help="The file to write.")
    ] = "job.yaml",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of job files instead.")
    ] = False,
) -> None:
    """Write a commented job file."""
    if schema:
        print(json.dumps(job_json_schema(), indent=2))
        return
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(JOB_TEMPLATE)
    except FileExistsError:
        raise JobError(f"{path} exists already", remedy="name another file") from None
    except OSError as error:
        raise JobError(f"{path} cannot be written", why=str(error)) from None
    print(f"wrote {path}: edit it, then `tokenmill plan {path}` and `tokenmill run {path}`")


cli_amending.register(app)
cli_asking.register(app)
cli_decode.register(app)
cli_fit.register(app)
cli_cluster.register(app)
cli_schedule.register(app)
cli_watch.register(app)
app.add_typer(cli_tokenizers.app, name="tokenizers")


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"


def main() -> None:
    """The console script: every error on purpose is a message and its exit code, no traceback."""
    warnings.formatwarning = _one_line
    try:
        code = app(standalone_mode=False)
    except TokenmillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(4)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except Exception:  # noqa: BLE001 - the last boundary: ours, with everything we know
        traceback.print_exc()
        print("\nThis is a fault of tokenmill: please report the lines above.", file=sys.stderr)
        sys.exit(70)
    sys.exit(code if isinstance(code, int) else 0)
