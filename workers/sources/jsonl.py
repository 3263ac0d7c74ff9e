"""JSON Lines: one object a line, plain (cut anywhere) or .gz/.zst (never cut).

Sample locator: the byte offset of the line, of the decompressed content where it is compressed.
Blank lines are no samples; a byte order mark at the start of the file is passed over; CRLF is
taken. A field is named by its key, or by a dotted path into nested objects (`meta.text`).
Parsing is orjson's: measured on 3.7 KB lines of source code 5.2 µs against 14.6 µs of the standard
library, where the fast tokenizers need about 25 µs for the same line. It is strict: no NaN, no
lone surrogates, nesting of at most 1,024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import orjson

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.samples import SampleBatch
from tokenmill.schemas.work import Input, Span
from tokenmill.workers.sources.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    FormatSource,
    clean_key,
    slices,
    wrong_type,
)
from tokenmill.workers.sources.bounded import Damaged, compression
from tokenmill.workers.sources.lines import TooLong
from tokenmill.workers.sources.linewise import read_lines
from tokenmill.workers.sources.text import decode

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r"
_LINES_FOR_FIELDS = 100

Line = bytes | TooLong


class JsonlSource(FormatSource):
    """`format: jsonl`."""

    suffixes = tuple(
        name + ending
        for name in (".jsonl", ".ndjson", ".json")
        for ending in ("", ".gz", ".zst", ".zstd")
    )
    compressible = True

    def splittable(self, input_: Input) -> bool:
        return not compression(input_.uri)

    def fields(self, input_: Input) -> Sequence[str]:
        """Keys of the objects on the first hundred lines, in order of appearance."""
        found: dict[str, None] = {}
        whole = Span(input=input_, start=0, end=input_.extent)
        try:
            for _, line in islice(self._lines(whole), _LINES_FOR_FIELDS):
                if isinstance(value := self._parse(input_, 0, line), dict):
                    found.update(dict.fromkeys(value))
        except Damaged:
            pass  # reading will say so; the names before the damage are still of use
        return list(found)

    def _lines(self, span: Span) -> Iterator[tuple[int, Line]]:
        for block in read_lines(span, self.config.max_sample_bytes):
            yield from _kept(block.offsets, block.lines)

    def _samples(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        pending = _Pending()
        for block in read_lines(span, self.config.max_sample_bytes):
            kept = _kept(block.offsets, block.lines)
            sizes = [0 if isinstance(line, TooLong) else len(line) for _, line in kept]
            for cut in slices(sizes):
                size = sum(sizes[cut])
                if pending.has_no_room(cut.stop - cut.start, size):
                    yield self._batch(index, span.input, pending, fields)
                    pending = _Pending()
                # parsed block by block, while its bytes are in the cache
                pending.add(kept[cut], self._objects(span.input, kept[cut]), size)
        if pending.values:
            yield self._batch(index, span.input, pending, fields)

    def _objects(
        self, input_: Input, lines: Sequence[tuple[int, Line]]
    ) -> list[dict[str, Any] | SampleError]:
        try:
            values = [orjson.loads(line) for _, line in lines]  # type: ignore[arg-type]
            if set(map(type, values)) <= {dict}:
                return values
        except orjson.JSONDecodeError:
            pass  # one of them, or a TooLong: now one by one
        return [self._parse(input_, offset, line) for offset, line in lines]

    def _batch(
        self, index: int, input_: Input, pending: _Pending, fields: Sequence[str]
    ) -> SampleBatch:
        sample_id, offsets = sample_ids(input_.uri), pending.offsets
        faults = {n: v for n, v in enumerate(pending.values) if isinstance(v, SampleError)}
        values = [v if isinstance(v, dict) else {} for v in pending.values]
        return SampleBatch(
            span=index,
            ids=[sample_id(str(offset)) for offset in offsets],
            keys=self._keys(input_, offsets, values),
            fields={name: _column(values, name, input_, offsets) for name in fields},
            faults=faults,
            bytes_read=pending.size,
        )

    def _keys(
        self, input_: Input, offsets: Sequence[int], values: Sequence[dict[str, Any]]
    ) -> list[str]:
        key = clean_key(input_.key)
        keys = [f"{key}#{offset}" for offset in offsets]
        if self.config.key is not None:
            for n, found in enumerate(_found(values, self.config.key)):
                if isinstance(found, str | int | float):
                    keys[n] = clean_key(str(found))
        return keys

    def _parse(self, input_: Input, offset: int, line: Line) -> dict[str, Any] | SampleError:
        where = f"{input_.uri}, line at byte {offset}"
        if isinstance(line, TooLong):
            return self._too_large(line.size, where)
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            text = decode(line, where, offset)
            if isinstance(text, SampleError):
                return text
            return SampleError(
                "invalid-json",
                f"not JSON at column {error.colno}: {error.msg}"[:300],
                where=where,
            )
        if isinstance(value, dict):
            return value
        return SampleError("invalid-json", f"an object wanted, {_kind(value)} found", where=where)


class _Pending:
    """Parsed lines on their way into a batch."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.values: list[dict[str, Any] | SampleError] = []
        self.size = 0

    def has_no_room(self, rows: int, size: int) -> bool:
        full = len(self.values) + rows > BATCH_ROWS or self.size + size > BATCH_BYTES
        return full and bool(self.values)

    def add(
        self,
        lines: Sequence[tuple[int, Line]],
        values: Sequence[dict[str, Any] | SampleError],
        size: int,
    ) -> None:
        self.offsets += [offset for offset, _ in lines]
        self.values += values
        self.size += size


def _kept(offsets: Sequence[int], lines: Sequence[Line]) -> list[tuple[int, Line]]:
    """Lines that are samples: not blank, without the file's byte order mark."""
    if offsets and offsets[0] == 0 and isinstance(lines[0], bytes) and lines[0].startswith(_BOM):
        lines = [lines[0][len(_BOM) :], *lines[1:]]
    return [
        (offset, line)
        for offset, line in zip(offsets, lines, strict=True)
        if isinstance(line, TooLong) or line.strip(_BLANK)
    ]


def _found(values: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """The value at the key, or else at the dotted path, `name` of each object; or None."""
    found: list[Any] = [value.get(name) for value in values]
    if "." not in name:
        return found
    path = name.split(".")
    return [
        _walk(value, path) if direct is None else direct
        for value, direct in zip(values, found, strict=True)
    ]


def _walk(value: Any, path: Sequence[str]) -> Any:
    for step in path:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def _column(
    values: Sequence[dict[str, Any]],
    name: str,
    input_: Input,
    offsets: Sequence[int],
) -> list[Any]:
    found = _found(values, name)
    if set(map(type, found)) <= {str, type(None)}:
        return found
    return [
        value
        if value is None or isinstance(value, str)
        else wrong_type(_kind(value), f"{input_.uri}, line at byte {offsets[n]}, field {name!r}")
        for n, value in enumerate(found)
    ]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")
