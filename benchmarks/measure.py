"""Wall and CPU seconds of a command with all it leaves behind, and ratios with their spread."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Cost:
    wall: float  # seconds until the command returned
    cpu: float  # seconds of the command and every process that it started
    peak: int  # bytes: the largest resident set among these processes
    out: str


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run `command` to its end, and wait for what it leaves behind (Ray's daemons).

    CPU is sampled per process five times a second, since Ray's daemons are not waited for by
    anybody: a process loses at most its last fifth of a second. Raises SystemExit where the
    command fails.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become our children
    seen: dict[tuple[int, float], tuple[float, int]] = {}
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=dict(env or os.environ), stdout=subprocess.PIPE, text=True
    ) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(seen, ended))
        watcher.start()
        out = process.communicate()[0]
        wall = time.perf_counter() - began
        _reap()
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    cpu, peak = sum(c for c, _ in seen.values()), max(p for _, p in seen.values())
    return Cost(wall=wall, cpu=cpu, peak=peak, out=out)


def _watch(seen: dict[tuple[int, float], tuple[float, int]], ended: threading.Event) -> None:
    own = psutil.Process()
    while not ended.wait(SAMPLE_SECONDS):
        for process in own.children(recursive=True):
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                name = (process.pid, process.create_time())
                peak = max(seen.get(name, (0.0, 0))[1], process.memory_info().rss)
                seen[name] = (times.user + times.system, peak)


def _reap() -> None:
    """Wait for the orphans of a command that has ended."""
    for _ in range(200):
        left = psutil.Process().children(recursive=True)
        if not left:
            return
        psutil.wait_procs(left, timeout=0.1)
    raise SystemExit("the command left processes that do not end")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (least to most, n)`."""
    low, high = min(values), max(values)
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, n={len(values)})"


def machine() -> str:
    """One line: processor, cores, memory, Python."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {memory} GiB, Python {platform.python_version()}"


def load() -> float:
    """The one-minute load average: figures taken beside other work say so."""
    return os.getloadavg()[0]
