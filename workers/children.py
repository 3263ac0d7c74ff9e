"""Killable decode children, the worker's side: samples in, windows out in sample order.

Each child has a queue of samples sent ahead and a credit of bytes in flight. Its clock is one of
*progress*: no new window for 30 s, plus a total that a preparer can widen by declaring the media's
length in a window's `meta["duration"]` (seconds); a plain wall clock kills honest hour-long videos.
A child that waits for credit has its clock stopped. Samples of one child are prepared in order, so
a death is the fault of the first unfinished one; the rest go to the child that replaces it.
"""

from __future__ import annotations

import pickle
import selectors
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Preparer, Window
from tokenmill.workers.child import MIB, Child, ChildLimits, ForkServer, ForkServerGone, Job
from tokenmill.workers.faults import Fault
from tokenmill.workers.wire import BadMessage, Hangup, pack

T = TypeVar("T")


class ChildPool(Generic[T]):
    """`count` children of one preparer. One task at a time; not thread-safe."""

    def __init__(
        self, server: ForkServer, preparer: Preparer, *, count: int, limits: ChildLimits
    ) -> None:
        """Raises TokenizerError where the preparer cannot be pickled."""
        self.server = server
        self._limits = limits
        self._count = count
        self._children: list[Child[T]] = []
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
        jobs: deque[Job[T]] = deque()  # all unfinished, in sample order
        spare: Job[T] | None = None  # read, but no child had room for it
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
        with suppress(ForkServerGone):  # its children went with it
            for child in self._children:
                child.kill()
        self._children.clear()

    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def _next_job(self, samples: Iterator[tuple[T, Mapping[str, Any], int]]) -> Job[T] | None:
        for token, fields, seed in samples:
            message = pack(b"p", (dict(fields), seed))
            total = self._limits.total + self._limits.total_per_mib * message.size / MIB
            return Job(token, message, total)
        return None

    def _assign(self, job: Job[T]) -> bool:
        now = time.monotonic()
        if len(self._children) < self._count and all(c.queue for c in self._children):
            self._children.append(Child(self.server, self._preparer, self._limits))
        for child in sorted(self._children, key=lambda c: len(c.queue)):
            with suppress(Hangup):  # dead: noticed when it is heard next
                if len(child.queue) <= self._limits.ahead and child.offer(job, now):
                    return True
        return False

    def _events(self, jobs: deque[Job[T]]) -> Iterator[tuple[T, Window | Fault | None]]:
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

    def _replace(self, child: Child[T], fault: Fault) -> None:
        self._children.remove(child)
        if not child.queue:
            return  # died idle: nobody's fault, and the next sample makes a new child
        guilty, *rest = child.queue
        guilty.inbox.append(fault)
        guilty.child = None
        if rest:
            fresh: Child[T] = Child(self.server, self._preparer, self._limits)
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
