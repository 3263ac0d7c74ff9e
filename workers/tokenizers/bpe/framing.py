"""BOS and EOS around every document of a flat batch, and the dtype that the vocabulary needs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tokenmill.schemas.tokenizer import Ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    bos: int | None = None
    eos: int | None = None

    def strip(self, ids: list[int]) -> list[int]:
        """Without the frame, as far as it is there: a reader may have cut the sequence."""
        if self.bos is not None and ids[:1] == [self.bos]:
            ids = ids[1:]
        if self.eos is not None and ids[-1:] == [self.eos]:
            ids = ids[:-1]
        return ids


def frame(
    ids: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    frames: Frames,
    faults: Collection[int],
    dtype: DTypeLike,
) -> tuple[Ids, NDArray[np.int64]]:
    """The batch with its frames; documents at fault stay empty."""
    if frames.bos is None and frames.eos is None:
        return ids.astype(dtype, copy=False), offsets
    before, after = int(frames.bos is not None), int(frames.eos is not None)
    framed = np.ones(len(offsets) - 1, bool)
    framed[list(faults)] = False
    added = np.concatenate([[0], np.cumsum(framed * (before + after))])
    ends = offsets + added
    out: Ids = np.empty(int(ends[-1]), dtype)
    text = np.ones(len(out), bool)
    if frames.bos is not None:
        text[ends[:-1][framed]] = False
        out[ends[:-1][framed]] = frames.bos
    if frames.eos is not None:
        text[ends[1:][framed] - 1] = False
        out[ends[1:][framed] - 1] = frames.eos
    out[text] = ids
    return out, ends
