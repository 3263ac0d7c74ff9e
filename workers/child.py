"""One decode child, the worker's side: its fork server, its limits, its queue, clock and credit."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Window
from tokenmill.workers.faults import Fault
from tokenmill.workers.forkserver import ANSWER, FORK, REAP
from tokenmill.workers.launch import launch
from tokenmill.workers.wire import BadMessage, Hangup, Packed, Wire, send_packed

GIB, MIB = 1 << 30, 1 << 20
_SECRET = re.compile(r"^AWS_|TOKEN(?!IZ|MILL)|SECRET|PASSW|CREDENTIAL|KEY$", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildLimits:
    """Seconds and bytes that one child may take."""

    progress: float = 30.0  # without a new window
    total: float = 300.0  # for one sample, plus total_per_mib and total_per_media_second
    total_per_mib: float = 10.0  # of the sample's fields
    total_per_media_second: float = 10.0
    cpu: int = 7200  # a backstop for when the worker cannot look after its children
    memory: int = 4 * GIB  # address space
    file: int = GIB  # the largest file or window that a child can write
    credit: int = 256 * MIB  # of windows not yet taken over by the worker
    ahead: int = 8  # samples sent ahead of the one in work
    ahead_bytes: int = 64 * MIB


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without credentials, and with one thread per numeric library: children are many."""
    kept = {k: v for k, v in environment.items() if not _SECRET.search(k)}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class ForkServerGone(Exception):
    """The fork server died, and its children with it: the task must be run again."""


class ForkServer:
    """Makes and reaps children; thread-safe. Raises ForkServerGone where its process is dead."""

    def __init__(self, preload: tuple[str, ...] = ()) -> None:
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = launch(
                "tokenmill.workers.forkserver:main",
                str(theirs.fileno()),
                *preload,
                fds=(theirs.fileno(),),
                environment=clean_environment(os.environ),
            )
        self._sock = ours

    def fork(self) -> tuple[int, socket.socket]:
        """A new child's pid and the worker's end of its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            try:
                socket.send_fds(self._sock, [FORK], [theirs.fileno()])
                return self._answer(), ours
            except OSError as error:
                raise self._gone() from error

    def reap(self, pid: int) -> int:
        """The exit code of a child that is dead or dying; negative: the signal that killed it."""
        with self._lock:
            try:
                self._sock.send(REAP + ANSWER.pack(pid), socket.MSG_NOSIGNAL)
                return os.waitstatus_to_exitcode(self._answer())
            except OSError as error:
                raise self._gone() from error

    def close(self) -> None:
        self._sock.close()
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def _gone(self) -> ForkServerGone:
        return ForkServerGone(f"the fork server is gone (exit code {self.process.wait()})")

    def _answer(self) -> int:
        raw = self._sock.recv(ANSWER.size)
        if not raw:
            raise self._gone()
        number: int = ANSWER.unpack(raw)[0]
        return number


@dataclass(eq=False)
class Job(Generic[T]):
    token: T
    message: Packed
    total: float
    inbox: deque[Window | Fault | None] = field(default_factory=deque)  # None: done
    sizes: deque[int] = field(default_factory=deque)  # bytes of the windows in the inbox
    child: Child[T] | None = None


class Child(Generic[T]):
    """One child: its queue, its clock, its credit."""

    def __init__(self, server: ForkServer, preparer: bytes, limits: ChildLimits) -> None:
        self._limits = limits
        self.queue: deque[Job[T]] = deque()
        self.queued = 0  # bytes
        self.pid, sock = server.fork()
        self.wire = Wire(sock)
        self._server = server
        self._owed = 0
        self._heard = self._started = 0.0
        self._blocked: float | None = None
        self._dead = False
        self._start(preparer)

    def fileno(self) -> int:
        return self.wire.fileno()

    def _start(self, preparer: bytes) -> None:
        limits = self._limits
        self.wire.sock.settimeout(60.0)
        try:
            names = ("credit", "cpu", "memory", "file")
            self.wire.send(b"s", (preparer, {n: getattr(limits, n) for n in names}))
            message = self.wire.receive()
        except (Hangup, TimeoutError):
            message = None
        self.wire.sock.settimeout(None)
        if message is None or message[0] != b"r":
            why = str(message[1]) if message else f"it died at once ({self.kill()})"
            raise TokenizerError(
                "a decode child cannot start", where="prepare", why=why,
                remedy="the preparer and all that it needs must be importable by name",
            )  # fmt: skip

    def offer(self, job: Job[T], now: float) -> bool:
        """Send a sample ahead, unless this child has enough or its socket is full."""
        size = job.message.size
        if self.queue and self.queued + size > self._limits.ahead_bytes:
            return False
        if send_packed(self.wire.sock, job.message, wait=False) is None:
            return False
        if not self.queue:
            self._heard = self._started = now
        job.child = self
        self.queue.append(job)
        self.queued += size
        return True

    def insist(self, job: Job[T]) -> None:
        """Send a sample that an earlier child had room for."""
        try:
            while not self.offer(job, time.monotonic()):
                time.sleep(0.001)  # it reads as soon as it runs: only its socket was full
        except Hangup:  # dead on one of the samples before: heard next, and replaced in turn
            job.child = self
            self.queue.append(job)
            self.queued += job.message.size

    def hear(self, now: float) -> bool:
        """Take one message into its job's inbox; False where there is none.

        Raises Hangup where the child is dead, BadMessage where it must be killed.
        """
        message = self.wire.receive(wait=False)
        if message is None:
            return False
        tag, payload, size = message
        if not self.queue:
            raise BadMessage("a message without a sample")
        self._heard = now
        job = self.queue[0]
        if tag == b"b":
            self._blocked = now
        elif tag == b"w":
            job.inbox.append(self._window(job, payload))
            job.sizes.append(size)
        elif tag == b"d":
            job.inbox.append(None)
            self._next(now)
        elif tag == b"f":
            reason, text, error, unexpected = payload
            job.inbox.append(
                Fault(
                    reason=str(reason), message=str(text), stage="prepare", error=str(error),
                    unexpected=bool(unexpected),
                )
            )  # fmt: skip
            self._next(now)
        return True

    def _window(self, job: Job[T], payload: Any) -> Window:
        try:
            arrays, index, last, overlap, valid, cost, bucket, meta = payload
            numbers = (index, overlap, cost, 0 if valid is None else valid)
            hash(bucket)
            duration = float(meta.get("duration", 0))
        except (TypeError, ValueError, AttributeError) as error:
            raise BadMessage(str(error)) from None
        if not isinstance(arrays, dict) or any(type(n) is not int for n in numbers):
            raise BadMessage("a window that is none")
        job.total = max(
            job.total, self._limits.total + self._limits.total_per_media_second * duration
        )
        return Window(
            arrays=arrays, index=index, last=last, overlap=overlap, valid=valid, cost=cost,
            bucket=bucket, meta=meta,
        )  # fmt: skip

    def _next(self, now: float) -> None:
        self.queued -= self.queue.popleft().message.size
        self._heard = self._started = now

    def took(self, size: int, now: float) -> None:
        """The worker has taken over a window of `size` bytes: credit goes back in a few packets,
        never one per window, so that unread ones cannot fill the socket."""
        self._owed += size
        self.pay(now)

    def pay(self, now: float) -> None:
        if self._dead:
            return
        if self._owed and (self._blocked is not None or self._owed * 4 >= self._limits.credit):
            with suppress(Hangup):  # dead: noticed when it is heard next
                if self.wire.send(b"a", self._owed, wait=False) is None:
                    return
            self._owed = 0
            if self._blocked is not None:
                self._started += now - self._blocked
                self._heard, self._blocked = now, None

    def deadline(self) -> float | None:
        """When its time is up; None while it has nothing to do or waits for credit."""
        if not self.queue or self._blocked is not None:
            return None
        return min(self._heard + self._limits.progress, self._started + self.queue[0].total)

    def kill(self) -> int:
        """SIGKILL to the child and what it started, reap it; its exit code."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        return self.bury()

    def bury(self) -> int:
        """The exit code of a child that is dead or dying."""
        self._dead = True
        self.wire.sock.close()
        return self._server.reap(self.pid)


def _told(payload: Any) -> Fault:
    """The verdict that a child gave. Raises BadMessage."""
    try:
        reason, text, error, unexpected = payload
    except (TypeError, ValueError) as wrong:
        raise BadMessage(str(wrong)) from None
    return Fault(
        reason=str(reason),
        message=str(text),
        stage="prepare",
        error=str(error),
        unexpected=bool(unexpected),
    )
