"""Grids of codes of any shapes, flat: what encoding, decoding and fitting work on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Grids:
    """n grids. Grid i is codes[starts[i]:starts[i + 1]], row by row, of shapes[i] = (H, W).

    codes: int32[cells]; shapes: int32[n, 2], each side at least 1; starts: int64[n + 1].
    """

    codes: NDArray[np.int32]
    shapes: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shapes)

    @classmethod
    def of(cls, grids: Iterable[NDArray[Any]]) -> Grids:
        """From two-dimensional integer arrays. Raises ValueError for any other."""
        arrays = [np.asarray(grid) for grid in grids]
        for array in arrays:
            if array.ndim != 2 or not array.size or array.dtype.kind not in "ui":
                raise ValueError(f"not a grid of codes: {array.dtype}{array.shape}")
        shapes = np.array([a.shape for a in arrays], np.int32).reshape(-1, 2)
        flat = [a.astype(np.int32, copy=False).ravel() for a in arrays]
        return cls.flat(np.concatenate(flat) if flat else np.zeros(0, np.int32), shapes)

    @classmethod
    def flat(cls, codes: NDArray[np.int32], shapes: NDArray[np.int32]) -> Grids:
        starts = np.zeros(len(shapes) + 1, np.int64)
        np.cumsum(shapes[:, 0].astype(np.int64) * shapes[:, 1], out=starts[1:])
        if starts[-1] != len(codes):
            raise ValueError(f"{len(codes)} codes for grids of {starts[-1]} cells")
        return cls(codes=codes, shapes=shapes, starts=starts)

    def slice(self, start: int, stop: int) -> Grids:
        first, last = self.starts[start], self.starts[stop]
        return Grids.flat(self.codes[first:last], self.shapes[start:stop])

    def grid(self, i: int) -> NDArray[np.int32]:
        """int32[H, W], a view."""
        return self.codes[self.starts[i] : self.starts[i + 1]].reshape(self.shapes[i])

    @classmethod
    def joined(cls, parts: Sequence[Grids]) -> Grids:
        codes = [p.codes for p in parts] or [np.zeros(0, np.int32)]
        shapes = [p.shapes for p in parts] or [np.zeros((0, 2), np.int32)]
        return cls.flat(np.concatenate(codes), np.concatenate(shapes))
