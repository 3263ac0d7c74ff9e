"""The encode loop: from a unit's blocks to rows, by whole batches (text) or by windows (media).

One batch is in native code at a time (`Gate`), its sample ids on the in-flight page. Only a
SampleError of `encode` or `join` is a sample's verdict; out of memory halves *that* batch;
anything else escapes and stops the run.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.tokenizer import EngineMismatch, FlatTokenizer
from tokenmill.schemas.work import Task
from tokenmill.workers.faults import Fault, sample_fault
from tokenmill.workers.inflight import InFlightPage
from tokenmill.workers.reading import Block
from tokenmill.workers.rows import RowSink, judged

# One call of a text engine takes no more: what a call holds stays bounded whatever a source batches
CALL_BYTES = 8 << 20

T = TypeVar("T")
R = TypeVar("R")


class Restart(Exception):
    """The engine was changed under a task that has rows of the old one: begin it anew."""


class Stopped(Exception):
    """The worker is closing."""


class Gate:
    """One batch at a time in native code; measures how long the encoder starved.

    patience: seconds after which a batch that has not come back kills this process, 0 never. The
    timer is the kernel's: native code that holds the GIL for ever cannot stop it.
    """

    def __init__(self, page: InFlightPage | None, *, patience: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._page = page
        self._patience = patience
        if patience:
            # the stacks of all threads to stderr, then death
            faulthandler.register(signal.SIGALRM, chain=True)
        self._free_since = time.perf_counter()
        self.epoch = 0  # raised when the tokenizer changes its engine
        self.stopping = False

    @contextmanager
    def encoding(self, run: TaskRun, samples: Sequence[bytes]) -> Iterator[None]:
        """Raises Restart where rows of `run` were made by an engine now found wrong."""
        with self._lock:
            began = time.perf_counter()
            run.wait += began - max(self._free_since, run.began)
            self._check(run)
            try:
                with self._watched(run, samples):
                    yield
            except EngineMismatch:
                self.epoch += 1
                raise Restart from None
            finally:
                self._free_since = time.perf_counter()
                run.encode += self._free_since - began

    @contextmanager
    def preparing(self, run: TaskRun, sample: bytes) -> Iterator[None]:
        """One window is prepared in this process: watched as a batch is, on another clock.

        Raises Restart and Stopped.
        """
        with self._lock:
            self._check(run)
            began = time.perf_counter()
            try:
                with self._watched(run, [sample]):
                    yield
            finally:
                run.prepare += time.perf_counter() - began

    def _check(self, run: TaskRun) -> None:
        if self.stopping:
            raise Stopped
        if run.epoch != self.epoch:
            raise Restart

    @contextmanager
    def _watched(self, run: TaskRun, samples: Sequence[bytes]) -> Iterator[None]:
        with ExitStack() as stack:
            if self._page is not None:
                stack.enter_context(self._page.holding(run.unit, samples))
            if self._patience:
                signal.setitimer(signal.ITIMER_REAL, self._patience)
                stack.callback(signal.setitimer, signal.ITIMER_REAL, 0.0)
            yield


class TaskRun:
    """One pass over a task: its clocks, its notes, and how it meets the tokenizer."""

    def __init__(self, task: Task, gate: Gate) -> None:
        self.task = task
        self.unit = task.unit.id
        self.gate = gate
        self.epoch = gate.epoch
        self.began = time.perf_counter()
        self.encode = self.wait = self.prepare = 0.0
        self._halved = 0
        self.batches, self.filled = 0, 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._halved:
            return ()
        return (f"out of device memory: {self._halved} batches were halved",)

    def call(
        self,
        stage: str,
        ids: Sequence[bytes],
        items: Sequence[T],
        native: Callable[[Sequence[T]], R],
    ) -> list[tuple[int, R | Fault]]:
        """`native` over all items: [(how many items, its answer or their one sample's fault)].

        A SampleError of a batch is tried again one by one, to find whose it is.
        """
        try:
            with self.gate.encoding(self, ids):
                return [(len(items), native(items))]
        except SampleError as error:
            if len(items) == 1:
                return [(1, sample_fault(error, stage))]
            cut = 1
        except Exception as error:
            # torch.cuda's, by name: torch is not imported; or the machine's own memory
            if type(error).__name__ != "OutOfMemoryError" and not isinstance(error, MemoryError):
                raise
            self._halved += 1
            if len(items) == 1:
                return [(1, _no_memory(error, stage))]
            cut = len(items) // 2
        parts = [slice(i, i + cut) for i in range(0, len(items), cut)]
        return [r for p in parts for r in self.call(stage, ids[p], items[p], native)]


def _no_memory(error: Exception, stage: str) -> Fault:
    fault = sample_fault(error, stage)
    return Fault(
        reason="out-of-memory",
        message=fault.message,
        stage=stage,
        error=fault.error,
        unexpected=True,  # a device that is too small shows as a storm, not as bad samples
    )


def encode_flat(
    blocks: Iterator[Block],
    *,
    role: str,
    tokenizer: FlatTokenizer,
    run: TaskRun,
    sink: RowSink,
    required: bool,
    dtype: str,
) -> None:
    """Text: whole blocks in, one flat buffer out, no object per sample."""
    for block in blocks:
        bad = judged(block, run.task, required=required)
        values = block.columns[role]
        good: Sequence[int] = range(len(block))
        ids = block.ids
        if bad:
            good = [i for i in good if i not in bad]
            ids = [ids[i] for i in good]
            values = [values[i] for i in good]
        flat, lengths, faults = _flat_block(ids, values, tokenizer, run, dtype)
        if bad or faults:
            bad |= {good[at]: fault for at, fault in faults.items()}
            spread = np.zeros(len(block), dtype=np.int64)
            spread[np.asarray(good, dtype=np.int64)] = lengths
            lengths = spread
        sink.append(block, bad, flat, lengths)


def _flat_block(
    ids: Sequence[bytes],
    values: Sequence[Any],
    tokenizer: FlatTokenizer,
    run: TaskRun,
    dtype: str,
) -> tuple[NDArray[Any], NDArray[np.int64], dict[int, Fault]]:
    """Flat ids, lengths, and the faults by position; calls are cut by size and at suspects."""
    flats: list[NDArray[Any]] = []
    lengths: list[NDArray[np.int64]] = []
    faults: dict[int, Fault] = {}
    at = 0
    for part in _calls(ids, values, run.task.isolate):
        for count, made in run.call("encode", ids[part], values[part], tokenizer.encode_flat):
            if isinstance(made, Fault):
                faults[at] = made
                lengths.append(np.zeros(1, dtype=np.int64))
            else:
                flats.append(made.values)
                lengths.append(np.diff(made.offsets))
                for place, error in made.faults.items():
                    faults[at + place] = sample_fault(error, "encode")
            at += count
    if len(flats) == len(lengths) == 1:
        return flats[0], lengths[0], faults
    return (
        np.concatenate(flats) if flats else np.zeros(0, dtype=dtype),
        np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64),
        faults,
    )


def _calls(
    ids: Sequence[bytes], values: Sequence[Any], isolate: frozenset[bytes]
) -> Iterator[slice]:
    """Slices of one call each: bounded in bytes; a suspect of an earlier death goes alone."""
    if not ids:
        return
    alone = not isolate.isdisjoint(ids)
    if not alone and sum(map(len, values)) <= CALL_BYTES:
        yield slice(0, len(ids))
        return
    start = size = 0
    for i, (sample, value) in enumerate(zip(ids, values, strict=True)):
        suspect = sample in isolate
        if i > start and (suspect or ids[i - 1] in isolate or size + len(value) > CALL_BYTES):
            yield slice(start, i)
            start, size = i, 0
        size += len(value)
    yield slice(start, len(ids))
