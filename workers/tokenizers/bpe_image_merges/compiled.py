"""Loops over cells, compiled by numba.

Why numba and not numpy or C: merging is a walk in which every step depends on the last, so there
is nothing to vectorise within a grid; and a C extension would need a compiler, or a wheel of ours,
on every platform. numba is one maintained wheel, releases the GIL, and keeps the machine code on
disk, so that only the first process on a node waits for it (about ten seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

# An integer of Python or numpy, of any width: compiled code tells them apart by itself.
Int = Any
F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function` as machine code, made at its first call, without the GIL."""
    try:
        made = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder of this machine may be written: compile in every process
        made = numba.njit(nogil=True)(function)
    return cast(F, made)
