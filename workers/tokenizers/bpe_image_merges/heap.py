"""A binary heap of integers in a plain array, for compiled code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenmill.workers.tokenizers.bpe_image_merges.compiled import Int, compiled


@compiled
def push(heap: NDArray[np.int64], size: Int, item: Int) -> None:
    """`item` into heap[:size]; heap has room for size + 1."""
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if heap[up] <= item:
            break
        heap[at] = heap[up]
        at = up
    heap[at] = item


@compiled
def pop(heap: NDArray[np.int64], size: Int) -> Int:
    """The least of heap[:size], which has size - 1 afterwards."""
    least = heap[0]
    last = heap[size - 1]
    size -= 1
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        if down + 1 < size and heap[down + 1] < heap[down]:
            down += 1
        if heap[down] >= last:
            break
        heap[at] = heap[down]
        at = down
    heap[at] = last
    return least
