"""Starting processes of ours that die with us: fork servers and local workers.

A fresh interpreter (never a fork of a process with threads) that re-imports nobody's main module,
so a script needs no `if __name__ == "__main__"`. Its first act is PR_SET_PDEATHSIG, before any
import: a process that spins in native code outlives its killed parent otherwise. The kernel ties
that signal to the *thread* that forked, so all launches go through one thread that lives as long
as this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

_PR_SET_PDEATHSIG = 1

_BOOT = """
import ctypes, json, os, sys
ctypes.CDLL(None).prctl(1, 9)
order = json.loads(sys.argv[1])
if os.getppid() != order["parent"]: os._exit(1)
sys.path[:] = order["path"]
import importlib
module, _, name = order["entry"].partition(":")
getattr(importlib.import_module(module), name)(*order["arguments"])
"""


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the thread that forked it ends. `parent`: who that was."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def launch(
    entry: str,
    *arguments: str,
    fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Run `module:function` with string arguments in a fresh interpreter; `fds` are inherited."""
    order = {
        "parent": os.getpid(),
        "path": [os.path.abspath(p) for p in sys.path],  # noqa: PTH100 - '' is the working folder
        "entry": entry,
        "arguments": arguments,
    }

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(order)],
            pass_fds=fds,
            env=dict(os.environ if environment is None else environment),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a plug-in prints must not spoil the driver's JSON on stdout
        )

    return _launcher().call(start)


class _Launcher:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self._orders: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future]] = (  # type: ignore[type-arg]
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name="tokenmill-launcher", daemon=True).start()

    def call(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        answer: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((start, answer))
        return answer.result()

    def _run(self) -> None:
        while True:
            start, answer = self._orders.get()
            try:
                answer.set_result(start())
            except OSError as error:  # no memory, no processes left: the caller's to handle
                answer.set_exception(error)


_lock = threading.Lock()
_current: _Launcher | None = None


def _launcher() -> _Launcher:
    global _current
    with _lock:
        if _current is None or _current.pid != os.getpid():
            _current = _Launcher()
        return _current
