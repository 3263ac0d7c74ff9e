"""The command line. Verbs are thin: they read options, call what does the work, and print."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import click
import typer

import tokenmill
from tokenmill.pipelines import cli_amending, cli_asking, cli_tokenizers, summary
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
) -> None:
    """Tokenize what a job's sources hold and its store does not. Resumes by itself."""
    options = options_of(executor, address, workers, retokenize=retokenize, lease=not no_lease)
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
) -> None:
    """Show what `run` would do; write nothing."""
    report, facts = dry_run(
        load_job(job), options_of(executor, address, None, retokenize=retokenize, lease=False)
    )
    summary.show_plan(report, facts)


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
