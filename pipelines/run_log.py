"""`run --log FILE`: what happened, a JSON object a line, with the keys to find it again.

Every line has time, event, job and run; a task's has pipeline, stream and unit; a sample without
tokens has its id and key as well. Lines are written when their commit is in the ledger.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.work import TaskResult


class RunLog:
    """path: appended to; `-` is standard error. Raises JobError where it cannot be written."""

    def __init__(self, path: str, *, job: str, run: str) -> None:
        self._same = {"job": job, "run": run}
        self._file: TextIO | None = None
        if path == "-":
            self._out: TextIO = sys.stderr
            return
        try:
            self._out = self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise JobError("the log cannot be written", where=path, why=str(error)) from None

    def event(self, event: str, **facts: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, **self._same, **facts}
        # one write a line: several runs may append to one file
        self._out.write(json.dumps(line, ensure_ascii=True) + "\n")
        self._out.flush()

    def committed(self, pipeline: str, results: Sequence[TaskResult]) -> None:
        for result in results:
            where = {"pipeline": pipeline, "stream": result.stream, "unit": result.unit.hex()}
            seconds = dataclasses.asdict(result.stats)
            self.event(
                "task",
                **where,
                samples=result.enumerated,
                tokens=result.tokens,
                quarantined=len(result.quarantined),
                absent=result.absent,
                shards=[shard.path for shard in result.shards],
                notes=list(result.notes),
                stats={k: round(v, 4) for k, v in seconds.items()},
            )
            for fault in (*result.quarantined, *result.input_faults):
                self.event(
                    "quarantined",
                    **where,
                    sample=fault.sample.hex() if fault.sample else None,
                    key=fault.key,
                    source=fault.source,
                    row=fault.row,
                    reason=fault.reason,
                    stage=fault.stage,
                    message=fault.message,
                )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
