"""Which rows of which streams are the same sample. Pure arithmetic over a snapshot's rows.

All streams of a unit enumerate the same samples in the same order, so row i of each is one sample
wherever their order hashes agree. A *piece* is a run of such rows that have the same streams. A
pipeline whose streams were all encoded under one cut is one piece per unit; where a part was
superseded, or a stream is not committed yet, or was cut differently, pieces lack streams, and
only those (`Plan.partial`) may have to be joined by sample id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

Interval = tuple[int, int]  # half-open range of rows within (unit, stream)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRows:
    """One visible shard file: rows [first_row, first_row + rows) of its (unit, stream)."""

    pipeline: str
    stream: str
    unit: bytes
    path: str
    first_row: int
    rows: int
    order_hash: bytes
    space: str
    recipe: str
    tokenizer: str
    exclude: tuple[Interval, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows [start, stop) of a unit that have exactly these streams, row by row aligned.

    files: stream -> its files that touch the range, by first row.
    """

    pipeline: str
    unit: bytes
    start: int
    stop: int
    files: Mapping[str, tuple[FileRows, ...]]

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def streams(self) -> frozenset[str]:
        return frozenset(self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The pieces of one pipeline in reading order: by unit, then row.

    partial: indices of pieces that lack a stream which another piece has *without* theirs, so
    that their samples must be looked up by id; empty for most stores.
    """

    pipeline: str
    pieces: tuple[Piece, ...]
    partial: tuple[int, ...]


def plan_pipeline(pipeline: str, files: Iterable[FileRows]) -> Plan:
    """Pieces over the files of one pipeline, whatever their order."""
    units: dict[bytes, list[FileRows]] = {}
    for file in files:
        units.setdefault(file.unit, []).append(file)
    pieces = tuple(
        piece for unit in sorted(units) for piece in _unit_pieces(pipeline, unit, units[unit])
    )
    return Plan(pipeline=pipeline, pieces=pieces, partial=_partial(pieces))


def _unit_pieces(pipeline: str, unit: bytes, files: Sequence[FileRows]) -> list[Piece]:
    """Streams of one order are aligned; another order within a unit makes pieces of its own."""
    orders: dict[bytes, dict[str, list[FileRows]]] = {}
    for file in sorted(files, key=lambda f: (f.order_hash, f.stream, f.first_row, f.path)):
        orders.setdefault(file.order_hash, {}).setdefault(file.stream, []).append(file)
    pieces: list[Piece] = []
    for streams in orders.values():
        pieces += _aligned_pieces(pipeline, unit, streams)
    return pieces


def _aligned_pieces(
    pipeline: str, unit: bytes, streams: Mapping[str, Sequence[FileRows]]
) -> list[Piece]:
    present = {stream: visible_rows(files) for stream, files in streams.items()}
    edges = sorted({edge for ranges in present.values() for range_ in ranges for edge in range_})
    runs: list[tuple[int, int, frozenset[str]]] = []
    for start, stop in pairwise(edges):
        here = frozenset(s for s, ranges in present.items() if _within(start, ranges))
        if runs and runs[-1][1] == start and runs[-1][2] == here:
            runs[-1] = (runs[-1][0], stop, here)
        elif here:
            runs.append((start, stop, here))
    return [
        Piece(
            pipeline=pipeline,
            unit=unit,
            start=start,
            stop=stop,
            files={s: _touching(streams[s], start, stop) for s in sorted(here)},
        )
        for start, stop, here in runs
    ]


def by_file(piece: Piece) -> list[Piece]:
    """The piece cut where any of its streams begins another shard file."""
    starts = {f.first_row for files in piece.files.values() for f in files}
    edges = [piece.start, *sorted(s for s in starts if piece.start < s < piece.stop), piece.stop]
    return [
        replace(
            piece,
            start=start,
            stop=stop,
            files={s: _touching(files, start, stop) for s, files in piece.files.items()},
        )
        for start, stop in pairwise(edges)
    ]


def visible_rows(files: Iterable[FileRows]) -> list[Interval]:
    """The rows of one (unit, stream) that no later commit superseded, merged and sorted."""
    files = list(files)
    return subtract(
        [(f.first_row, f.first_row + f.rows) for f in files], [e for f in files for e in f.exclude]
    )


def subtract(ranges: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """`ranges` without `holes`: sorted, disjoint, never empty, neighbours merged."""
    left = _merged(ranges)
    for start, stop in _merged(holes):
        cut: list[Interval] = []
        for a, b in left:
            cut += [(x, y) for x, y in ((a, min(b, start)), (max(a, stop), b)) if x < y]
        left = cut
    return left


def _merged(ranges: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _within(row: int, ranges: Iterable[Interval]) -> bool:
    return any(start <= row < stop for start, stop in ranges)


def _touching(files: Iterable[FileRows], start: int, stop: int) -> tuple[FileRows, ...]:
    return tuple(f for f in files if f.first_row < stop and start < f.first_row + f.rows)


def _partial(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Pieces that may share samples: a sample has a stream once, so theirs are disjoint."""
    kinds = {piece.streams for piece in pieces}
    joinable = {kind for kind in kinds if any(kind.isdisjoint(other) for other in kinds)}
    return tuple(i for i, piece in enumerate(pieces) if piece.streams in joinable)
