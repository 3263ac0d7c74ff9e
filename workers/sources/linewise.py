"""The lines of one span, whether its file is plain or compressed: for `jsonl` and text by line."""

from __future__ import annotations

from collections.abc import Iterator

from tokenmill.schemas.work import Span
from tokenmill.workers.sources.bounded import compression, decompressed
from tokenmill.workers.sources.lines import LineBlock, line_blocks, span_lines
from tokenmill.workers.sources.objects import open_input


def read_lines(span: Span, limit: int) -> Iterator[LineBlock]:
    """Blocks of lines in order. Offsets are of the decompressed content where it is compressed.

    Raises Damaged (compressed only), InputChanged, SourceError, StoreUnavailable.
    """
    input_ = span.input
    kind = compression(input_.uri)
    with open_input(input_, buffered=bool(kind)) as raw:
        if kind:
            yield from line_blocks(decompressed(raw, kind, input_.size), 0, None, limit)
        else:
            yield from span_lines(raw, span.start, span.end, limit)
