"""The fork server of decode children, and the child's own loop. Runs without credentials.

The server is single-threaded, has imported what children need, forks one per request (0.01 s,
against 1.0 to 1.7 s for a spawn with torch) and reaps them. Server and children die with their
parent, even while spinning in native code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import resource
import signal
import socket
import struct
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.schemas.tokenizer import Preparer, Window
from tokenmill.workers.faults import sample_fault
from tokenmill.workers.launch import die_with_parent
from tokenmill.workers.wire import Hangup, Wire

FORK, REAP = b"F", b"R"
ANSWER = struct.Struct("<i")


def main(control: str, *preload: str) -> None:
    """Serve `FORK` (with the child's socket) and `REAP pid` until the worker hangs up."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the worker decides when we end
        signal.signal(number, signal.SIG_IGN)
    for name in preload:
        with contextlib.suppress(ImportError):  # the child will say what is missing
            importlib.import_module(name)
    server = socket.socket(fileno=int(control))
    me = os.getpid()
    while True:
        request, fds, *_ = socket.recv_fds(server, 64, 1)
        if not request:
            os._exit(0)
        if request[:1] == FORK:
            answer = os.fork()
            if answer == 0:
                server.close()
                die_with_parent(me)
                _child(socket.socket(fileno=fds[0]))
            os.close(fds[0])
        else:
            _, answer = os.waitpid(ANSWER.unpack(request[1:])[0], 0)
        server.send(ANSWER.pack(answer))


def _child(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # a child that eats memory should be the kernel's first choice, not its worker
        Path("/proc/self/oom_score_adj").write_text("500")
    os.setpgid(0, 0)  # what a decoder starts is killed with it
    code = 0
    try:
        _Child(Wire(sock)).run()
    except Hangup:
        pass
    except BaseException:  # noqa: BLE001 - nothing may return into the server's loop
        code = 1
    os._exit(code)


class _Child:
    """Setup, then samples in the order sent; windows go out as far as the credit reaches."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._samples: deque[Any] = deque()  # sent ahead
        self._in_flight = 0
        self._credit = 0
        self._cpu = 0

    def run(self) -> None:
        message = self._wire.receive()
        assert message is not None
        try:
            preparer = self._set_up(*message[1])
        except Exception as error:  # noqa: BLE001 - told to the worker, which raises it
            self._wire.send(b"x", f"{type(error).__name__}: {error}")
            return
        self._wire.send(b"r")
        while True:
            while not self._samples:
                self._take()
            self._prepare(preparer, *self._samples.popleft())

    def _set_up(self, pickled: bytes, limits: dict[str, int]) -> Preparer:
        self._credit = limits["credit"]
        self._cpu = limits["cpu"]
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory"],) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"],) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        preparer: Preparer = pickle.loads(pickled)  # noqa: S301 - our own worker's bytes
        return preparer

    def _prepare(self, preparer: Preparer, fields: dict[str, Any], seed: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + self._cpu
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
        try:
            for window in preparer.prepare(fields, np.random.default_rng(seed)):
                self._send(window)
        except Hangup:
            raise
        except Exception as error:  # noqa: BLE001 - the sample boundary: its verdict
            fault = sample_fault(error, "prepare")
            del error  # with its frames, and what they hold of the sample's memory
            self._wire.send(b"f", (fault.reason, fault.message, fault.error, fault.unexpected))
        else:
            self._wire.send(b"d")

    def _send(self, window: Window) -> None:
        size = sum(getattr(a, "nbytes", 0) for a in window.arrays.values())
        told = False
        while self._in_flight and self._in_flight + size > self._credit:
            if not self._take(wait=told) and not told:
                self._wire.send(b"b")  # the worker stops the clock
                told = True
        sent = self._wire.send(
            b"w",
            (
                dict(window.arrays),
                int(window.index),
                bool(window.last),
                int(window.overlap),
                None if window.valid is None else int(window.valid),
                int(window.cost),
                _plain(tuple(window.bucket)),
                dict(window.meta),
            ),
        )
        self._in_flight += sent or 0

    def _take(self, wait: bool = True) -> bool:
        message = self._wire.receive(wait=wait)
        if message is None:
            return False
        tag, payload, _ = message
        if tag == b"a":
            self._in_flight -= payload
        else:
            self._samples.append(payload)
        return True


def _plain(value: Any) -> Any:
    """Shapes often hold numpy integers: as Python's own they can be a bucket on the other side."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value
