"""What a token of `region2d` looks like: the cells it covers and the codes in them.

A token's shape follows from the rules alone, so a table from a stranger is checked here: every
rule must join two regions that touch, do not overlap, and lie in raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.keys import MAX_DX, MAX_DY, MAX_TOKENS

# A shape of 1,024 cells spans at most 1,023 columns to either side: its keys always fit.
MAX_CELLS = 1024
# Rules that double every time describe 2^r cells: a hostile table ends here, not in memory.
MAX_TABLE_CELLS = 1 << 26


class BadRule(ValueError):
    """Rule `number` cannot be part of a table; the message says why."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"rule {number}: {why}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Cells of all tokens, one token after the other.

    starts: int64[T + 1]; token t has the cells starts[t] … starts[t + 1], its anchor first.
    dy, dx: int32, from the anchor; code: int32, the image code in the cell.
    """

    starts: NDArray[np.int64]
    dy: NDArray[np.int32]
    dx: NDArray[np.int32]
    code: NDArray[np.int32]

    def cells(self, token: int) -> slice:
        return slice(int(self.starts[token]), int(self.starts[token + 1]))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Cells of each token: int64[T]."""
        return np.diff(self.starts)


def shapes_of(vocab: int, rules: NDArray[np.int32]) -> Shapes:
    """Shapes of codes 0 … vocab - 1 and of vocab + r for every rule (a, b, dy, dx).

    Raises BadRule.
    """
    if vocab + len(rules) > MAX_TOKENS:
        raise BadRule(len(rules) - 1, f"more than {MAX_TOKENS:,} tokens")
    sizes = _sizes(vocab, rules)
    starts = np.zeros(vocab + len(rules) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    if starts[-1] > MAX_TABLE_CELLS:
        raise BadRule(len(rules) - 1, f"the tokens have {starts[-1]:,} cells together")
    total = int(starts[-1])
    dy, dx = np.zeros(total, np.int32), np.zeros(total, np.int32)
    code = np.zeros(total, np.int32)
    code[:vocab] = np.arange(vocab)
    shapes = Shapes(starts=starts, dy=dy, dx=dx, code=code)
    for number, (a, b, down, right) in enumerate(rules.tolist()):
        _check_way(number, down, right)
        here, first, second = shapes.cells(vocab + number), shapes.cells(a), shapes.cells(b)
        dy[here] = np.concatenate([dy[first], dy[second] + down])
        dx[here] = np.concatenate([dx[first], dx[second] + right])
        code[here] = np.concatenate([code[first], code[second]])
        size = first.stop - first.start
        _check_touch(number, list(zip(dy[here].tolist(), dx[here].tolist(), strict=True)), size)
    return shapes


def _sizes(vocab: int, rules: NDArray[np.int32]) -> list[int]:
    sizes = [1] * vocab
    seen: set[tuple[int, ...]] = set()
    for number, row in enumerate(rules.tolist()):
        a, b = row[0], row[1]
        if not (0 <= a < vocab + number and 0 <= b < vocab + number):
            raise BadRule(
                number, f"it joins {a} and {b}, and only ids below {vocab + number} exist"
            )
        if tuple(row) in seen:
            raise BadRule(number, f"{tuple(row)} stands twice")
        seen.add(tuple(row))
        sizes.append(sizes[a] + sizes[b])
        if sizes[-1] > MAX_CELLS:
            raise BadRule(number, f"its token has {sizes[-1]:,} cells, more than {MAX_CELLS:,}")
    return sizes


def _check_way(number: int, down: int, right: int) -> None:
    after = down > 0 or (down == 0 and right > 0)
    if not after or down > MAX_DY or abs(right) > MAX_DX:
        raise BadRule(number, f"({down}, {right}) does not lead on in raster order")


def _check_touch(number: int, cells: list[tuple[int, int]], size: int) -> None:
    first, second = set(cells[:size]), set(cells[size:])
    if first & second:
        raise BadRule(number, "its regions overlap")
    if not any({(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & first for y, x in second):
        raise BadRule(number, "its regions do not touch")
