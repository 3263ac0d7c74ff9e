"""Ray's job SDK behind the small contract of submission.py. Needs `pip install tokenmill[cluster]`.

Traps met in Ray 2.60: the same id twice answers HTTP 500, not 409, so the id is looked up again;
a log's websocket may close early, so it is opened again and what was shown is skipped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenmill
from tokenmill.pipelines.cluster_auth import Auth
from tokenmill.pipelines.submission import AlreadyThere, Package, Submission
from tokenmill.schemas.errors import JobError, StoreError, StoreUnavailable

POLL_SECONDS = 1.0
# A head that does not answer for so long is not going to.
PATIENCE_SECONDS = 120.0
UNKNOWN = "does not exist"


class RayJobs:
    """See submission.Jobs. address: `http://head:8265`. Raises StoreError where nobody answers."""

    def __init__(self, address: str, auth: Auth, *, verify: str | bool = True) -> None:
        auth.export()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._address = address if "://" in address else f"http://{address}"
        self._errors: tuple[type[Exception], ...] = (RuntimeError, OSError)
        try:
            # half a second, and only with the extra `cluster`
            from ray.exceptions import RayError  # noqa: PLC0415 - see above
            from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - see above

            self._errors = (*self._errors, RayError)  # AuthenticationError is of no other kind
            # its uploads and closed sockets are nobody's news
            for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = JobSubmissionClient(self._address, headers=auth.headers, verify=verify)
        except ImportError as error:
            raise JobError(
                "Ray's job SDK is not installed",
                why=str(error).strip().splitlines()[0],
                remedy="pip install 'tokenmill[cluster]'",
            ) from None
        except (*self._errors, ValueError) as error:
            raise self._failed(error) from error

    def submit(self, id: str, package: Package) -> None:
        """Upload and start. Raises AlreadyThere where the id is taken."""
        with tempfile.TemporaryDirectory(prefix="tokenmill-submit-") as folder:
            for name, text in package.files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            try:
                self._client.submit_job(
                    entrypoint=package.entrypoint,
                    submission_id=id,
                    runtime_env=_runtime_env(package, folder),
                    metadata=dict(package.metadata),
                )
            except self._errors as error:
                if self.find(id) is not None:
                    raise AlreadyThere(id) from error
                raise self._failed(error) from error

    def find(self, id: str) -> Submission | None:
        try:
            return _submission(self._client.get_job_info(id))
        except self._errors as error:
            if UNKNOWN in str(error):
                return None
            raise self._failed(error) from error

    def list(self) -> Sequence[Submission]:
        """Those that were submitted (a driver that somebody started by hand has no id)."""
        try:
            found = self._client.list_jobs()
        except self._errors as error:
            raise self._failed(error) from error
        return [_submission(each) for each in found if each.submission_id]

    def stop(self, id: str) -> bool:
        """Ask it to stop: what is finished is committed. False where it has ended already."""
        try:
            return bool(self._client.stop_job(id))
        except self._errors as error:
            raise self._failed(error) from error

    def follow(self, id: str) -> Iterator[str]:
        """Whole lines of the driver's log, until it ends. Raises StoreUnavailable when the head
        does not answer for two minutes (the job goes on)."""
        lines = _Lines()
        failing_since: float | None = None
        while True:
            try:
                if self._over(id):
                    yield from lines.more(self._rest(id))
                    yield from lines.rest()
                    return
                yield from lines.more(self._tail(id))
                failing_since = None
            except self._errors as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > PATIENCE_SECONDS:
                    raise self._failed(error) from error
                time.sleep(POLL_SECONDS)

    def _over(self, id: str) -> bool:
        return bool(self._client.get_job_info(id).status.is_terminal())

    def _rest(self, id: str) -> Iterator[str]:
        """The whole log: a job counts as stopped a moment before its driver has said why."""
        before, log = "", str(self._client.get_job_logs(id))
        while log != before:
            time.sleep(POLL_SECONDS)
            before, log = log, str(self._client.get_job_logs(id))
        yield log

    def _tail(self, id: str) -> Iterator[str]:
        """Chunks from the beginning of the log, as they come; none for a while: "".

        Ends with the job: the websocket itself closes only about five seconds later.
        """
        loop = asyncio.new_event_loop()
        chunks: Any = self._client.tail_job_logs(id)  # an async generator
        coming: asyncio.Future[str] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(chunks), loop=loop)
                done, _ = loop.run_until_complete(asyncio.wait({coming}, timeout=POLL_SECONDS))
                if done:
                    chunk, coming = coming.result(), None
                    yield chunk
                elif self._over(id):
                    return
        except StopAsyncIteration:
            return
        finally:
            if coming is not None:
                coming.cancel()
                loop.run_until_complete(asyncio.wait({coming}))
            loop.run_until_complete(chunks.aclose())
            loop.close()

    def _failed(self, error: Exception) -> StoreError:
        text = str(error).strip()
        why = text.splitlines()[0] if text else type(error).__name__
        if "401" in text or "403" in text or "authentication" in text.lower():
            return StoreError(
                "the cluster does not accept us",
                where=self._address,
                why=why,
                remedy="give its token: --token-file, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                "(`ray get-auth-token` on the head prints it)",
            )
        return StoreUnavailable(
            "the cluster's dashboard does not answer as it should",
            where=self._address,
            why=why,
            remedy="check --address (http://HEAD:8265, the dashboard's port) and that the head "
            "was started with its dashboard (ray[default])",
        )


class _Lines:
    """Chunks that may begin anew from the log's beginning -> lines not shown before."""

    def __init__(self) -> None:
        self._shown = 0  # characters
        self._part = ""

    def more(self, chunks: Iterator[str]) -> Iterator[str]:
        position = 0
        for chunk in chunks:
            fresh = chunk[max(0, self._shown - position) :]
            position += len(chunk)
            if fresh:
                self._shown = position
                *whole, self._part = (self._part + fresh).split("\n")
                yield from whole

    def rest(self) -> Iterator[str]:
        if self._part:
            yield self._part


def _runtime_env(package: Package, folder: str) -> dict[str, Any]:
    """The person's, with our working directory, code and variables laid over it."""
    given = dict(package.runtime_env)
    if "working_dir" in given:
        raise JobError(
            "--runtime-env names a working_dir",
            why="the job file travels as the working directory",
            remedy="use py_modules for code",
        )
    modules = list(given.get("py_modules", ()))
    if package.with_code:
        modules.append(str(Path(tokenmill.__file__).parent))
    environment = {**package.environment, **given.get("env_vars", {})}
    env = {**given, "working_dir": folder, "env_vars": environment}
    return {**env, "py_modules": modules} if modules else env


def _submission(details: Any) -> Submission:
    return Submission(
        id=details.submission_id,
        state=details.status.value,
        message=(details.message or "").strip(),
        exit_code=getattr(details, "driver_exit_code", None),
        metadata=details.metadata or {},
        started=details.start_time / 1e3 if details.start_time else None,
        ended=details.end_time / 1e3 if details.end_time else None,
    )
