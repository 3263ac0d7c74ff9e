"""FSQ (arXiv 2309.15505) and the diagonal Gaussian: latents to codes and ids, and back.

Arithmetic in float32 whatever the network's precision. The training losses of the official code
(an entropy over a tokens x codebook matrix) have no part in the ids and are not here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-3
LOGVAR = (-30.0, 20.0)


class FiniteScalar:
    """Each latent channel to one of `levels[c]` values; an id is the number with those digits,
    channel 0 the least significant."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = levels
        # on the CPU, also while a model is built without storage
        sizes = torch.tensor(levels, dtype=torch.float64, device="cpu")
        half = (sizes - 1) * (1 + EPS) / 2
        offset = (sizes % 2 == 0) * 0.5
        self._half, self._offset = half.float(), offset.float()
        self._shift = torch.atanh(offset / half).float()
        self._width = torch.tensor([n // 2 for n in levels], device="cpu")
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self._basis = torch.tensor(basis, dtype=torch.int64, device="cpu")

    def bound(self, z: Tensor) -> Tensor:
        """float32, channels at axis 1: within half a step of what rounding can give."""
        half, shift, offset = (self._on(t, z) for t in (self._half, self._shift, self._offset))
        return torch.tanh(z.float() + shift) * half - offset

    def codes(self, z: Tensor) -> Tensor:
        """Latents [B, d, ...] to codes in [-1, 1], the decoder's input, in z's dtype."""
        return (torch.round(self.bound(z)) / self._on(self._width, z)).to(z.dtype)

    def ids(self, z: Tensor) -> Tensor:
        """Latents [B, d, ...] to int64 ids [B, ...]."""
        digits = torch.round(self.bound(z)).to(torch.int64) + self._on(self._width, z)
        return (digits * self._on(self._basis, z)).sum(1)

    def from_ids(self, ids: Tensor) -> Tensor:
        """Ids [B, ...] of any integer dtype to float32 codes [B, d, ...]."""
        digits = ids.long()[:, None]
        sizes = torch.tensor(self.levels)
        digits = digits // self._on(self._basis, digits) % self._on(sizes, digits)
        width = self._on(self._width, digits)
        return (digits - width).float() / width.float()

    def _on(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device).view(1, -1, *[1] * (like.ndim - 2))


def moments(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder output [B, 2 z, ...] to float32 mean and log-variance [B, z, ...], the latter
    clamped as the official code does. The mode is the mean."""
    mean, logvar = latent.float().chunk(2, dim=1)
    return mean, logvar.clamp(*LOGVAR)
