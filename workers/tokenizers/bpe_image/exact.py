"""Arithmetic that gives the same ids wherever a sample stands: TF32 off, no autotuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact(threads: int) -> Iterator[None]:
    """No gradients, full float32, fixed algorithms, `threads` cores; restored afterwards.

    Convolutions on the CPU sum in another order with another number of threads (up to 1e-5 on the
    latents), so that number is part of the recipe.
    """
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)
