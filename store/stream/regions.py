"""Several mapped files as one flat array, so that a batch is one gather and not one per file.

Maps lie anywhere in the address space; the array begins at the lowest and ends with the highest of
them. What is between is never touched: every start comes from a map whose bounds were checked when
it was opened (mapped.py), and the array keeps all maps alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Memory:
    """Numpy's view of an address range, and what keeps it mapped."""

    def __init__(self, address: int, count: int, dtype: np.dtype[Any], keep: Sequence[Any]) -> None:
        self.keep = tuple(keep)
        self.__array_interface__ = {
            "data": (address, True),  # read-only
            "shape": (count,),
            "typestr": dtype.str,
            "version": 3,
        }


def one_array(
    regions: Sequence[NDArray[Any] | None],
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(one array over all regions, where each begins in it: int64[len(regions)]).

    None is a region nobody will read. Regions of different dtypes are copied into the widest.
    """
    present = [r for r in regions if r is not None]
    if not present:
        return np.zeros(0, np.uint8), np.zeros(len(regions), np.int64)
    dtype = np.result_type(*present)
    same = {i: r.astype(dtype, copy=False) for i, r in enumerate(regions) if r is not None}
    places = {i: int(r.__array_interface__["data"][0]) for i, r in same.items()}
    base = min(places.values())
    end = max(places[i] + r.nbytes for i, r in same.items())
    if any((place - base) % dtype.itemsize for place in places.values()):
        return _copied(same, len(regions))
    memory = _Memory(base, (end - base) // dtype.itemsize, dtype, list(same.values()))
    shifts = np.zeros(len(regions), np.int64)
    for i, place in places.items():
        shifts[i] = (place - base) // dtype.itemsize
    return np.asarray(memory), shifts


def _copied(regions: dict[int, NDArray[Any]], count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Maps are page-aligned; should some allocator not be, they are put together."""
    shifts = np.zeros(count, np.int64)
    at = 0
    for i, region in regions.items():
        shifts[i] = at
        at += len(region)
    return np.concatenate(list(regions.values())), shifts
