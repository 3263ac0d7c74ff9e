"""A part of a dataset that another process can read alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenmill.store.access import Access
from tokenmill.store.alignment import Piece
from tokenmill.store.gather import read_piece
from tokenmill.store.joining import Join
from tokenmill.store.rows import Batch


@dataclass(frozen=True, slots=True)
class Part:
    """Made by `Dataset.parts`; picklable, without secrets: each process has its own credentials.

    join: where the streams of its samples were cut differently, what is to be looked up by id.
    """

    access: Access
    piece: Piece
    streams: frozenset[str]
    index: int = 0
    join: Join | None = None

    @property
    def rows(self) -> int:
        return self.piece.rows if self.join is None else self.join.rows(self.index)

    @property
    def paths(self) -> tuple[str, ...]:
        """Its own shard files, relative to the store."""
        return tuple(sorted(f.path for files in self.piece.files.values() for f in files))

    def batches(self) -> Iterator[Batch]:
        """Aligned samples, as `Dataset.batches` gives them. Raises CorruptStore."""
        if self.join is None:
            return read_piece(self.access, self.piece, self.streams)
        return self.join.read(self.index, self.piece, self.streams, None)
