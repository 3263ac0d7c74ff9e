"""Spans: the runs of rows that an order is made of, from a snapshot's rows alone.

One stream: a span is a shard file (or what later commits left visible of it), and the snapshot
says how many samples and tokens it has; nothing is opened. Several streams: a span is a run of rows
of a unit that lies in one file of each stream. Columns of numbers, no object per shard: a snapshot
may name a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError
from tokenmill.store.alignment import FileRows, Piece, plan_pipeline, visible_rows

# What becomes of a sample that lacks one of the streams: left out, or given without it.
Missing = Literal["drop", "keep"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spans:
    """n spans over S streams. start, stop: int64[n], rows within the unit. file: int64[n, S], row
    of `files`, -1 where the stream is missing. samples, tokens: int64[n], tokens of all streams
    without specials; -1 where only the shards know.

    files: the rows of the snapshot that are in use, SNAPSHOT_SCHEMA.
    """

    streams: tuple[str, ...]
    files: pa.Table
    first_row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    file: NDArray[np.int64]
    samples: NDArray[np.int64]
    tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


def make_spans(table: pa.Table, streams: Sequence[str], missing: Missing) -> Spans:
    """Spans of `streams` over a snapshot's rows, ordered by pipeline, unit, row.

    Raises JobError where streams were cut differently and would have to be joined by sample id.
    """
    files = table
    if not set(pc.unique(table["stream"]).to_pylist()) <= set(streams):
        files = table.filter(pc.is_in(table["stream"], value_set=pa.array(streams, pa.string())))
    if len(streams) == 1:
        return _of_one(files, streams[0])
    return _of_many(files, tuple(streams), missing)


def _ints(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name].to_numpy(), np.int64)


def _of_one(files: pa.Table, stream: str) -> Spans:
    first, rows = _ints(files, "first_row"), _ints(files, "rows")
    start, stop, file = first, first + rows, np.arange(len(first), dtype=np.int64)
    samples, tokens = _ints(files, "samples"), _ints(files, "tokens")
    cut = np.asarray(pc.fill_null(pc.list_value_length(files["exclude"]), 0).to_numpy()) > 0
    if cut.any():
        runs = [(i, *run) for i in np.flatnonzero(cut).tolist() for run in _visible(files, i)]
        more = np.array(runs, np.int64).reshape(-1, 3)
        unknown = np.full(len(more), -1, np.int64)
        file = np.concatenate([file[~cut], more[:, 0]])
        order = np.lexsort((np.concatenate([start[~cut], more[:, 1]]), file))
        start = np.concatenate([start[~cut], more[:, 1]])[order]
        stop = np.concatenate([stop[~cut], more[:, 2]])[order]
        samples = np.concatenate([samples[~cut], unknown])[order]
        tokens = np.concatenate([tokens[~cut], unknown])[order]
        file = file[order]
    return Spans(
        streams=(stream,),
        files=files,
        first_row=first,
        start=start,
        stop=stop,
        file=file[:, None],
        samples=samples,
        tokens=tokens,
    )


def _visible(files: pa.Table, index: int) -> list[tuple[int, int]]:
    return visible_rows([_file_rows(files.slice(index, 1).to_pylist()[0])])


def _file_rows(row: dict[str, object]) -> FileRows:
    kept = {name: row[name] for name in FileRows.__dataclass_fields__ if name != "exclude"}
    exclude = tuple((e["start"], e["end"]) for e in row["exclude"] or ())  # type: ignore
    return FileRows(**kept, exclude=exclude)  # type: ignore[arg-type]


def _of_many(files: pa.Table, streams: tuple[str, ...], missing: Missing) -> Spans:
    names = [n for n in FileRows.__dataclass_fields__ if n != "exclude"]
    rows = [_file_rows(row) for row in files.select([*names, "exclude"]).to_pylist()]
    number = {row.path: i for i, row in enumerate(rows)}
    found: list[tuple[int, int, list[int]]] = []
    for pipeline in dict.fromkeys(row.pipeline for row in rows):
        plan = plan_pipeline(pipeline, (r for r in rows if r.pipeline == pipeline))
        if plan.partial:
            raise JobError(
                f"the streams {', '.join(streams)} of {pipeline!r} were cut differently",
                why=f"{len(plan.partial)} runs of rows would have to be joined by sample id",
                remedy="encode one of them again under the other's cut (`tokenmill run "
                "--retokenize`), or load one stream",
            )
        for piece in plan.pieces:
            if missing == "keep" or len(piece.files) == len(streams):
                found += _cut_at_files(piece, streams, number)
    start = np.array([f[0] for f in found], np.int64)
    stop = np.array([f[1] for f in found], np.int64)
    file = np.array([f[2] for f in found], np.int64).reshape(-1, len(streams))
    samples, tokens = _known(files, start, stop, file)
    return Spans(
        streams=streams,
        files=files,
        first_row=_ints(files, "first_row"),
        start=start,
        stop=stop,
        file=file,
        samples=samples,
        tokens=tokens,
    )


def _cut_at_files(
    piece: Piece, streams: Sequence[str], number: dict[str, int]
) -> list[tuple[int, int, list[int]]]:
    """The piece as runs of rows that lie in one file of each stream."""
    edges = {piece.start, piece.stop}
    for files in piece.files.values():
        for f in files:
            edges |= {
                e for e in (f.first_row, f.first_row + f.rows) if piece.start < e < piece.stop
            }
    cuts = sorted(edges)
    return [
        (start, stop, [_covering(piece.files.get(s, ()), start, number) for s in streams])
        for start, stop in pairwise(cuts)
    ]


def _covering(files: Sequence[FileRows], row: int, number: dict[str, int]) -> int:
    for f in files:
        if f.first_row <= row < f.first_row + f.rows:
            return number[f.path]
    return -1


def _known(
    files: pa.Table, start: NDArray[np.int64], stop: NDArray[np.int64], file: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples and tokens where the snapshot is enough: whole files, every row with tokens."""
    if not len(start):
        return start, start
    first, rows = _ints(files, "first_row")[file], _ints(files, "rows")[file]
    whole = (first == start[:, None]) & (rows == (stop - start)[:, None])
    full = whole & (_ints(files, "samples")[file] == rows) & (file >= 0)
    known = full.all(axis=1)
    tokens = _ints(files, "tokens")[file].sum(axis=1)
    return np.where(known, stop - start, -1), np.where(known, tokens, -1)
