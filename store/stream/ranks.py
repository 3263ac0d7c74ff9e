"""Which slots of the global sequence a rank takes.

Step g of global batch B owns slots gB … gB + B - 1; rank r of R takes gB + r, gB + r + R, … Every
rank has the same steps, though in a short last step (or where R does not divide B) shares differ by
one and may be empty: collectives stay in step, and nothing is lost or repeated.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# What becomes of the sequences after the last whole step: delivered as a shorter step, or left out.
Tail = Literal["short", "drop"]


def share(step: int, *, batch: int, rank: int, world: int, end: int | None) -> NDArray[np.int64]:
    """int64 slots of `rank` in `step`, ascending; `end` is the first slot that does not exist."""
    first = step * batch
    last = first + batch if end is None else min(first + batch, end)
    return np.arange(first + rank, max(last, first), world, dtype=np.int64)


def step_count(end: int, batch: int, tail: Tail) -> int:
    """Steps that deliver slots [0, end)."""
    return -(-end // batch) if tail == "short" else end // batch
