"""What the formats share: listing by configuration, the loop over spans, batch limits, keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.samples import SampleBatch, SpanDone
from tokenmill.schemas.work import Input, Quarantine, Span
from tokenmill.workers.sources import listing
from tokenmill.workers.sources.bounded import Damaged

BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20
# Keys are for people; a hostile archive may name a member with 64 KiB.
_KEY_CHARS = 1024


class FormatSource(ABC):
    """A `schemas.samples.Source`: subclasses read one span, this class does the rest."""

    # what a *folder* is searched for, unless `include` says otherwise; () is every file
    suffixes: ClassVar[tuple[str, ...]] = ()
    # whether UNSUPPORTED compressions are refused when listed
    compressible: ClassVar[bool] = False

    def __init__(self, config: SourceConfig) -> None:
        self.config = config

    def list(self) -> Iterator[Input]:
        return listing.list_inputs(
            self.config, suffixes=self.suffixes, compressible=self.compressible
        )

    def splittable(self, input_: Input) -> bool:
        return False

    def read(
        self, spans: Sequence[Span], fields: Sequence[str]
    ) -> Iterator[SampleBatch | SpanDone]:
        for index, span in enumerate(spans):
            fault = None
            try:
                yield from self._samples(index, span, fields)
            except Damaged as damage:
                fault = input_fault(span.input, damage)
            yield SpanDone(span=index, fault=fault)

    @abstractmethod
    def _samples(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        """All samples of one span; raises Damaged where the rest cannot be read."""

    @abstractmethod
    def fields(self, input_: Input) -> Sequence[str]: ...

    def _too_large(self, size: int, where: str) -> SampleError:
        return too_large(size, self.config.max_sample_bytes, where)


def input_fault(input_: Input, damage: Damaged) -> Quarantine:
    return Quarantine(
        sample=None,
        key=clean_key(input_.key),
        source=input_.uri,
        row=None,
        reason=damage.reason,
        message=damage.message,
        stage="read",
    )


def too_large(size: int, limit: int, where: str) -> SampleError:
    return SampleError(
        "too-large",
        f"{size:,} bytes, and max_sample_bytes is {limit:,}",
        where=where,
        remedy="raise source.max_sample_bytes to take it",
    )


def wrong_type(found: str, where: str) -> SampleError:
    return SampleError("wrong-type", f"text wanted, {found} found", where=where)


def clean_key(key: str) -> str:
    """A key that any reader can show: valid Unicode (odd bytes escaped), at most 1,024 characters.

    Not for locators: two long keys may become one.
    """
    if len(key) > _KEY_CHARS:
        key = key[: _KEY_CHARS - 1] + "…"
    if key.isascii():
        return key
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def slices(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive samples of `sizes` bytes cut into batches: by rows, and by bytes."""
    start = held = 0
    for at, size in enumerate(sizes):
        if at > start and (at - start >= BATCH_ROWS or held + size > BATCH_BYTES):
            yield slice(start, at)
            start, held = at, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def only(fields: Iterable[str], have: str, values: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The columns of a source with the single field `have`."""
    return {name: values if name == have else [None] * len(values) for name in fields}
