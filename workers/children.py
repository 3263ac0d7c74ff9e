"""Killable decode children, the worker's side: samples in, windows out in sample order.

Each child has a queue of samples sent ahead and a credit of bytes in flight. Its clock is one of
*progress*: no new window for 30 s, plus a total that a preparer can widen by declaring the media's
length in a window's `meta["duration"]` (seconds); a plain wall clock kills honest hour-long videos.
A child that waits for credit has its clock stopped. Samples of one child are prepared in order, so
a death is the fault of the first unfinished one; the rest go to the child that replaces it.
"""

from __future__ import annotations

import os
import pickle
import re
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Preparer, Window
from tokenmill.workers.faults import Fault
from tokenmill.workers.forkserver import ANSWER, FORK, REAP
from tokenmill.workers.launch import launch
from tokenmill.workers.wire import BadMessage, Hangup, Packed, Wire, pack, send_packed

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


class ForkServer:
    """Makes and reaps children; thread-safe."""

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
            socket.send_fds(self._sock, [FORK], [theirs.fileno()])
            return self._answer(), ours

    def reap(self, pid: int) -> int:
        """The exit code of a child that is dead or dying; negative: the signal that killed it."""
        with self._lock:
            self._sock.send(REAP + ANSWER.pack(pid))
            return os.waitstatus_to_exitcode(self._answer())

    def close(self) -> None:
        self._sock.close()
        self.process.wait()

    def _answer(self) -> int:
        raw = self._sock.recv(ANSWER.size)
        if not raw:
            raise RuntimeError(f"the fork server is gone (exit code {self.process.wait()})")
        number: int = ANSWER.unpack(raw)[0]
        return number


@dataclass(eq=False)
class _Job(Generic[T]):
    token: T
    message: Packed
    total: float
    inbox: deque[Window | Fault | None] = field(default_factory=deque)  # None: done
    sizes: deque[int] = field(default_factory=deque)  # bytes of the windows in the inbox
    child: _Handle[T] | None = None


class _Handle(Generic[T]):
    """One child: its queue, its clock, its credit."""

    def __init__(self, server: ForkServer, preparer: bytes, limits: ChildLimits) -> None:
        self._limits = limits
        self.queue: deque[_Job[T]] = deque()
        self.queued = 0  # bytes
        self.pid, sock = server.fork()
        self.wire = Wire(sock)
        self._server = server
        self._owed = 0
        self._heard = self._started = 0.0
        self._blocked: float | None = None
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

    def offer(self, job: _Job[T], now: float) -> bool:
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

    def insist(self, job: _Job[T]) -> None:
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

    def _window(self, job: _Job[T], payload: Any) -> Window:
        try:
            arrays, index, last, overlap, valid, cost, bucket, meta = payload
            duration = float(meta.get("duration", 0))
        except (TypeError, ValueError, AttributeError) as error:
            raise BadMessage(str(error)) from None
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
        self.wire.sock.close()
        return self._server.reap(self.pid)

    def bury(self) -> int:
        """The exit code of a child that hung up: its own end, not our SIGKILL."""
        self.wire.sock.close()
        return self._server.reap(self.pid)


class ChildPool(Generic[T]):
    """`count` children of one preparer. One task at a time; not thread-safe."""

    def __init__(
        self, server: ForkServer, preparer: Preparer, *, count: int, limits: ChildLimits
    ) -> None:
        """Raises TokenizerError where the preparer cannot be pickled."""
        self._server = server
        self._limits = limits
        self._count = count
        self._children: list[_Handle[T]] = []
        self.waited = 0.0  # seconds that the worker waited for windows
        try:
            self._preparer = pickle.dumps(preparer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise TokenizerError(
                f"the preparer {type(preparer).__name__} cannot be pickled",
                why=str(error),
                remedy="prepare runs in a child: keep weights and handles out of the preparer",
            ) from None

    def windows(
        self, samples: Iterator[tuple[T, Mapping[str, Any], int]]
    ) -> Iterator[tuple[T, Window | Fault | None]]:
        """For every (token, fields, seed), in order: its windows, then None or its fault."""
        jobs: deque[_Job[T]] = deque()  # all unfinished, in sample order
        spare: _Job[T] | None = None  # read, but no child had room for it
        more = True
        try:
            while more or jobs or spare:
                while more or spare:
                    spare = spare or self._next_job(samples)
                    if spare is None:
                        more = False
                    elif self._assign(spare):
                        jobs.append(spare)
                        spare = None
                    else:
                        break
                if jobs:
                    yield from self._events(jobs)
        finally:
            if jobs:  # abandoned half-way: what the children still do is nobody's
                self.close()

    def close(self) -> None:
        for child in self._children:
            child.kill()
        self._children.clear()

    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def _next_job(self, samples: Iterator[tuple[T, Mapping[str, Any], int]]) -> _Job[T] | None:
        for token, fields, seed in samples:
            message = pack(b"p", (dict(fields), seed))
            total = self._limits.total + self._limits.total_per_mib * message.size / MIB
            return _Job(token, message, total)
        return None

    def _assign(self, job: _Job[T]) -> bool:
        now = time.monotonic()
        if len(self._children) < self._count and all(c.queue for c in self._children):
            self._children.append(_Handle(self._server, self._preparer, self._limits))
        for child in sorted(self._children, key=lambda c: len(c.queue)):
            with suppress(Hangup):  # dead: noticed when it is heard next
                if len(child.queue) <= self._limits.ahead and child.offer(job, now):
                    return True
        return False

    def _events(self, jobs: deque[_Job[T]]) -> Iterator[tuple[T, Window | Fault | None]]:
        """What has come of the first job; waits until something has."""
        first = jobs[0]
        self._listen(0.0)
        while not first.inbox:
            before = time.monotonic()
            self._listen(self._patience(before))
            self.waited += time.monotonic() - before
        while first.inbox:
            event = first.inbox.popleft()
            if isinstance(event, Window):
                if first.child:
                    first.child.took(first.sizes.popleft(), time.monotonic())
            else:
                jobs.popleft()
            yield first.token, event

    def _patience(self, now: float) -> float:
        ends = [end for child in self._children if (end := child.deadline()) is not None]
        return max(min(ends, default=now + 1.0) - now, 0.0)

    def _listen(self, patience: float) -> None:
        """Hear all that has been said, then bury the dead and kill those whose time is up."""
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                child.pay(time.monotonic())
                selector.register(child, selectors.EVENT_READ, child)
            said = [key.data for key, _ in selector.select(patience)]
        for child in said:
            try:
                while child.hear(time.monotonic()):
                    pass
            except Hangup:
                self._replace(child, _died(child.bury()))
            except BadMessage as error:
                child.kill()
                self._replace(child, _fault("process-died", f"its child sent nonsense: {error}"))
        now = time.monotonic()
        for child in list(self._children):
            end = child.deadline()
            if end is not None and now >= end and child not in said:
                child.kill()
                self._replace(child, _fault("timeout", "no progress: its decode child was killed"))

    def _replace(self, child: _Handle[T], fault: Fault) -> None:
        self._children.remove(child)
        if not child.queue:
            return  # died idle: nobody's fault, and the next sample makes a new child
        guilty, *rest = child.queue
        guilty.inbox.append(fault)
        guilty.child = None
        if rest:
            fresh: _Handle[T] = _Handle(self._server, self._preparer, self._limits)
            self._children.append(fresh)
            for job in rest:
                fresh.insist(job)


def _died(code: int) -> Fault:
    if code < 0:
        name = signal.Signals(-code).name
        if -code == signal.SIGXCPU:
            return _fault("timeout", "its decode child used up its processor time")
        hint = " (the kernel's out-of-memory killer, perhaps)" if -code == signal.SIGKILL else ""
        return _fault("process-died", f"its decode child was killed by {name}{hint}", name)
    return _fault("process-died", f"its decode child exited with {code}", f"exit {code}")


def _fault(reason: str, message: str, detail: str = "") -> Fault:
    return Fault(
        reason=reason,
        message=message,
        stage="prepare",
        error=f"{reason} {detail}".strip(),
        unexpected=True,
    )
