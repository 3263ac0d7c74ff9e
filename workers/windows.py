"""The window path: samples -> windows -> budgeted batches -> pieces -> joined rows, in order."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.tokenizer import Encoded, OutputSpec, Piece, Preparer, Tokenizer, Window
from tokenmill.workers.batching import Batcher
from tokenmill.workers.carrying import encode_carrying
from tokenmill.workers.children import ChildPool
from tokenmill.workers.encode import TaskRun
from tokenmill.workers.faults import Fault, sample_fault
from tokenmill.workers.reading import Block
from tokenmill.workers.rows import RowSink, judged

ROWS = 256  # written at once, or fewer where they are large
ROW_BYTES = 4 << 20


@dataclass(slots=True, eq=False)
class _Sample:
    """One enumerated sample on its way."""

    number: int
    id: bytes
    key: str
    source: str
    span: str | None
    absent: bool = False
    fault: Fault | None = None
    prepared: bool = False  # no more windows will come
    windows: int = 0
    pieces: list[Piece] = field(default_factory=list)
    encoded: Encoded | None = None

    @property
    def complete(self) -> bool:
        if self.absent or (self.prepared and self.fault):
            return True
        return self.prepared and len(self.pieces) == self.windows


Event = tuple[_Sample, "Window | Fault | None"]
ToPrepare = tuple[_Sample, Mapping[str, Any], int]
SamplePool = ChildPool[_Sample]


def prepared_here(
    samples: Iterator[ToPrepare], preparer: Preparer, run: TaskRun
) -> Iterator[Event]:
    """`prepare` in the worker itself, for what needs no killable child. As ChildPool.windows."""
    for sample, fields, seed in samples:
        windows = _Windows(preparer, fields, seed)
        while True:
            with run.gate.preparing(run, sample.id):
                event = windows.next()
            yield sample, event
            if not isinstance(event, Window):
                break


class _Windows:
    """The windows of one sample one by one, then None or its fault."""

    def __init__(self, preparer: Preparer, fields: Mapping[str, Any], seed: int) -> None:
        self._arguments = (preparer, fields, seed)
        self._windows: Iterator[Window] | None = None

    def next(self) -> Window | Fault | None:
        try:
            if self._windows is None:
                preparer, fields, seed = self._arguments
                self._windows = iter(preparer.prepare(fields, np.random.default_rng(seed)))
            return next(self._windows, None)
        except Exception as error:  # noqa: BLE001 - the sample boundary: its verdict
            return sample_fault(error, "prepare")


def content_seed(recipe: bytes, fields: Mapping[str, Any]) -> int:
    """From content and recipe: the same media get the same ids wherever they lie."""
    digest = hashlib.blake2b(recipe, digest_size=8, person=b"tm-seed")
    for role in sorted(fields):
        raw = _raw(fields[role])
        digest.update(f"{role}:{len(raw)}:".encode())
        digest.update(raw)
    return int.from_bytes(digest.digest(), "little")


def _raw(value: Any) -> bytes:
    """The bytes of a field: of a file or a text, or of media in memory (one-off use)."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, tuple):
        return b"".join(map(_raw, value))
    if isinstance(value, (bytes, bytearray, memoryview, np.ndarray)):
        return bytes(value) if not isinstance(value, np.ndarray) else value.tobytes()
    return repr(value).encode() if isinstance(value, (int, float)) else b""


class WindowPath:
    """One pass over a unit's windows."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        output: OutputSpec,
        run: TaskRun,
        sink: RowSink,
        required: bool,
        recipe: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._output = output
        self._run = run
        self._sink = sink
        self._required = required
        self._recipe = recipe.encode()
        self._rows: deque[_Sample] = deque()  # enumerated and not yet written
        self._carries: dict[int, Any] = {}  # by the sample's number
        self._ready: list[_Sample] = []
        self._ready_bytes = 0
        self._spans = False

    def encode(self, blocks: Iterator[Block], preparer: Preparer | SamplePool) -> None:
        """Every sample of the blocks to one row. `preparer`: children, or one to run here."""
        samples = self._samples(blocks)
        if isinstance(preparer, ChildPool):
            events = preparer.windows(samples)
        else:
            events = prepared_here(samples, preparer, self._run)
        batcher: Batcher[tuple[_Sample, Window]] = Batcher(self._tokenizer.budget)
        for sample, event in events:
            if isinstance(event, Window):
                sample.windows += 1
                for batch in batcher.add(
                    (sample, event), sample=sample.number, bucket=event.bucket, cost=event.cost
                ):
                    self._batch(batch)
            else:
                self._end(sample, event)
            self._collect()
        for batch in batcher.flush():
            self._batch(batch)
        self._collect()
        if self._rows:
            raise RuntimeError(f"{len(self._rows)} samples were left without a verdict")
        self._write()

    def _samples(self, blocks: Iterator[Block]) -> Iterator[ToPrepare]:
        number = 0
        for block in blocks:
            bad = judged(block, self._run.task, required=self._required)
            self._spans |= block.spans is not None
            for i, id_ in enumerate(block.ids):
                sample = _Sample(
                    number,
                    id_,
                    block.keys[i],
                    block.sources[i],
                    block.spans[i] if block.spans else None,
                )
                number += 1
                self._rows.append(sample)
                if i in bad:
                    sample.fault, sample.prepared = bad[i], True
                    sample.absent = bad[i] is None
                    continue
                fields = {role: values[i] for role, values in block.columns.items()}
                yield sample, fields, content_seed(self._recipe, fields)

    def _end(self, sample: _Sample, fault: Fault | None) -> None:
        sample.prepared = True
        sample.fault = sample.fault or fault
        if not sample.windows and sample.fault is None:
            sample.fault = Fault(
                reason="empty",
                message="prepare made no window of it",
                stage="prepare",
                error="empty",
            )

    def _batch(self, batch: Sequence[tuple[_Sample, Window]]) -> None:
        """Encode one batch; suspects of an earlier death leave their place in it and go alone."""
        isolate = self._run.task.isolate
        budget = self._tokenizer.budget
        self._run.batches += 1
        cost = sum(int(window.cost) for _, window in batch)
        self._run.filled += max(cost / max(budget.cost, 1), len(batch) / max(budget.windows, 1))
        groups = [[held] for held in batch if held[0].id in isolate]
        together = [held for held in batch if held[0].id not in isolate]
        for group in [together, *groups] if together else groups:
            self._group(group)

    def _group(self, group: Sequence[tuple[_Sample, Window]]) -> None:
        at = 0
        ids = [sample.id for sample, _ in group]
        windows = [(sample.number, window) for sample, window in group]

        def encode(part: Sequence[tuple[int, Window]]) -> list[Piece]:
            return encode_carrying(self._tokenizer.encode, part, self._carries)

        for count, made in self._run.call("encode", ids, windows, encode):
            part = group[at : at + count]
            at += count
            if isinstance(made, Fault):
                part[0][0].fault = part[0][0].fault or made
                part[0][0].pieces.append(Piece(ids={}))  # keeps the count; never joined
                continue
            for (sample, _), piece in zip(part, made, strict=True):
                sample.pieces.append(piece)

    def _collect(self) -> None:
        """Join and write, in enumeration order, what is complete."""
        while self._rows and self._rows[0].complete:
            sample = self._rows.popleft()
            if not sample.absent and sample.fault is None:
                self._join(sample)
            sample.pieces.clear()
            self._carries.pop(sample.number, None)
            self._ready.append(sample)
            if sample.encoded is not None:
                self._ready_bytes += sample.encoded.ids.nbytes
            if len(self._ready) >= ROWS or self._ready_bytes >= ROW_BYTES:
                self._write()

    def _join(self, sample: _Sample) -> None:
        def join(one: Sequence[list[Piece]]) -> Encoded:
            return self._tokenizer.join(one[0])[self._output.name]

        [(_, made)] = self._run.call("join", [sample.id], [sample.pieces], join)
        if isinstance(made, Fault):
            sample.fault = made
        else:
            sample.encoded = made

    def _write(self) -> None:
        rows, self._ready, self._ready_bytes = self._ready, [], 0
        if not rows:
            return
        block = Block(
            ids=[s.id for s in rows],
            keys=[s.key for s in rows],
            sources=[s.source for s in rows],
            columns={},
            spans=[s.span for s in rows] if self._spans else None,
        )
        bad = {i: s.fault for i, s in enumerate(rows) if s.encoded is None}
        found = [s.encoded for s in rows]
        dims = len(self._output.axes)
        shapes = np.zeros((len(rows), dims), dtype=np.int32)
        for i, encoded in enumerate(found):
            if encoded is not None:
                shapes[i] = _checked_shape(encoded, self._output)
        flat = [np.asarray(e.ids).reshape(-1) for e in found if e is not None]
        self._sink.append(
            block,
            bad,
            np.concatenate(flat) if flat else np.zeros(0, dtype=self._output.dtype),
            np.array([0 if e is None else e.ids.size for e in found], dtype=np.int64),
            shapes=shapes if dims > 1 else None,
            # always there, so that one file has one layout: the whole first axis where not given
            n_valid=np.array([0 if e is None else _valid(e) for e in found], dtype=np.int32),
            media_valid=_media_valid(found) if self._output.pads else None,
        )


def _valid(encoded: Encoded) -> int:
    return encoded.shape[0] if encoded.n_valid is None else encoded.n_valid


def _media_valid(found: Sequence[Encoded | None]) -> NDArray[np.int64]:
    """Raises ValueError: the plug-in broke its descriptor."""
    counts = [0 if e is None else e.media_valid for e in found]
    if None in counts:
        raise ValueError("an output that pads gave an encoding without media_valid")
    return np.array(counts, dtype=np.int64)


def _checked_shape(encoded: Encoded, output: OutputSpec) -> tuple[int, ...]:
    """Raises ValueError: the plug-in broke its descriptor."""
    if len(encoded.shape) != len(output.axes) or math.prod(encoded.shape) != encoded.ids.size:
        raise ValueError(
            f"output {output.name!r}: {encoded.ids.size} ids of shape {encoded.shape}, "
            f"but its axes are {output.axes}"
        )
    return encoded.shape
