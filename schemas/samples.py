"""Samples on their way from a source to a tokenizer, column by column, and what a source is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.work import Input, Quarantine, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleBatch:
    """Consecutive samples of *one* span, in enumeration order.

    ids: 16 bytes each. keys: what people see, need not be unique. fields: source field name ->
    one value per sample: str, bytes, None where the sample lacks it, or a SampleError for a value
    that could not be read. faults: position -> SampleError for a sample unreadable as a whole
    (every stream quarantines it). spans: "start/end" within the media, for clips and segments.
    """

    span: int  # index into WorkUnit.spans
    ids: Sequence[bytes]
    keys: Sequence[str]
    fields: Mapping[str, Sequence[Any]]
    faults: Mapping[int, SampleError] = field(default_factory=dict)
    spans: Sequence[str | None] | None = None
    bytes_read: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def alternatives(field: str) -> tuple[str, ...]:
    """`jpg;png` in a job file: the first of these that a sample has."""
    return tuple(name.strip() for name in field.split(";") if name.strip())


def values_of(batch: SampleBatch, field: str) -> Sequence[Any]:
    """One value per sample for a field of the job file; None where the sample has none of its
    alternatives."""
    columns = [batch.fields[name] for name in alternatives(field) if name in batch.fields]
    if len(columns) == 1:
        return columns[0]
    rows = zip(*columns, strict=True) if columns else ((),) * len(batch)
    return [next((value for value in row if value is not None), None) for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanDone:
    """Ends a span. `fault`: the input-level quarantine row of an archive that ends early."""

    span: int
    fault: Quarantine | None = None


class Source(Protocol):
    """One format. Stateless but for its configuration; picklable."""

    def list(self) -> Iterator[Input]:
        """The inputs, sorted by URI; reads no content (but for `identity: content`).

        Raises SourceError where the place cannot be listed or matches nothing.
        """
        ...

    def splittable(self, input_: Input) -> bool:
        """Whether spans of `input_` may be shorter than the whole."""
        ...

    def read(
        self, spans: Sequence[Span], fields: Sequence[str]
    ) -> Iterator[SampleBatch | SpanDone]:
        """All samples of the spans, in order; only the named fields are materialised.

        The same samples in the same order whatever `fields` are. Memory is bounded by
        `max_sample_bytes` and the batch size, not by the input. Raises InputChanged where the
        object is not the planned version, before the first and after the last sample of a span;
        StoreUnavailable where the place does not answer. A damaged sample is a fault in its
        batch, a damaged rest of an archive the fault of SpanDone: never an exception.
        """
        ...

    def fields(self, input_: Input) -> Sequence[str]:
        """The field names found in one input: for error messages and default fields."""
        ...
