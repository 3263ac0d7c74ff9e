"""Reads the committed tokens of a parent stream, row for row, in place of the source.

The child enumerates what its parent enumerated: the same sample ids, keys and places in the same
order, so both are aligned. Where the parent has no tokens the child has none either: absent stays
absent, and a quarantined sample is quarantined again as `parent-quarantined` (G1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tokenmill.schemas.errors import CorruptStore, SampleError
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.schemas.shard import Verdict
from tokenmill.schemas.tokenizer import Descriptor, parent_mismatch
from tokenmill.schemas.work import Cell, ParentRows, Quarantine, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.alignment import FileRows, Piece
from tokenmill.store.gather import read_piece
from tokenmill.store.rows import Batch, Column
from tokenmill.store.shards import ShardReader
from tokenmill.workers.reading import Block


class ParentReader:
    """One pass over the parent's rows of a unit; stands in for a UnitReader.

    role: what the tokenizer calls the parent's tokens. Raises CorruptStore where a shard is not
    what the ledger said of it, StoreUnavailable; ValueError where it is not of `child`'s kind.
    """

    def __init__(
        self, access: Access, unit: WorkUnit, parent: ParentRows, role: str, child: Descriptor
    ) -> None:
        if len(parent.spans) != len(unit.spans):
            raise RuntimeError(f"{len(parent.spans)} parent spans for {len(unit.spans)}")
        self._access = access
        self._unit = unit
        self._parent = parent
        self._role = role
        self._child = child
        self._read = 0
        self.input_faults: list[Quarantine] = []  # the parent's task has recorded them
        self.seconds = 0.0
        self.bytes_read = 0

    @property
    def enumerated(self) -> int:
        return self._read

    @property
    def cells(self) -> tuple[Cell, ...]:
        """One per span, as the parent has them. Raises RuntimeError where rows were left out."""
        counts = [rows for _, rows in self._parent.spans]
        if sum(counts) != self._read:
            raise RuntimeError(f"{self._read} rows of the parent read, and it has {sum(counts)}")
        firsts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        return tuple(
            Cell(span=span, first_row=first, rows=rows)
            for span, first, rows in zip(self._unit.spans, firsts, counts, strict=False)
        )

    def blocks(self) -> Iterator[Block]:
        """All samples, in order."""
        self._check_files()
        for start, stop in _joined(self._parent.spans):
            batches = read_piece(self._access, self._piece(start, stop), frozenset())
            while True:
                before = time.perf_counter()
                batch = next(batches, None)
                block = None if batch is None else self._block(batch)
                self.seconds += time.perf_counter() - before
                if block is None:
                    break
                self._read += len(block)
                yield block

    def _check_files(self) -> None:
        """G7: a shard says itself what its ids mean."""
        for file in self._parent.files:
            with ShardReader(self._access, file.path) as reader:
                meta = reader.meta
            if (meta.space, meta.recipe) != (self._parent.space, self._parent.recipe):
                raise CorruptStore(
                    "a shard of the parent stream is of another recipe than the ledger says",
                    where=self._access.full(file.path),
                    why=f"it says {meta.recipe[:12]}, the ledger {self._parent.recipe[:12]}",
                    remedy="`tokenmill verify STORE` says how far the damage goes",
                )
            why = parent_mismatch(self._child, meta.axes, meta.codebook_sizes, meta.space)
            if why is not None:  # the plan has looked: it must not come to this
                raise ValueError(why)

    def _piece(self, start: int, stop: int) -> Piece:
        parent = self._parent
        files = tuple(
            FileRows(
                pipeline=self._unit.pipeline,
                stream=parent.stream,
                unit=parent.unit,
                path=file.path,
                first_row=file.first_row,
                rows=file.rows,
                order_hash=b"",
                space=parent.space,
                recipe=parent.recipe,
                tokenizer="",
            )
            for file in parent.files
            if file.first_row < stop and start < file.first_row + file.rows
        )
        return Piece(
            pipeline=self._unit.pipeline,
            unit=parent.unit,
            start=start,
            stop=stop,
            files={parent.stream: files},
        )

    def _block(self, batch: Batch) -> Block:
        column = batch[self._parent.stream]
        self.bytes_read += column.values.nbytes
        ids = batch.ids
        columns: Mapping[str, Sequence[Any]] = {self._role: self._values(column)}
        return Block(
            ids=[ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)],
            keys=batch.keys,
            sources=batch.sources,
            columns=columns,
            spans=batch.spans,
        )

    def _values(self, column: Column) -> list[Any]:
        """Per sample its ids with their axes, None where absent, or why there are none."""
        values: list[Any] = []
        shapes = None if column.shapes is None else column.shapes.tolist()
        for i, ((start, stop), code) in enumerate(
            zip(pairwise(column.bounds), column.codes, strict=True)
        ):
            if code == Verdict.TOKENS:
                ids = column.values[start:stop]
                values.append(ids if shapes is None else ids.reshape(shapes[i]))
            elif code == Verdict.ABSENT:
                values.append(None)
            else:
                values.append(_quarantined(self._parent.stream))
        return values


def _quarantined(stream: str) -> SampleError:
    return SampleError(
        "parent-quarantined",
        f"the stream {stream!r}, whose tokens this one reads, has none of this sample",
        remedy=f"see why it is in quarantine there: tokenmill quarantine STORE, stream {stream}",
    )


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first row, rows) of consecutive spans as ranges [start, stop), neighbours as one."""
    ranges: list[tuple[int, int]] = []
    for first, rows in spans:
        if not rows:
            continue
        if ranges and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], first + rows)
        else:
            ranges.append((first, first + rows))
    return ranges
