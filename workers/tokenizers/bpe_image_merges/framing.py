"""From a block of grids to the ids of a shard: checks, merging, ids that say the grid's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.identity import json_hash
from tokenmill.workers.tokenizers.bpe_image_merges.codec import MergeCodec
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.settings import Settings

OUTSIDE = "outside"


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What the plug-in makes of grids; picklable.

    grid: "outside", [H, W], or {"max_side": n}: the recipe's word for it. fixed: (H, W) or None.
    sides: how many size ids there are behind codes and merges, 0 for none.
    """

    codec: MergeCodec
    grid: Any
    fixed: tuple[int, int] | None
    sides: int

    @classmethod
    def of(cls, codec: MergeCodec, settings: Settings) -> Framing:
        if isinstance(settings.grid, tuple):
            fixed = settings.grid
            return cls(codec=codec, grid=list(fixed), fixed=fixed, sides=0)
        if settings.grid == OUTSIDE or not codec.lossless:
            return cls(codec=codec, grid=OUTSIDE, fixed=None, sides=0)
        sides = settings.max_side
        return cls(codec=codec, grid={"max_side": sides}, fixed=None, sides=sides)

    @property
    def ids(self) -> int:
        """How many different ids there are."""
        return self.codec.table.tokens + self.sides

    @property
    def decodes(self) -> bool:
        return self.codec.lossless and self.grid != OUTSIDE

    @property
    def space(self) -> str:
        """What an id means: the table, and the size ids behind it."""
        return json_hash({"merges": self.codec.table.space(), "sides": self.sides})

    def checked(self, value: Any) -> NDArray[np.int32]:
        """The value as int32[H, W]. Raises SampleError."""
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "ui" or value.ndim != 2:
            kind = getattr(value, "shape", type(value).__name__)
            raise SampleError("not-a-grid", f"a grid of codes is wanted, found {kind}")
        if not value.size:
            raise SampleError("not-a-grid", f"the grid is empty: {value.shape}")
        low, high = int(value.min()), int(value.max())
        vocab = self.codec.table.vocab
        if low < 0 or high >= vocab:
            raise SampleError(
                "code-out-of-range",
                f"codes from {low} to {high}, and the merges know 0 to {vocab - 1}",
            )
        if self.fixed is not None and value.shape != self.fixed:
            raise SampleError(
                "wrong-grid",
                f"a grid of {value.shape[0]}x{value.shape[1]}, and `grid` says "
                f"{self.fixed[0]}x{self.fixed[1]}",
            )
        if self.sides and max(value.shape) > self.sides:
            raise SampleError(
                "too-large",
                f"a grid of {value.shape[0]}x{value.shape[1]}",
                why=f"max_side is {self.sides}",
                remedy="raise config.max_side",
            )
        return value.astype(np.int32, copy=False)

    def encode(self, grids: Grids) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Ids and offsets int64[n + 1] of checked grids; the ids in the narrowest dtype."""
        ids, offsets = self.codec.encode(grids)
        dtype = np.uint16 if self.ids <= 1 << 16 else np.uint32
        if not self.sides:
            return ids.astype(dtype), offsets
        n = len(grids)
        moved = offsets + 2 * np.arange(n + 1)
        framed = np.empty(len(ids) + 2 * n, dtype)
        size_at = (moved[:-1, None] + np.arange(2)).ravel()
        framed[size_at] = (self.codec.table.tokens + grids.shapes - 1).ravel()
        rest = np.ones(len(framed), np.bool_)
        rest[size_at] = False
        framed[rest] = ids
        return framed, moved

    def decode(self, ids: NDArray[Any]) -> NDArray[Any]:
        """The grid of codes, [H, W]. Raises TokenizerError where the ids hold none."""
        if not self.decodes:
            self.codec.check_lossless()
            raise TokenizerError(
                "these ids do not say the size of their grid",
                why="the stream was made with `grid: outside`",
                remedy="decode the `vq` stream beside it, or make the stream with size ids",
            )
        height, width = self.fixed or self._sizes(ids)
        body = ids[2:] if self.sides else ids
        try:
            grid = self.codec.decode(body, height, width)
        except ValueError as error:
            raise TokenizerError("these ids are no merged grid", why=str(error)) from None
        return grid.astype(np.uint16 if self.codec.table.vocab <= 1 << 16 else np.uint32)

    def _sizes(self, ids: NDArray[Any]) -> tuple[int, int]:
        first = self.codec.table.tokens
        sizes = [int(x) - first + 1 for x in ids[:2]]
        if len(sizes) != 2 or not all(1 <= s <= self.sides for s in sizes):
            raise TokenizerError(
                "these ids are no merged grid", why="they do not begin with a size"
            )
        return sizes[0], sizes[1]
