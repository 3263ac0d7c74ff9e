"""Shard files to batches of aligned samples: one pass over the files of a piece, or by row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.errors import CorruptStore
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.store.access import Access
from tokenmill.store.alignment import FileRows, Piece
from tokenmill.store.rows import (
    NOT_COMMITTED,
    Batch,
    Column,
    Decode,
    Texts,
    column_of,
    sample_id_bytes,
)
from tokenmill.store.shards import ShardReader

# Shard files that a join by sample id holds open at once, each with its last record batch.
OPEN_FILES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """Rows [start, stop) of one stream that lie in one record batch, whose first row is `base`."""

    start: int
    stop: int
    base: int
    record: pa.RecordBatch
    column: Column

    def cut(self, start: int, stop: int) -> Column:
        return self.column.slice(start - self.base, stop - self.base)


def read_piece(
    access: Access, piece: Piece, streams: frozenset[str], decode: Decode | None = None
) -> Iterator[Batch]:
    """Batches over the rows of a piece, in order, at most one record batch of each stream each.

    Raises CorruptStore where a file is shorter than the snapshot says.
    """
    with ExitStack() as stack:
        cursors = {}
        for stream, files in piece.files.items():
            cursor = _segments(access, files, piece.start, piece.stop)
            stack.callback(cursor.close)  # closes its file when the reader stops half-way
            cursors[stream] = cursor
        heads = {stream: next(cursor) for stream, cursor in cursors.items()}
        row = piece.start
        while row < piece.stop:
            stop = min(head.stop for head in heads.values())
            yield _aligned(piece, heads, row, stop, streams, decode)
            row = stop
            for stream, head in heads.items():
                if head.stop == stop < piece.stop:
                    heads[stream] = next(cursors[stream])


def _segments(
    access: Access, files: Sequence[FileRows], start: int, stop: int
) -> Generator[_Segment]:
    for file in files:
        first = max(start, file.first_row) - file.first_row
        last = min(stop, file.first_row + file.rows) - file.first_row
        with ShardReader(access, file.path) as reader:
            check_rows(reader, file)
            for number in range(first // reader.batch_rows, -(-last // reader.batch_rows)):
                record = reader.batch(number)
                base = file.first_row + number * reader.batch_rows
                yield _Segment(
                    start=max(start, base),
                    stop=min(stop, base + record.num_rows),
                    base=base,
                    record=record,
                    column=column_of(record, file.stream, file.recipe),
                )


def check_rows(reader: ShardReader, file: FileRows) -> None:
    if reader.rows != file.rows:
        raise CorruptStore(
            f"a shard has {reader.rows} rows where the snapshot says {file.rows}",
            where=file.path,
            remedy="`tokenmill verify STORE` says how far the damage goes",
        )


def _aligned(
    piece: Piece,
    heads: Mapping[str, _Segment],
    start: int,
    stop: int,
    streams: frozenset[str],
    decode: Decode | None,
) -> Batch:
    lead = next(iter(heads.values()))
    record = lead.record.slice(start - lead.base, stop - start)
    return Batch(
        pipeline=piece.pipeline,
        ids=sample_id_bytes(record),
        columns={stream: head.cut(start, stop) for stream, head in heads.items()},
        texts=lambda: _texts(record),
        streams=streams,
        decode=decode,
    )


def _texts(record: pa.RecordBatch) -> Texts:
    spans = record.column("span").to_pylist() if "span" in record.schema.names else None
    return record.column("key").to_pylist(), record.column("source").to_pylist(), spans


def read_ids(access: Access, piece: Piece) -> NDArray[np.uint8]:
    """uint8[rows, 16]: the sample ids of a piece, from whichever of its streams comes first."""
    files = next(iter(piece.files.values()))
    parts = [
        sample_id_bytes(s.record.slice(s.start - s.base, s.stop - s.start))
        for s in _segments(access, files, piece.start, piece.stop)
    ]
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, ID_BYTES)


class RowFetcher:
    """Single rows of any shard file, for samples whose streams were cut differently.

    Keeps a few files open with their last record batch: rows asked for in order cost little.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._open: OrderedDict[str, tuple[ShardReader, int, Column | None]] = OrderedDict()

    def __enter__(self) -> RowFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1][0].close()

    def fetch(self, files: Sequence[FileRows], row: int) -> Column:
        """A column of the one sample at `row` of the (unit, stream) of `files`."""
        file = next(f for f in files if f.first_row <= row < f.first_row + f.rows)
        reader, number, column = self._reader(file)
        wanted, at = divmod(row - file.first_row, reader.batch_rows)
        if column is None or number != wanted:
            column = column_of(reader.batch(wanted), file.stream, file.recipe)
        self._open[file.path] = (reader, wanted, column)
        self._open.move_to_end(file.path)
        return column.slice(at, at + 1)

    def _reader(self, file: FileRows) -> tuple[ShardReader, int, Column | None]:
        if file.path in self._open:
            return self._open[file.path]
        while len(self._open) >= OPEN_FILES:
            self._open.popitem(last=False)[1][0].close()
        reader = ShardReader(self._access, file.path)
        try:
            check_rows(reader, file)
        except CorruptStore:
            reader.close()
            raise
        return reader, -1, None


def stacked(stream: str, parts: Mapping[int, Column], n: int) -> Column:
    """A column of n samples from single-sample columns by position; the others have none yet."""
    lengths = np.zeros(n, np.int64)
    verdicts = np.full(n, NOT_COMMITTED, np.uint8)
    names = sorted({part.recipe_names[0] for part in parts.values()})
    recipes = np.zeros(n, np.uint8)
    shaped = [p.shapes.shape[1] for p in parts.values() if p.shapes is not None]
    shapes = np.zeros((n, max(shaped)), np.int32) if shaped else None
    for i, part in parts.items():
        lengths[i] = len(part.values)
        verdicts[i] = part.verdicts[0]
        recipes[i] = names.index(part.recipe_names[0])
        if shapes is not None and part.shapes is not None and part.shapes.shape[1]:
            shapes[i] = part.shapes[0]
    return Column(
        stream=stream,
        values=np.concatenate([parts[i].values for i in sorted(parts)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        verdicts=verdicts,
        shapes=shapes,
        recipe_names=tuple(names),
        recipes=recipes if len(names) > 1 else None,
    )
