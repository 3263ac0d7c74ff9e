"""In which order the ids of a sample with axes become a sequence. Stored ids are C-ordered.

raster       as stored: rows of a grid, codebook after codebook, scale after scale
columns      the last two axes swapped: a grid read column by column
morton       the last two axes along a Z curve (Morton 1966): neighbours stay near each other
interleaved  [codebook, frame] read frame by frame: all codebooks of a frame together
delayed      interleaved with codebook k shifted by k frames (MusicGen, Copet et al. 2023, fig. 1);
             the K(K-1) places before and after hold a fill token
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError

Flattening = Literal["raster", "columns", "morton", "interleaved", "delayed"]
FLATTENINGS: tuple[str, ...] = get_args(Flattening)
OF_CODEBOOKS = ("interleaved", "delayed")


def extra_tokens(order: Flattening, codebooks: int) -> int:
    """How many more tokens than ids a sequence has."""
    return codebooks * (codebooks - 1) if order == "delayed" else 0


def check_flattening(order: Flattening, axes: tuple[str, ...], stream: str) -> None:
    """Raises JobError where an order cannot be applied to these axes."""
    if order not in FLATTENINGS:
        raise JobError(
            f"no flattening order {order!r}",
            where=f"stream {stream!r}",
            remedy=f"one of {', '.join(FLATTENINGS)}",
        )
    if order in OF_CODEBOOKS and axes != ("codebook", "frame"):
        raise JobError(
            f"{order} is an order of codebooks and frames",
            where=f"stream {stream!r}",
            why=f"its axes are {', '.join(axes)}",
        )
    if order in ("columns", "morton") and (len(axes) < 2 or "codebook" in axes):
        raise JobError(
            f"{order} is an order of grids",
            where=f"stream {stream!r}",
            why=f"its axes are {', '.join(axes)}",
        )


@lru_cache(maxsize=512)
def positions(order: Flattening, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """For each token of the sequence the place of its id among the stored ids; -1 is a fill."""
    ids = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    if order == "raster":
        found = ids.reshape(-1)
    elif order == "columns":
        found = np.swapaxes(ids, -1, -2).reshape(-1)
    elif order == "morton":
        found = ids.reshape(-1, shape[-2] * shape[-1])[:, _z_curve(shape[-2], shape[-1])].reshape(
            -1
        )
    elif order == "interleaved":
        found = ids.T.reshape(-1)
    else:
        found = _delayed(ids)
    found = np.ascontiguousarray(found)
    found.flags.writeable = False
    return found


def _z_curve(height: int, width: int) -> NDArray[np.int64]:
    """The cells of a grid, row-major numbers, by the interleaved bits of row and column."""
    row, column = np.divmod(np.arange(height * width, dtype=np.int64), width)
    code = np.zeros(height * width, np.int64)
    for bit in range(max(height, width).bit_length()):
        code |= ((row >> bit) & 1) << (2 * bit + 1) | ((column >> bit) & 1) << (2 * bit)
    return np.argsort(code, kind="stable")


def _delayed(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    codebooks, frames = ids.shape
    grid = np.full((frames + codebooks - 1, codebooks), -1, np.int64)
    for k in range(codebooks):
        grid[k : k + frames, k] = ids[k]
    return grid.reshape(-1)


def codebook_of(order: Flattening, shape: tuple[int, ...], codebooks: int) -> NDArray[np.int64]:
    """The codebook of each token of the sequence (that of its place, for a fill)."""
    where = positions(order, shape)
    if codebooks == 1:
        return np.zeros(len(where), np.int64)
    if order in OF_CODEBOOKS:
        return np.arange(len(where), dtype=np.int64) % codebooks
    return where // max(1, int(np.prod(shape[1:])))
