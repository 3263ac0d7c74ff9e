"""`tokenmill schedule`: a run every night, on the system at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml
from pydantic import ValidationError

from tokenmill.pipelines.schedule import install
from tokenmill.pipelines.schedule.settings import TARGETS, Missed, Nodes, Rendered, Schedule, Target
from tokenmill.pipelines.session import load_job
from tokenmill.pipelines.submission import check_paths
from tokenmill.schemas.errors import JobError

_CLUSTERS = ("kubernetes", "ray-cronjob")


def register(app: typer.Typer) -> None:
    app.command()(schedule)


def schedule(
    job: Annotated[str, typer.Argument(metavar="JOB.yaml")],
    cron: Annotated[str, typer.Option(help="Minute, hour, day, month, weekday: '0 2 * * *'.")],
    on: Annotated[str, typer.Option("--on", help=" | ".join(TARGETS))],
    timezone: Annotated[str, typer.Option(help="An IANA name: Europe/Zurich.")] = "UTC",
    missed: Annotated[
        str | None, typer.Option(help="catch-up (default where it can be done) | skip")
    ] = None,
    alert: Annotated[
        str | None, typer.Option(help="When a run fails: an https:// URL, or a shell command.")
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=1, max=10, help="Of one night, while the infrastructure fails.")
    ] = 3,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write the files here; else they are shown")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Install with the system's own tool.")
    ] = False,
    python: Annotated[
        str | None, typer.Option(help="The interpreter there that has tokenmill.")
    ] = None,
    image: Annotated[str, typer.Option(help="Kubernetes: deploy/Dockerfile builds it.")] = (
        "tokenmill:latest"
    ),
    namespace: Annotated[str, typer.Option(help="Kubernetes.")] = "tokenmill",
    secret: Annotated[
        str | None, typer.Option(help="Kubernetes: a Secret with AWS_… keys.")
    ] = None,
    spot: Annotated[
        str | None, typer.Option(metavar="LABEL=VALUE", help="Kubernetes: workers on such nodes.")
    ] = None,
    cpus: Annotated[int, typer.Option(help="Of a node.")] = 8,
    memory: Annotated[str, typer.Option(help="Of a node.")] = "32Gi",
    gpus: Annotated[int, typer.Option(help="Of a GPU node.")] = 1,
    max_nodes: Annotated[int, typer.Option(help="Kubernetes: of each kind.")] = 8,
    nodes: Annotated[int, typer.Option(help="Slurm: of a run.")] = 1,
    partition: Annotated[str | None, typer.Option(help="Slurm.")] = None,
    hours: Annotated[float, typer.Option(help="A run's time limit.")] = 12,
    workers: Annotated[int | None, typer.Option(min=1, help="As in `run`.")] = None,
    shared_files: Annotated[
        bool, typer.Option("--shared-files", help="Local paths exist on every node.")
    ] = False,
) -> None:
    """Run a job every night: write what a system needs for it, or install it with --apply.

    One run at a time; what an earlier night left over is caught up by tokenmill itself.
    """
    if on not in TARGETS:
        raise JobError(f"--on {on!r} is not known", remedy=", ".join(TARGETS))
    target: Target = on
    if missed is None:
        missed = "skip" if target in ("cron", "ray-cronjob") else "catch-up"
    if missed not in get_args(Missed):
        raise JobError(f"--missed {missed!r} is not known", remedy="catch-up or skip")
    loaded = load_job(job)
    if target in _CLUSTERS:
        check_paths(loaded, target, shared_files=shared_files)
    made = _schedule(
        job=loaded,
        job_file=str(Path(job).resolve()),
        job_text=yaml.safe_dump(
            loaded.model_dump(mode="json", exclude_unset=True), sort_keys=False
        ),
        cron=cron,
        timezone=timezone,
        missed=missed,
        alert=alert,
        attempts=attempts,
        python=python or sys.executable,
        arguments=("--workers", str(workers)) if workers else (),
        nodes={
            "image": image,
            "namespace": namespace,
            "secret": secret,
            "spot": spot,
            "cpus": cpus,
            "memory": memory,
            "gpus": gpus,
            "max_cpu_nodes": max_nodes,
            "max_gpu_nodes": max_nodes,
            "count": nodes,
            "partition": partition,
            "hours": hours,
        },
    )
    rendered = install.render(made, target)
    _report(made, target, rendered, out, apply)


def _schedule(**fields: Any) -> Schedule:
    try:
        return Schedule(**{**fields, "nodes": Nodes(**fields["nodes"])})
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(
            f"--{'-'.join(map(str, first['loc']))} is wrong",
            why=f"{first['msg']} (given: {first['input']!r})",
        ) from None


def _report(
    made: Schedule, target: Target, rendered: Rendered, out: str | None, apply: bool
) -> None:
    if out is not None:
        for path in install.write(rendered, Path(out)):
            print(f"wrote {path}")
    elif not apply:
        for name, text in rendered.files.items():
            print(f"# file: {name}\n{text}" if len(rendered.files) > 1 else text, end="")
    if apply:
        print(install.apply(made, target, rendered), end="")
    for note in rendered.notes:
        print(f"# {note}", file=sys.stderr)
