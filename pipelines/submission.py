"""What is submitted, under which id, and when again. No Ray, no network.

A submission's id is a function of the job, its options and its listed inputs, so that submitting
twice is submitting once: the second finds the first, running or done. Retries are ours, counted
and bounded: attempt n carries the suffix `-n`.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import yaml

import tokenmill
from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import canonical_json
from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Input

State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
ENDED: frozenset[State] = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
JOB_FILE = "job.yaml"
# A run that is told to stop commits what is finished; Ray's own patience is three seconds.
STOP_SECONDS = 120
# The job's own mistakes and its own faults come again: only the infrastructure's are tried anew.
_FINAL_CODES = frozenset({1, 2, 4, 70})
_DIGITS = 12
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One job of the cluster, as far as we need it."""

    id: str
    state: State
    message: str = ""
    exit_code: int | None = None
    metadata: Mapping[str, str] | None = None
    started: float | None = None  # Unix seconds
    ended: float | None = None

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def reason(self) -> str:
        """Its message's first sentence: Ray puts the log's tail behind it."""
        return self.message.partition("\n")[0].partition(", last available logs")[0]

    @property
    def worth_a_retry(self) -> bool:
        """Its driver was lost, or the infrastructure failed."""
        return self.state == "FAILED" and self.exit_code not in _FINAL_CODES

    @property
    def our_exit_code(self) -> int:
        """What `tokenmill` ends with when it followed this one."""
        if self.state == "SUCCEEDED":
            return 0
        if self.state == "STOPPED":
            return 4
        return self.exit_code if self.exit_code in (1, 2, 3, 4, 70) else 3


class Jobs(Protocol):
    """What we ask of Ray's job SDK (pipelines/ray_jobs.py)."""

    def submit(self, id: str, package: Package) -> None: ...

    def find(self, id: str) -> Submission | None: ...

    def list(self) -> Sequence[Submission]: ...

    def stop(self, id: str) -> bool: ...

    def follow(self, id: str) -> Iterable[str]:
        """The driver's log as it grows, until it ends."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What goes to the cluster: files of the driver's working directory, and its command."""

    files: Mapping[str, str]  # name -> text
    entrypoint: str
    metadata: Mapping[str, str]
    environment: Mapping[str, str]
    runtime_env: Mapping[str, Any]
    with_code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    id: str
    how: Literal["submitted", "already running", "already done"]
    attempt: int


def package(
    job: Job,
    *,
    arguments: Sequence[str] = (),
    python: str = "python",
    runtime_env: Mapping[str, Any] | None = None,
    with_code: bool = False,
) -> Package:
    """The job as a package. arguments: further options of `tokenmill run`. python: the cluster's
    interpreter that has tokenmill."""
    words = (python, "-m", "tokenmill", "run", JOB_FILE, "--address", "auto", *arguments)
    text = yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    return Package(
        files={JOB_FILE: text},
        entrypoint=shlex.join(words),
        metadata={"tokenmill": tokenmill.__version__, "job": job.name},
        environment={"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        runtime_env=dict(runtime_env or {}),
        with_code=with_code,
    )


def submission_id(
    job: Job,
    inputs: Mapping[str, Iterable[Input]],
    *,
    checkpoints: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> str:
    """`NAME-` and 12 hex digits over job, options, checkpoints (URI -> version) and inputs
    (pipeline -> its listed inputs)."""
    digest = hashlib.sha256(canonical_json(job.model_dump(mode="json")))
    digest.update(canonical_json([list(arguments), dict(checkpoints or {})]))
    for name in sorted(inputs):
        digest.update(b"\0" + name.encode())
        for input_ in inputs[name]:
            digest.update(input_.id)
    return f"{job.name}-{digest.hexdigest()[:_DIGITS]}"


def check_paths(job: Job, address: str, *, shared_files: bool) -> None:
    """Refuse a job with local paths on a cluster elsewhere, which would look for them in vain."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    if shared_files or host in _LOOPBACK:
        return
    local = [path for path in _paths(job) if "://" not in path]
    if local:
        raise JobError(
            "the job names files of this machine, which the cluster may not have",
            where=", ".join(local[:5]),
            why=f"{address} is another machine",
            remedy="put them into the object store, or say --shared-files where every node sees "
            "them under the same path",
        )


def _paths(job: Job) -> list[str]:
    found = [job.store]
    for pipeline in job.pipelines.values():
        found += pipeline.source.uris
        found += [s.checkpoint for s in pipeline.streams.values() if s.checkpoint]
    return found


def attempt_id(base: str, attempt: int) -> str:
    return base if attempt == 1 else f"{base}-{attempt}"


def latest(jobs: Jobs, base: str) -> tuple[int, Submission | None]:
    """The last attempt of a submission: (its number, what became of it); (0, None) for none."""
    attempt, found = 0, None
    while (after := jobs.find(attempt_id(base, attempt + 1))) is not None:
        attempt, found = attempt + 1, after
    return attempt, found


def submit(
    jobs: Jobs, base: str, made: Package, *, attempts: int, again: bool = False
) -> Submitted:
    """Submit `made` unless an earlier submission of the same id runs or is done.

    attempts: at most so many in all. again: also where it is done, stopped, failed for good or
    out of attempts. Raises JobError where the last attempt failed and may not be repeated.
    """
    attempt, found = latest(jobs, base)
    if found is not None and not found.over:
        return Submitted(id=found.id, how="already running", attempt=attempt)
    if found is not None and not again:
        if found.state == "SUCCEEDED":
            return Submitted(id=found.id, how="already done", attempt=attempt)
        if found.state == "FAILED" and not found.worth_a_retry:
            raise JobError(
                f"{found.id} has failed and would fail again (exit code {found.exit_code})",
                why=found.reason,
                remedy="mend the job (its id changes with it), or submit --again",
            )
        if attempt >= attempts:
            raise JobError(
                f"{base} has failed {attempt} times",
                why=found.reason,
                remedy="look at `tokenmill status`, then submit --again",
            )
    id = attempt_id(base, attempt + 1)
    try:
        jobs.submit(id, made)
    except AlreadyThere:
        return Submitted(id=id, how="already running", attempt=attempt + 1)
    return Submitted(id=id, how="submitted", attempt=attempt + 1)


class AlreadyThere(Exception):
    """Somebody else submitted the same id between our look and our call."""
