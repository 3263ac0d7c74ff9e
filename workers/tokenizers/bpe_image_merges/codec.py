"""A merge table put to work: grids of codes to ids and back, whatever the mode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image_merges import priority, region2d, sequence
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import MergeTable
from tokenmill.workers.tokenizers.bpe_image_merges.region2d import Regions
from tokenmill.workers.tokenizers.bpe_image_merges.sequence import Pairs
from tokenmill.workers.tokenizers.bpe_image_merges.shapes import BadRule


class MergeCodec:
    """Immutable and without state between calls. Raises TokenizerError for a table that lies."""

    def __init__(self, table: MergeTable, *, where: str = "checkpoint") -> None:
        self.table = table
        self._regions: Regions | None = None
        self._pairs: Pairs | None = None
        try:
            if table.mode == "region2d":
                self._regions = Regions.of(table.vocab, table.rules)
            else:
                # in sequences rule 0 is the only one of two dimensions
                apart = 1 if table.mode == "being-vl-0.5" else 0
                self._pairs = Pairs.of(table.vocab, table.rules, apart=apart)
        except BadRule as error:
            raise TokenizerError(
                "the merge table makes no sense",
                where=where,
                why=str(error),
                remedy="learn it again, or restore the file",
            ) from None

    @property
    def lossless(self) -> bool:
        return self._regions is not None

    def encode(self, grids: Grids) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Flat ids and offsets int64[n + 1]; sequence i depends on grid i alone.

        Every code is below `table.vocab`: the caller has looked.
        """
        if self._regions is not None:
            return region2d.encode(grids, self._regions)
        assert self._pairs is not None
        if self.table.mode == "priority":
            return priority.encode(grids, self._pairs)
        return sequence.encode(grids, self._pairs)

    def decode(self, ids: NDArray[Any], height: int, width: int) -> NDArray[np.int32]:
        """The grid of codes, int32[H, W]. Raises TokenizerError where the mode cannot say it,
        ValueError where the ids are no grid of this size."""
        self.check_lossless()
        assert self._regions is not None
        return region2d.decode(ids.astype(np.int32), height, width, self._regions)

    def check_lossless(self) -> None:
        """Raises TokenizerError where the mode loses what decoding needs."""
        if not self.lossless:
            raise TokenizerError(
                f"merges of the mode {self.table.mode!r} cannot be decoded",
                why="one id stands for pairs in both directions: the grid is not in the ids",
                remedy="keep the `vq` stream beside it, or learn merges of the mode region2d",
            )
