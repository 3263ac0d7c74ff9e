"""What a failure is: from an exception to a sample's verdict or a task's failure class.

    exception                       where                    becomes
    SampleError                     anywhere                 that sample's verdict
    any other                       reading, `prepare`       that sample's verdict, unexpected
    a child's death                 `prepare`                that sample's verdict, unexpected
    InputChanged, StoreUnavailable  anywhere                 INPUT_CHANGED, STORE
    any other of our error tree     anywhere                 JOB, with the error's exit code
    any other                       encode, join, the rest   PROGRAM: ours, exit 70

*Unexpected* verdicts are counted: the same one again and again is more likely a broken worker or
node than a run of bad samples (`StormDetector`).
"""

from __future__ import annotations

import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import PurePath

from tokenmill.schemas.errors import (
    InputChanged,
    SampleError,
    StoreUnavailable,
    TokenmillError,
)
from tokenmill.schemas.work import FailureClass, Quarantine, Task, TaskFailure

MESSAGE_CHARS = 500  # a decoder's message may quote the whole file
STORM_WINDOW = 1000
STORM_SHARE = 0.05
STORM_ROW = 20
STORM_EXAMPLES = 3  # the coordinator tries three of them elsewhere, with one known-good sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why one sample has no tokens. `error` groups: exception type and the line that raised it."""

    reason: str
    message: str
    stage: str  # read | prepare | encode | join
    error: str = ""
    unexpected: bool = False

    def row(self, *, sample: bytes, key: str, source: str, row: int) -> Quarantine:
        """The quarantine row of the sample at `row` of its (unit, stream)."""
        return Quarantine(
            sample=sample,
            key=key,
            source=source,
            row=row,
            reason=self.reason,
            message=self.message,
            stage=self.stage,
            error=self.error,
        )


def raised_at(error: BaseException) -> str:
    """`ValueError at video.py:41`: exception type and the line that raised it.

    File name without its folder: the same fault groups across nodes and installations.
    """
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return kind
    return f"{kind} at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}"


def sample_fault(error: BaseException, stage: str) -> Fault:
    """The verdict of the sample on which `stage` raised `error`."""
    if isinstance(error, SampleError):
        return Fault(
            reason=error.reason,
            message=str(error)[:MESSAGE_CHARS],
            stage=stage,
            error=raised_at(error) if error.__traceback__ else f"SampleError {error.reason}",
        )
    memory = isinstance(error, MemoryError)
    return Fault(
        reason="out-of-memory" if memory else f"{stage}-failed",
        message=f"{type(error).__name__}: {error}"[:MESSAGE_CHARS],
        stage=stage,
        error=raised_at(error),
        unexpected=True,
    )


def task_failure(error: Exception, task: Task) -> TaskFailure:
    """What `error`, escaped from a task, may cost (design section 3)."""
    kind, exit_code = FailureClass.PROGRAM, 70
    changed: tuple[str, ...] = ()
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, InputChanged):
        kind, changed, exit_code = FailureClass.INPUT_CHANGED, (error.uri,), error.exit_code
    elif isinstance(error, StoreUnavailable):
        kind, exit_code = FailureClass.STORE, error.exit_code
    elif isinstance(error, TokenmillError) and not isinstance(error, SampleError):
        kind, exit_code = FailureClass.JOB, error.exit_code
    if kind is not FailureClass.PROGRAM:
        message = str(error)
    lines = "".join(traceback.format_exception(error)) if kind is FailureClass.PROGRAM else None
    return TaskFailure(
        unit=task.unit.id,
        stream=task.stream,
        attempt=task.attempt,
        kind=kind,
        message=message,
        changed=changed,
        # an exception of a plug-in may not survive pickling: only ours travel as objects
        error=error if isinstance(error, TokenmillError) else None,
        exit_code=exit_code,
        details={"traceback": lines} if lines else {},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Storm:
    """The same unexpected fault again and again; `good`: a sample that went through, if any."""

    error: str
    message: str
    examples: tuple[bytes, ...]
    good: bytes | None


class StormDetector:
    """Same error in over `share` of the last 1,000 samples, or `row` in a row.

    Fewer than 1,000 samples count as 1,000, so a share of 5 % needs 51 of a kind. Only unexpected
    faults are fed here; good samples are fed in bulk, since text passes by the thousand. Not
    thread-safe: the worker holds a lock.
    """

    def __init__(self, share: float = STORM_SHARE, row: int = STORM_ROW) -> None:
        self._share, self._most = share, row
        self._seen = 0
        self._good: bytes | None = None
        self._row: tuple[str, int] = ("", 0)
        self._last: dict[str, deque[tuple[int, bytes]]] = {}

    def good(self, count: int, sample: bytes | None = None) -> None:
        """`count` samples in a row that met no unexpected fault; `sample`: one with tokens."""
        if count:
            self._seen += count
            self._row = ("", 0)
            self._good = sample or self._good

    def fault(self, error: str, message: str, sample: bytes) -> Storm | None:
        """One unexpected fault. A storm is reported once, then counting begins anew."""
        self._seen += 1
        self._row = (error, self._row[1] + 1 if self._row[0] == error else 1)
        hits = self._last.setdefault(error, deque())
        hits.append((self._seen, sample))
        while hits[0][0] <= self._seen - STORM_WINDOW:
            hits.popleft()
        if self._row[1] < self._most and len(hits) <= self._share * STORM_WINDOW:
            return None
        examples = tuple(s for _, s in list(hits)[-STORM_EXAMPLES:])
        storm = Storm(error=error, message=message, examples=examples, good=self._good)
        self._last.clear()
        self._row = ("", 0)
        return storm


class SystematicFault(Exception):
    """Ends a task; becomes a TaskFailure of the class SYSTEMATIC."""

    def __init__(self, storm: Storm) -> None:
        super().__init__(storm.error)
        self.storm = storm

    def failure(self, task: Task) -> TaskFailure:
        storm = self.storm
        return TaskFailure(
            unit=task.unit.id,
            stream=task.stream,
            attempt=task.attempt,
            kind=FailureClass.SYSTEMATIC,
            message=f"the same fault again and again: {storm.error}: {storm.message}",
            exit_code=3,
            details={"error": storm.error, "examples": storm.examples, "good": storm.good},
        )
