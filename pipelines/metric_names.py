"""The metrics of a run: names, meanings, labels. What exports them (metrics.py) and what shows them
(dashboard.py) both go by this list."""

from __future__ import annotations

from collections.abc import Mapping

_STREAM = ("job", "pipeline", "stream")
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "samples": ("Samples of committed tasks.", _STREAM),
    "tokens": ("Tokens of committed tasks.", _STREAM),
    "shard_bytes": ("Bytes of committed shard files.", _STREAM),
    "source_bytes": ("Bytes read of the source.", _STREAM),
    "quarantined": ("Samples and inputs without tokens, by reason.", (*_STREAM, "reason")),
    "worker_seconds": (
        "Workers' seconds by activity; wait is the encoder starving.",
        (*_STREAM, "activity"),
    ),
    "tasks": ("Committed tasks.", _STREAM),
    "runs": ("Runs that have ended, by exit code.", ("job", "exit_code")),
}
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tasks_queued": ("Tasks that wait for a worker.", _STREAM),
    "tasks_running": ("Tasks at work.", _STREAM),
    "workers": ("Workers, starting ones included.", _STREAM),
    "batch_fill": ("Share of the batch budget that batches used, on average.", _STREAM),
    "gpu_memory_bytes": ("The highest peak of a worker's GPU memory.", _STREAM),
    "store_waiting": ("1 while the run waits for the store.", ("job",)),
}
PREFIX = "tokenmill_"


def exported(name: str) -> str:
    """The name that Prometheus sees."""
    return f"ray_{PREFIX}{name}" + ("_total" if name in COUNTERS else "")
