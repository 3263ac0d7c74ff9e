"""How a run shows itself: a bar on a terminal, JSON lines where there is none."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokenmill.pipelines.coordinator import Coordinator
from tokenmill.pipelines.executors import Running

JSON_SECONDS = 10.0


class Bar:
    """Units, samples/s, tokens/s, quarantined and time left, on stderr."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tasks"),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("tokenize", total=None, rates="", start=True)
        self._began = time.monotonic()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, coordinator: Coordinator, running: Running) -> None:
        counts = coordinator.counts
        seconds = max(time.monotonic() - self._began, 1e-3)
        samples, tokens = counts.samples + running.samples, counts.tokens + running.tokens
        rates = f"{samples / seconds:,.0f} samples/s  {tokens / seconds:,.0f} tokens/s"
        if counts.quarantined:
            rates += f"  [red]{counts.quarantined:,} quarantined[/red]"
        if coordinator.paused_for:
            rates += "  [yellow]waiting for the store[/yellow]"
        self._progress.update(
            self._task, total=max(counts.planned, 1), completed=counts.finished, rates=rates
        )

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


class JsonLines:
    """One line every ten seconds, and what is said in between."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()
        self._last = 0.0

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, coordinator: Coordinator, running: Running) -> None:
        now = time.monotonic()
        if now - self._last < JSON_SECONDS:
            return
        self._last = now
        counts = coordinator.counts
        seconds = max(now - self._began, 1e-3)
        tokens = counts.tokens + running.tokens
        self._write(
            event="progress",
            tasks=counts.planned,
            finished=counts.finished,
            committed=counts.committed,
            samples=counts.samples + running.samples,
            tokens=tokens,
            tokens_per_second=round(tokens / seconds),
            quarantined=counts.quarantined,
            waiting=coordinator.paused_for or None,
        )

    def say(self, text: str) -> None:
        self._write(event="note", message=text)

    def _write(self, **fields: object) -> None:
        shown = {k: v for k, v in fields.items() if v is not None}
        print(json.dumps(shown), file=self._out, flush=True)


def progress() -> Bar | JsonLines:
    return Bar(Console(stderr=True)) if sys.stderr.isatty() else JsonLines(sys.stderr)
