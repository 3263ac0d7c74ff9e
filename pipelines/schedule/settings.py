"""What a person says of a schedule, checked; and what a target makes of it."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tokenmill.pipelines.schedule.cron import Cron, parse_cron, zone_of
from tokenmill.schemas.job import Job

Target = Literal["kubernetes", "ray-cronjob", "slurm", "systemd", "cron"]
TARGETS: tuple[Target, ...] = ("kubernetes", "ray-cronjob", "slurm", "systemd", "cron")
Missed = Literal["catch-up", "skip"]
# How late a run may start that is not to catch up.
GRACE_SECONDS = 600
_UNSAFE = re.compile(r"[^a-z0-9]+")


def _one_line(text: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError("control characters and line breaks are refused: it goes into scripts")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(Mi|Gi|Ti)$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9./_-]+=[A-Za-z0-9._-]*$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Nodes(_Model):
    """Kubernetes and Slurm: what a run gets."""

    image: Line = "tokenmill:latest"
    namespace: Name = "tokenmill"
    secret: Name | None = None
    """Of the namespace: its keys become environment variables (AWS_ACCESS_KEY_ID, …)."""
    cpus: int = Field(default=8, ge=1)
    memory: Quantity = "32Gi"
    gpus: int = Field(default=1, ge=1)
    """Of a GPU node."""
    max_cpu_nodes: int = Field(default=8, ge=1)
    max_gpu_nodes: int = Field(default=8, ge=1)
    spot: Label | None = None
    """KEY=VALUE: workers go to nodes with this label (and tolerate a taint of the same name)."""
    partition: Line | None = None
    """Slurm's."""
    count: int = Field(default=1, ge=1)
    """Slurm: nodes of a run."""
    hours: float = Field(default=12, gt=0)
    """A run's time limit."""


class Schedule(_Model):
    """One nightly run."""

    job: Job
    job_file: Line
    """Absolute; what the machine's own targets run."""
    job_text: str
    """With absolute paths; what travels."""
    cron: Line
    timezone: Line
    missed: Missed = "catch-up"
    alert: Line | None = None
    """An https:// URL that is sent a JSON object, or a shell command, when a run fails."""
    python: Line = "python3"
    attempts: int = Field(default=3, ge=1, le=10)
    """Of one night, while the infrastructure fails (exit code 3)."""
    arguments: tuple[Line, ...] = ()
    """Further options of `tokenmill run`."""
    nodes: Nodes = Nodes()

    @property
    def name(self) -> str:
        """tokenmill-NAME, good for Kubernetes, systemd and Slurm: at most 52 characters, the
        longest name of a CronJob."""
        return f"tokenmill-{_UNSAFE.sub('-', self.job.name.lower())}"[:52].strip("-")

    @property
    def parsed(self) -> Cron:
        return parse_cron(self.cron)

    @property
    def zone(self) -> ZoneInfo:
        return zone_of(self.timezone)

    @property
    def needs_gpus(self) -> bool:
        return any(need.gpus_per_worker > 0 for need in self.job.resources.values())

    @property
    def needs_cpu_nodes(self) -> bool:
        """Whether some stream runs without a GPU."""
        streams = {name for p in self.job.pipelines.values() for name in p.streams}
        return any(
            name not in self.job.resources or not self.job.resources[name].gpus_per_worker
            for name in streams
        )


class Rendered(_Model):
    """Files for a target, and what a person should know."""

    files: dict[str, str]
    notes: tuple[str, ...] = ()
    executable: frozenset[str] = frozenset()
