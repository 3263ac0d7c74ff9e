"""The state that a sample's windows hand on: attached before `encode`, taken off its pieces.

Only the newest carry of a sample is held, and only here: pieces that wait to be joined hold none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.schemas.tokenizer import Piece, Window

Encode = Callable[[Sequence[Window]], Sequence[Piece]]


def encode_carrying(
    encode: Encode, held: Sequence[tuple[Hashable, Window]], carries: dict[Any, Any]
) -> list[Piece]:
    """The pieces of windows that come with their sample's name; `carries` is kept up to date.

    Where `encode` raises, `carries` is as before: the same windows may be tried again, or fewer.
    """
    windows, begun = [], set()
    for sample, window in held:
        if sample not in begun and sample in carries:
            window = replace(window, carry=carries[sample])
        begun.add(sample)
        windows.append(window)
    pieces = encode(windows)
    made = []
    for (sample, window), piece in zip(held, pieces, strict=True):
        carries.pop(sample, None)
        if piece.carry is not None:
            if not window.last:
                carries[sample] = piece.carry
            piece = replace(piece, carry=None)
        made.append(piece)
    return made
