"""Reads a unit's samples in order: merges small batches, keeps the cells and input faults."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.samples import SampleBatch, Source, SpanDone, alternatives, values_of
from tokenmill.schemas.work import Cell, Quarantine, WorkUnit

# A call of a text engine costs as much as some ten short samples: `format: text` gives them one
# by one. Small enough that ids and text of a block stay in the processor's cache.
BLOCK_SAMPLES = 1024
BLOCK_BYTES = 2 << 20


@dataclass(slots=True)
class Block:
    """Consecutive samples, perhaps of several batches. columns: role -> one value per sample."""

    ids: Sequence[bytes]
    keys: Sequence[str]
    sources: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    faults: Mapping[int, SampleError] = field(default_factory=dict)
    spans: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class UnitReader:
    """One pass over a unit. fields: tokenizer role -> field of the source, or `a;b`: the first.

    After `blocks` is exhausted: cells, input_faults. `seconds` and `bytes_read` count as it goes.
    """

    def __init__(self, source: Source, unit: WorkUnit, fields: Mapping[str, str]) -> None:
        self._source = source
        self._unit = unit
        self._fields = dict(fields)
        self._rows = [0] * len(unit.spans)
        self._done = 0
        self.input_faults: list[Quarantine] = []
        self.seconds = 0.0
        self.bytes_read = 0

    @property
    def enumerated(self) -> int:
        return sum(self._rows)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """One per span. Raises RuntimeError where the source did not end every span."""
        if self._done != len(self._rows):
            raise RuntimeError(f"the source ended {self._done} of {len(self._rows)} spans")
        cells, first = [], 0
        for span, rows in zip(self._unit.spans, self._rows, strict=True):
            cells.append(Cell(span=span, first_row=first, rows=rows))
            first += rows
        return tuple(cells)

    def blocks(self) -> Iterator[Block]:
        """All samples, in order."""
        waiting: list[Block] = []
        samples = size = 0
        for batch in self._batches():
            waiting.append(self._block(batch))
            samples += len(batch)
            size += batch.bytes_read or sum(
                len(value)
                for values in waiting[-1].columns.values()
                for value in values
                if isinstance(value, (str, bytes))
            )
            if samples >= BLOCK_SAMPLES or size >= BLOCK_BYTES:
                yield _merged(waiting)
                waiting, samples, size = [], 0, 0
        if waiting:
            yield _merged(waiting)

    def _batches(self) -> Iterator[SampleBatch]:
        wanted = (name for field in self._fields.values() for name in alternatives(field))
        names = tuple(dict.fromkeys(wanted))
        events = iter(self._source.read(self._unit.spans, names))
        while True:
            before = time.perf_counter()
            event = next(events, None)
            self.seconds += time.perf_counter() - before
            if event is None:
                return
            if event.span != self._done:
                raise RuntimeError(f"span {event.span} after {self._done}: spans come in order")
            if isinstance(event, SpanDone):
                self._done += 1
                if event.fault is not None:
                    self.input_faults.append(event.fault)
            elif len(event):
                self._rows[event.span] += len(event)
                self.bytes_read += event.bytes_read
                yield event

    def _block(self, batch: SampleBatch) -> Block:
        n = len(batch)
        return Block(
            ids=batch.ids,
            keys=batch.keys,
            sources=[self._unit.spans[batch.span].input.uri] * n,
            columns={role: values_of(batch, field) for role, field in self._fields.items()},
            faults=batch.faults,
            spans=batch.spans,
        )


def _merged(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    faults: dict[int, SampleError] = {}
    at = 0
    for block in blocks:
        faults |= {at + place: fault for place, fault in block.faults.items()}
        at += len(block)
    spans: list[str | None] | None = None
    if any(b.spans is not None for b in blocks):
        spans = [s for b in blocks for s in (b.spans or [None] * len(b))]
    return Block(
        ids=[i for b in blocks for i in b.ids],
        keys=[k for b in blocks for k in b.keys],
        sources=[s for b in blocks for s in b.sources],
        columns={role: [v for b in blocks for v in b.columns[role]] for role in blocks[0].columns},
        faults=faults,
        spans=spans,
    )
