"""The verbs of a cluster: submit, status, stop, jobs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
import yaml

from tokenmill.pipelines import submission
from tokenmill.pipelines.cluster_auth import find_auth
from tokenmill.pipelines.ray_jobs import RayJobs
from tokenmill.pipelines.session import load_job
from tokenmill.pipelines.submission import Submission
from tokenmill.pipelines.tables import check_format, show
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.job import Job
from tokenmill.store.access import Access
from tokenmill.workers.sources import open_source

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of a cluster: http://HEAD:8265."
    ),
]
TokenFile = Annotated[
    str | None, typer.Option(help="File with the cluster's token; else RAY_AUTH_TOKEN[_PATH].")
]
CaFile = Annotated[str | None, typer.Option(help="CA certificates, for an https address.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="As `submit` and `jobs` show it.")]
Output = Annotated[str, typer.Option("--format", "-f", metavar="FORMAT")]
# Between two attempts: twice as long each time.
FIRST_WAIT_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    for verb in (submit, status, stop, jobs):
        app.command()(verb)


def _connect(address: str, token_file: str | None, ca_file: str | None) -> RayJobs:
    return RayJobs(address, find_auth(token_file), verify=ca_file or True)


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB.yaml")],
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show its log, and end as it ends.")
    ] = False,
    attempts: Annotated[
        int, typer.Option(min=1, help="Attempts in all, while the infrastructure fails.")
    ] = 3,
    again: Annotated[
        bool, typer.Option("--again", help="Although it is done, or has failed for good.")
    ] = False,
    id: Annotated[
        str | None, typer.Option(help="An id of your own; spares listing the sources here.")
    ] = None,
    retokenize: Annotated[bool, typer.Option("--retokenize", help="As in `run`.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="As in `run`.")] = None,
    python: Annotated[
        str, typer.Option(help="The cluster's interpreter that has tokenmill.")
    ] = "python",
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Ship this tokenmill; else the cluster's is used.")
    ] = False,
    shared_files: Annotated[
        bool, typer.Option("--shared-files", help="Local paths exist on every node.")
    ] = False,
    runtime_env: Annotated[
        str | None, typer.Option(metavar="FILE.yaml", help="A Ray runtime_env to add to.")
    ] = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Run a job on a cluster, through its dashboard. The same job and inputs run once."""
    loaded = load_job(job)
    submission.check_paths(loaded, address, shared_files=shared_files)
    arguments = [*(["--retokenize"] if retokenize else [])]
    arguments += ["--workers", str(workers)] if workers else []
    made = submission.package(
        loaded,
        arguments=arguments,
        python=python,
        runtime_env=_runtime_env(runtime_env),
        with_code=with_code,
    )
    id = id or _derived_id(loaded, arguments)
    ray_jobs = _connect(address, token_file, ca_file)
    done = submission.submit(ray_jobs, id, made, attempts=attempts, again=again)
    _say(f"{done.how}: {done.id}" + (f" (attempt {done.attempt})" if done.attempt > 1 else ""))
    if not follow:
        _say(f"follow: tokenmill status {done.id} --address {address} --follow")
        return
    wait = FIRST_WAIT_SECONDS
    while True:
        ended = _follow(ray_jobs, done.id)
        attempt, _ = submission.latest(ray_jobs, id)
        if not ended.worth_a_retry or attempt >= attempts:
            break
        _say(f"{done.id} was lost ({ended.reason}); again in {wait:.0f} s")
        time.sleep(wait)
        wait *= 2
        done = submission.submit(ray_jobs, id, made, attempts=attempts)
        _say(f"{done.how}: {done.id} (attempt {done.attempt} of {attempts})")
    raise typer.Exit(ended.our_exit_code)


def status(
    id: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log as it grows.")] = False,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    format: Output = "table",
) -> None:
    """Show what became of a submitted job. With --follow, end as it ends."""
    check_format(format)
    ray_jobs = _connect(address, token_file, ca_file)
    found = _known(ray_jobs, id)
    if follow:
        raise typer.Exit(_follow(ray_jobs, id).our_exit_code)
    show(_facts(found), format)


def stop(
    id: JobId,
    address: Address,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Stop a submitted job in order: what is finished is committed, a later run goes on."""
    ray_jobs = _connect(address, token_file, ca_file)
    found = _known(ray_jobs, id)
    if found.over or not ray_jobs.stop(id):
        _say(f"{id} has ended already: {found.state}")
        return
    _say(f"asked {id} to stop; it has {submission.STOP_SECONDS} s to commit what is finished")


def jobs(
    address: Address,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    format: Output = "table",
) -> None:
    """List the jobs that were submitted to a cluster, the newest first."""
    check_format(format)
    found = sorted(
        _connect(address, token_file, ca_file).list(), key=lambda s: s.started or 0, reverse=True
    )
    facts = [_facts(each) for each in found]
    names = ("id", "job", "state", "exit_code", "started", "seconds", "message")
    kinds = {"exit_code": pa.int64(), "seconds": pa.float64(), "started": pa.timestamp("s", "UTC")}
    show(
        pa.table({n: pa.array([f[n] for f in facts], kinds.get(n, pa.string())) for n in names}),
        format,
    )


def _derived_id(job: Job, arguments: list[str]) -> str:
    listed = {name: open_source(p.source).list() for name, p in job.pipelines.items()}
    streams = [s for p in job.pipelines.values() for s in p.streams.values()]
    checkpoints = {}
    for uri in {s.checkpoint for s in streams if s.checkpoint}:
        folder, _, name = uri.rpartition("/")
        try:
            checkpoints[uri] = Access(folder or "/").stat(name).version
        except FileNotFoundError:
            raise JobError("a checkpoint is not there", where=uri) from None
    return submission.submission_id(job, listed, checkpoints=checkpoints, arguments=arguments)


def _known(ray_jobs: RayJobs, id: str) -> Submission:
    found = ray_jobs.find(id)
    if found is None:
        raise JobError(f"the cluster knows no job {id}", remedy="`tokenmill jobs` lists them")
    return found


def _facts(found: Submission) -> dict[str, Any]:
    end = found.ended or time.time()
    return {
        "id": found.id,
        "job": (found.metadata or {}).get("job"),
        "state": found.state,
        "exit_code": found.exit_code,
        "started": datetime.fromtimestamp(int(found.started), UTC) if found.started else None,
        "seconds": round(end - found.started, 1) if found.started else None,
        "message": found.reason or None,
    }


def _follow(ray_jobs: RayJobs, id: str) -> Submission:
    for line in _readable(ray_jobs.follow(id)):
        print(line, flush=True)
    ended = _known(ray_jobs, id)
    _say(f"{id}: {ended.state}" + (f": {ended.reason}" if ended.state != "SUCCEEDED" else ""))
    return ended


def _readable(lines: Iterable[str]) -> Iterable[str]:
    """A run's JSON lines as sentences on a terminal; as they are elsewhere."""
    for line in lines:
        yield progress_line(line) if sys.stdout.isatty() else line


def progress_line(line: str) -> str:
    """`{"event": "progress", …}` as `12/64 tasks, …`; any other line unchanged."""
    try:
        event = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return line
    if not isinstance(event, dict) or event.get("event") != "progress":
        return line
    try:
        text = f"{event['finished']:,}/{event['tasks']:,} tasks  {event['samples']:,} samples  "
        text += f"{event['tokens']:,} tokens  {event['tokens_per_second']:,} tokens/s"
        return text + (f"  {event['quarantined']:,} quarantined" if event["quarantined"] else "")
    except (KeyError, TypeError, ValueError):
        return line


def _runtime_env(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError("the runtime_env cannot be read", where=path, why=str(error)) from None
    if not isinstance(found, dict):
        raise JobError("a runtime_env is a mapping", where=path)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
