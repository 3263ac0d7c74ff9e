"""Parquet: a row is a sample, a column a field (`meta.text` names a leaf of a struct).

Sample locator: the row's number in the whole file. A row group belongs to the span that holds its
first byte. Rows are enumerated by the footer alone and every column is read by itself, so that
all streams see the same samples though a page that only one of them reads is damaged.

Memory is bounded by one batch of a column as Arrow decodes it (its own limit is 2 GiB, which only
a file made for the purpose reaches).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.samples import SampleBatch
from tokenmill.schemas.work import Input, Span
from tokenmill.workers.sources.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    FormatSource,
    clean_key,
    too_large,
    wrong_type,
)
from tokenmill.workers.sources.bounded import Damaged
from tokenmill.workers.sources.objects import open_input
from tokenmill.workers.sources.text import decode

# A footer may claim any number of rows. Run lengths make rows cheap, but samples are not: beyond
# this many rows a byte, every one of them would be a fault.
_ROWS_PER_BYTE = 1000
_ROWS_ANYWAY = 1_000_000
# Otherwise Arrow holds whole column chunks.
_BUFFER_BYTES = 4 << 20
# What Arrow raises for damaged files; an OSError with an errno is the disk's or the network's.
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


class ParquetSource(FormatSource):
    """`format: parquet`."""

    suffixes = (".parquet", ".parq", ".pq")

    def splittable(self, input_: Input) -> bool:
        return True

    def fields(self, input_: Input) -> Sequence[str]:
        """Top-level columns, and `a.b` for the leaves of structs."""
        try:
            with open_input(input_) as raw:
                return list(_leaves(_open(raw).schema_arrow))
        except Damaged:
            return []  # reading will say so

    def _samples(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        with open_input(span.input) as raw:
            try:
                file = _open(raw)
                groups = row_groups(file.metadata, span.input.extent)
            except Damaged:
                if span.start == 0:
                    raise
                return  # said once, by the span that holds the first byte
            for group, first_byte, first_row, rows in groups:
                if span.start <= first_byte < span.end:
                    yield from self._group(index, span.input, file, group, first_row, rows, fields)

    def _group(
        self,
        index: int,
        input_: Input,
        file: pq.ParquetFile,
        group: int,
        first_row: int,
        rows: int,
        fields: Sequence[str],
    ) -> Iterator[SampleBatch]:
        key = self.config.key
        names = dict.fromkeys((*fields, key) if key is not None else fields)
        step, size = _step(file.metadata.row_group(group), names, rows)
        limit = self.config.max_sample_bytes
        columns = {
            name: _Column(file, group, name, step, limit, f"{input_.uri}, column {name!r}")
            for name in names
        }
        sample_id, base = sample_ids(input_.uri), clean_key(input_.key)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            numbers = range(first_row + start, first_row + start + count)
            values = {name: column.take(count) for name, column in columns.items()}
            keys = [f"{base}#{n}" for n in numbers]
            if key is not None:
                found = columns[key].shown(values[key])
                keys = [k if v is None else clean_key(v) for k, v in zip(keys, found, strict=True)]
            yield SampleBatch(
                span=index,
                ids=[sample_id(str(n)) for n in numbers],
                keys=keys,
                fields={name: values[name] for name in fields},
                bytes_read=size if start == 0 else 0,
            )


def _open(raw: BinaryIO) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        _ = file.schema_arrow.names  # which may not be UTF-8
        return file
    except _ARROW_ERRORS as error:
        raise _damaged(error, "the footer") from None


def _damaged(error: Exception, what: str) -> Damaged:
    if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
        raise error
    return Damaged("invalid-parquet", f"{what} cannot be read: {str(error)[:300]}")


def row_groups(metadata: Any, extent: int) -> list[tuple[int, int, int, int]]:
    """(number, first byte, first row, rows) of every row group. First bytes are within the extent,
    whatever the footer claims, so that each group belongs to exactly one span.

    Raises Damaged where the footer cannot be true.
    """
    found, first_row = [], 0
    for number in range(metadata.num_row_groups):
        try:
            group = metadata.row_group(number)
            chunks = [group.column(n) for n in range(group.num_columns)]
            starts = [_first_byte(chunk) for chunk in chunks]
            _ = [chunk.path_in_schema for chunk in chunks]  # may not be UTF-8
            size = sum(max(chunk.total_compressed_size, 0) for chunk in chunks)
        except _ARROW_ERRORS as error:
            raise _damaged(error, f"row group {number}") from None
        rows = group.num_rows
        if rows < 0 or rows > _ROWS_ANYWAY + _ROWS_PER_BYTE * min(size, extent):
            raise Damaged(
                "invalid-parquet", f"row group {number} claims {rows:,} rows in {size:,} bytes"
            )
        first = min(max(min(starts, default=0), 0), extent - 1)
        found.append((number, first, first_row, rows))
        first_row += rows
    return found


def _first_byte(chunk: Any) -> int:
    data = int(chunk.data_page_offset)
    dictionary = chunk.dictionary_page_offset
    # some writers leave a zero where there is no dictionary page
    return min(data, int(dictionary)) if dictionary else data


def _step(group: Any, names: Any, rows: int) -> tuple[int, int]:
    """Rows to a batch, so that it stays about BATCH_BYTES; compressed bytes of the columns."""
    tops = {name.split(".")[0] for name in names} | set(names)
    plain = packed = 0
    for number in range(group.num_columns):
        chunk = group.column(number)
        path = chunk.path_in_schema
        if path in names or path.split(".")[0] in tops:
            plain += max(chunk.total_uncompressed_size, 0)
            packed += max(chunk.total_compressed_size, 0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * max(rows, 1) // max(plain, 1))), packed


def _leaves(schema: pa.Schema) -> Iterator[str]:
    yield from schema.names
    for field in schema:
        yield from _below(field.name, field.type)


def _below(prefix: str, kind: pa.DataType, depth: int = 0) -> Iterator[str]:
    if not pa.types.is_struct(kind) or depth > 16:
        return
    for number in range(kind.num_fields):
        child = kind.field(number)
        yield f"{prefix}.{child.name}"
        yield from _below(f"{prefix}.{child.name}", child.type, depth + 1)


class _Column:
    """One column of one row group, taken `step` rows at a time.

    Where the file has no such column every value is None; from the first damage on, every value is
    a SampleError.
    """

    def __init__(
        self, file: pq.ParquetFile, group: int, name: str, step: int, limit: int, where: str
    ) -> None:
        self._scalars: pa.Array | None = None  # the last batch, where it was numbers or dates
        self._limit = limit
        self._where = where
        self._fault: SampleError | None = None
        self._path = _path(file.schema_arrow, name)
        self._batches = _batches(file, group, name, step)

    def take(self, count: int) -> list[Any]:
        """The next `count` values."""
        self._scalars = None
        if self._fault is None and self._path is not None:
            try:
                return self._next(self._batches, count)
            except _ARROW_ERRORS as error:
                # raises what is the disk's fault and not the file's
                damage = _damaged(error, "the column")
                self._fault = SampleError("invalid-parquet", damage.message, where=self._where)
        return [self._fault] * count

    def shown(self, values: Sequence[Any]) -> list[str | None]:
        """The batch just taken as keys: numbers, which are no field values, make keys as well."""
        if self._scalars is not None:
            return [None if v is None else str(v) for v in self._scalars.to_pylist()]
        return [v if isinstance(v, str) else None for v in values]

    def _next(self, batches: Iterator[pa.RecordBatch], count: int) -> list[Any]:
        batch = next(batches, None)
        if batch is None or batch.num_rows != count or self._path is None:
            rows = 0 if batch is None else batch.num_rows
            raise ValueError(f"{rows} rows found where the footer promises {count}")
        array = batch.column(batch.schema.names.index(self._path[0]))
        for step in self._path[1:]:
            array = pc.struct_field(array, step)
        return self._values(array)

    def _values(self, array: pa.Array) -> list[Any]:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        kind = array.type
        if not _is_text(kind) and not _is_bytes(kind):
            self._scalars = None if pa.types.is_nested(kind) else array
            wrong = wrong_type(str(kind), self._where)
            return [wrong if known else None for known in array.is_valid().to_pylist()]
        large: dict[int, SampleError] = {}
        if array.nbytes > self._limit:
            array, large = self._without_large(array)
        try:
            values: list[Any] = array.to_pylist()
        except UnicodeDecodeError:
            values = self._decoded(array)
        for at, error in large.items():
            values[at] = error
        return values

    def _without_large(self, array: pa.Array) -> tuple[pa.Array, dict[int, SampleError]]:
        """`array` with null for values over the limit, which never become Python objects."""
        sizes = pc.binary_length(array)
        over = pc.fill_null(pc.greater(sizes, self._limit), False)
        large = {
            n: too_large(sizes[n].as_py(), self._limit, self._where)
            for n in pc.indices_nonzero(over).to_pylist()
        }
        return (pc.if_else(over, pa.scalar(None, array.type), array) if large else array), large

    def _decoded(self, array: pa.Array) -> list[Any]:
        raw = array.cast(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary())
        return [None if v is None else decode(v, self._where) for v in raw.to_pylist()]


def _batches(file: pq.ParquetFile, group: int, name: str, step: int) -> Iterator[pa.RecordBatch]:
    """A generator, so that whatever it raises is raised by its first `next`."""
    yield from file.iter_batches(step, row_groups=[group], columns=[name], use_threads=False)


def _path(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """The column `name`, or the leaf of a struct that it spells; None where there is neither."""
    if name in schema.names:
        return (name,)
    steps = tuple(name.split("."))
    if steps[0] not in schema.names:
        return None
    kind = schema.field(schema.get_all_field_indices(steps[0])[0]).type
    for step in steps[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            return None
        kind = kind.field(kind.get_field_index(step)).type
    return steps


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
