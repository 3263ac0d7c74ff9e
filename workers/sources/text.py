"""Plain text: one sample per file, or one per line (`by: line`). The one field is `text`.

Text is decoded strictly as UTF-8 and otherwise left as it is (a byte order mark and CRLF inside a
file stay), so that ids are those of the bytes on disk. By line, the ending `\\n` or `\\r\\n` is
not part of a sample and an empty line is no sample. `.gz` and `.zst` files are decompressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.samples import SampleBatch
from tokenmill.schemas.work import Input, Span
from tokenmill.workers.sources.base import FormatSource, clean_key, only, slices
from tokenmill.workers.sources.bounded import byte_stream, compression
from tokenmill.workers.sources.lines import TooLong
from tokenmill.workers.sources.linewise import read_lines
from tokenmill.workers.sources.objects import open_input

FIELD = "text"


def decode(raw: bytes, where: str, base: int = 0) -> str | SampleError:
    """Strict UTF-8; the error names the byte offset (`base` is the offset of raw[0])."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return SampleError(
            "invalid-utf8",
            f"byte 0x{raw[error.start]:02x} at offset {base + error.start} is not UTF-8",
            where=where,
            why=error.reason,
        )


class TextSource(FormatSource):
    """`format: text`. Sample locator: "" for a file, the byte offset for a line."""

    def splittable(self, input_: Input) -> bool:
        return self.config.by == "line" and not compression(input_.uri)

    def fields(self, input_: Input) -> Sequence[str]:
        return (FIELD,)

    def _samples(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        if self.config.by == "line":
            yield from self._by_line(index, span, fields)
        else:
            yield self._whole(index, span.input, fields)

    def _whole(self, index: int, input_: Input, fields: Sequence[str]) -> SampleBatch:
        limit = self.config.max_sample_bytes
        kind = compression(input_.uri)
        read = 0
        value: str | SampleError | None = None
        small = input_.size <= limit and not kind and FIELD in fields
        with open_input(input_, buffered=kind == "zstd", at_once=small) as raw:
            if not kind and input_.size > limit:
                value = self._too_large(input_.size, input_.uri)
            elif FIELD in fields:
                data = byte_stream(raw, kind, input_.size).read(limit + 1)
                read = len(data)
                if read > limit:
                    value = self._too_large(read, input_.uri)
                else:
                    value = decode(data, input_.uri)
        return SampleBatch(
            span=index,
            ids=[sample_ids(input_.uri)("")],
            keys=[clean_key(input_.key)],
            fields=only(fields, FIELD, [value]),
            bytes_read=read,
        )

    def _by_line(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        input_ = span.input
        sample_id, key = sample_ids(input_.uri), clean_key(input_.key)
        for block in read_lines(span, self.config.max_sample_bytes):
            kept = [(o, line) for o, line in zip(*block, strict=True) if line not in (b"", b"\r")]
            sizes = [0 if isinstance(line, TooLong) else len(line) for _, line in kept]
            for cut in slices(sizes):
                part = kept[cut]
                yield SampleBatch(
                    span=index,
                    ids=[sample_id(str(offset)) for offset, _ in part],
                    keys=[f"{key}#{offset}" for offset, _ in part],
                    fields=only(fields, FIELD, [self._line(input_, o, x) for o, x in part]),
                    bytes_read=sum(sizes[cut]),
                )

    def _line(self, input_: Input, offset: int, line: bytes | TooLong) -> str | SampleError:
        where = f"{input_.uri}, line at byte {offset}"
        if isinstance(line, TooLong):
            return self._too_large(line.size, where)
        return decode(line[:-1] if line.endswith(b"\r") else line, where, offset)
