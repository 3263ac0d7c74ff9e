"""Streams of one pipeline that were cut differently, joined by sample id.

Only pieces that lack a stream which some other piece has on its own come here (`Plan.partial`):
their sample ids, and nothing else, are held in memory, about 40 bytes a row while sorting.

A sample id says which place a sample came from, not which version of it. Where one stream has the
new version of an input and another only the old one yet, the old rows are not read: a new video
must not get the old caption (G8).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.identity import ID_BYTES
from tokenmill.store.access import Access
from tokenmill.store.alignment import Piece, Plan
from tokenmill.store.gather import RowFetcher, read_ids, read_piece, stacked
from tokenmill.store.rows import Batch, Column, Decode, Texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """What one piece gives away and gains, rows relative to the piece's first.

    keep: bool[rows], false where the sample is read with an earlier piece. rows, pieces, at:
    row `rows[k]` has more streams in piece `pieces[k]` at its row `at[k]`; sorted by `rows`.
    """

    keep: NDArray[np.bool_]
    rows: NDArray[np.int64]
    pieces: NDArray[np.int64]
    at: NDArray[np.int64]


def link(
    streams: Sequence[frozenset[str]],
    ids: Sequence[NDArray[np.uint8]],
    current: Sequence[NDArray[np.bool_]],
) -> list[Links]:
    """For each piece, given its streams, sample ids (uint8[rows, 16]) and which of its rows are
    current (bool[rows]).

    A sample is read where its first current row comes; another piece's row joins it if it brings
    only streams that the sample has not got.
    """
    counts = [len(i) for i in ids]
    piece = np.repeat(np.arange(len(ids)), counts)
    row = np.concatenate([np.arange(n) for n in counts]) if ids else np.zeros(0, np.int64)
    keep = np.concatenate([np.zeros(0, bool), *current])
    joins: list[tuple[int, int]] = []  # (leader, follower), positions in the concatenation
    for group in _same(np.concatenate([np.zeros((0, ID_BYTES), np.uint8), *ids])):
        _join_group([at for at in group if keep[at]], piece, streams, keep, joins)
    joined = np.array(sorted(joins), np.int64).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cuts = np.searchsorted(joined[:, 0], starts)
    links = []
    for number in range(len(ids)):
        mine = joined[cuts[number] : cuts[number + 1]]
        links.append(
            Links(
                keep=keep[starts[number] : starts[number + 1]],
                rows=row[mine[:, 0]],
                pieces=piece[mine[:, 1]],
                at=row[mine[:, 1]],
            )
        )
    return links


def _same(ids: NDArray[np.uint8]) -> Iterator[list[int]]:
    """Positions of equal ids, two or more, ascending within a group."""
    halves = np.ascontiguousarray(ids).view(np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    new = np.ones(len(order) + 1, bool)
    new[1:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    edges = np.flatnonzero(new)
    for start, stop in pairwise(edges.tolist()):
        if stop - start > 1:
            yield sorted(order[start:stop].tolist())


def _join_group(
    group: Sequence[int],
    piece: NDArray[np.int64],
    streams: Sequence[frozenset[str]],
    keep: NDArray[np.bool_],
    joins: list[tuple[int, int]],
) -> None:
    leaders: list[tuple[int, frozenset[str]]] = []
    for position in group:
        mine = streams[piece[position]]
        for number, (leader, has) in enumerate(leaders):
            if has.isdisjoint(mine):
                joins.append((leader, position))
                keep[position] = False
                leaders[number] = (leader, has | mine)
                break
        else:
            leaders.append((position, mine))


def current_rows(pieces: Sequence[Piece], cells: pa.Table) -> list[NDArray[np.bool_]]:
    """For each piece bool[rows], false where a newer version of the row's input is committed.

    cells: input rows of the ledger with unit, input, source_id, seq, first_row, rows; those of the
    pieces' units at least.
    """
    newest: dict[bytes, bytes] = {}
    by_unit: dict[bytes, list[dict[str, Any]]] = {}
    for cell in sorted(cells.to_pylist(), key=lambda c: c["seq"]):
        newest[cell["source_id"]] = cell["input"]
        by_unit.setdefault(cell["unit"], []).append(cell)
    current = []
    for piece in pieces:
        rows = np.ones(piece.rows, bool)
        for cell in by_unit.get(piece.unit, ()):
            if newest[cell["source_id"]] != cell["input"]:
                start = max(cell["first_row"] - piece.start, 0)
                rows[start : max(cell["first_row"] + cell["rows"] - piece.start, 0)] = False
        current.append(rows)
    return current


class Join:
    """The partial pieces of a plan, linked; reads their ids once, when it is made.

    cells: see `current_rows`; asked for with the units that matter.
    """

    def __init__(
        self, access: Access, plan: Plan, cells: Callable[[Sequence[bytes]], pa.Table]
    ) -> None:
        self._access = access
        pieces = [plan.pieces[i] for i in plan.partial]
        links = link(
            [piece.streams for piece in pieces],
            [read_ids(access, piece) for piece in pieces],
            current_rows(pieces, cells(sorted({piece.unit for piece in pieces}))),
        )
        self._pieces: Mapping[int, Piece] = dict(enumerate(pieces))
        self._links: Mapping[int, Links] = dict(enumerate(links))
        self._number = {index: number for number, index in enumerate(plan.partial)}

    @property
    def not_read(self) -> int:
        """Rows that are no samples of their own: read with an earlier piece, or out of date."""
        return sum(int((~links.keep).sum()) for links in self._links.values())

    def rows(self, index: int) -> int:
        """Samples that `read(index, …)` gives."""
        return int(self._links[self._number[index]].keep.sum())

    def only(self, index: int) -> Join:
        """As much of this join as `read(index, …)` needs: to be sent to another process."""
        number = self._number[index]
        links = self._links[number]
        narrow = copy.copy(self)
        narrow._links = {number: links}
        narrow._pieces = {n: self._pieces[n] for n in set(links.pieces.tolist())}
        narrow._number = {index: number}
        return narrow

    def read(
        self, index: int, piece: Piece, streams: frozenset[str], decode: Decode | None
    ) -> Iterator[Batch]:
        """The piece's own samples, each with the streams that lie elsewhere."""
        links = self._links[self._number[index]]
        start = 0
        with RowFetcher(self._access) as fetcher:
            for batch in read_piece(self._access, piece, streams, decode):
                stop = start + len(batch)
                joined = self._joined(batch, links, start, stop, fetcher)
                if len(joined):
                    yield joined
                start = stop

    def _joined(
        self, batch: Batch, links: Links, start: int, stop: int, fetcher: RowFetcher
    ) -> Batch:
        keep = links.keep[start:stop]
        place = np.cumsum(keep) - 1  # old position -> position among the kept
        kept = int(keep.sum())
        found: dict[str, dict[int, Column]] = {}
        low, high = np.searchsorted(links.rows, (start, stop))
        for k in range(low, high):
            other = self._pieces[links.pieces[k]]
            at = other.start + int(links.at[k])
            for stream, files in other.files.items():
                i = int(place[links.rows[k] - start])
                found.setdefault(stream, {})[i] = fetcher.fetch(files, at)
        columns: Mapping[str, Column] = {
            **{stream: column.take(keep) for stream, column in batch.columns.items()},
            **{stream: stacked(stream, parts, kept) for stream, parts in found.items()},
        }
        texts = batch.texts
        return replace(
            batch,
            ids=batch.id_array[keep].tobytes(),
            columns=columns,
            texts=lambda: _kept_texts(texts(), keep),
        )


def _kept_texts(texts: Texts, keep: NDArray[np.bool_]) -> Texts:
    keys, sources, spans = texts
    where = np.flatnonzero(keep).tolist()
    return (
        [keys[i] for i in where],
        [sources[i] for i in where],
        None if spans is None else [spans[i] for i in where],
    )
