"""What the tokens of a sample are: its streams one after the other, each flattened, cut, moved to
its place in the vocabulary and put between its special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.store.stream.flattening import (
    Flattening,
    codebook_of,
    extra_tokens,
    positions,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLayout:
    """How one stream of a sample becomes tokens.

    offsets: per codebook, added to local ids. before, after: literal tokens around the span. cut:
    at most so many tokens of the flattened ids. fill: token of the places that `delayed` leaves
    open. code: number of the stream in `Batch.modality`. dtype: of the stored ids.
    """

    stream: str
    dtype: str
    axes: tuple[str, ...]
    codebooks: int = 1
    offsets: tuple[int, ...] = (0,)
    order: Flattening = "raster"
    cut: int | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    fill: int = 0
    code: int = 1
    in_loss: bool = True

    @property
    def around(self) -> int:
        return len(self.before) + len(self.after)

    @property
    def plain(self) -> bool:
        """Whether the stored ids, plus one offset, are the tokens."""
        return self.order == "raster" and len(set(self.offsets)) == 1

    @property
    def offset(self) -> int:
        return self.offsets[0]

    @property
    def shaped(self) -> bool:
        """Whether the sample's own shape is needed."""
        return not self.plain and self.axes != ("codebook", "frame")

    def kept(self, raw: NDArray[Any]) -> NDArray[np.int64]:
        """Tokens of a span, without the specials, of samples with so many ids (> 0)."""
        lengths = raw.astype(np.int64) + extra_tokens(self.order, self.codebooks)
        return lengths if self.cut is None else np.minimum(lengths, self.cut)

    def known_tokens(self, tokens: NDArray[np.int64], samples: NDArray[np.int64]) -> Any:
        """Tokens with specials of `samples` samples of `tokens` ids in all; None with a cut."""
        if self.cut is not None:
            return None
        return tokens + samples * (self.around + extra_tokens(self.order, self.codebooks))

    def shape(self, raw: int) -> tuple[int, ...]:
        return (self.codebooks, raw // self.codebooks)


@lru_cache(maxsize=512)
def flattened(
    layout: StreamLayout, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(place of each token's id or -1, what to add to it) for a sample of this shape."""
    where = positions(layout.order, shape)
    add = np.array(layout.offsets, np.int64)[codebook_of(layout.order, shape, layout.codebooks)]
    return where, np.where(where < 0, layout.fill, add)
