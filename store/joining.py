"""Streams of one pipeline that were cut differently, joined by sample id.

Only pieces that lack a stream which some other piece has on its own come here (`Plan.partial`):
their sample ids, and nothing else, are held in memory, about 40 bytes a row while sorting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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


def link(streams: Sequence[frozenset[str]], ids: Sequence[NDArray[np.uint8]]) -> list[Links]:
    """For each piece, given its streams and sample ids (uint8[rows, 16]).

    A sample is read where it comes first; another piece's row joins it if it brings only streams
    that the sample has not got.
    """
    counts = [len(i) for i in ids]
    piece = np.repeat(np.arange(len(ids)), counts)
    row = np.concatenate([np.arange(n) for n in counts]) if ids else np.zeros(0, np.int64)
    keep = np.ones(len(piece), bool)
    joins: list[tuple[int, int]] = []  # (leader, follower), positions in the concatenation
    for group in _same(np.concatenate(ids) if ids else np.zeros((0, 16), np.uint8)):
        _join_group(group, piece, streams, keep, joins)
    joined = np.array(sorted(joins), np.int64).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    links = []
    for number in range(len(ids)):
        mine = joined[piece[joined[:, 0]] == number]
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


class Join:
    """The partial pieces of a plan, linked; reads their ids once, when it is made."""

    def __init__(self, access: Access, plan: Plan) -> None:
        self._access = access
        self._pieces = [plan.pieces[i] for i in plan.partial]
        self._links = link(
            [piece.streams for piece in self._pieces],
            [read_ids(access, piece) for piece in self._pieces],
        )
        self._number = {index: number for number, index in enumerate(plan.partial)}

    @property
    def given_away(self) -> int:
        """Rows that are read with an earlier piece: they are not samples of their own."""
        return sum(int((~links.keep).sum()) for links in self._links)

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
