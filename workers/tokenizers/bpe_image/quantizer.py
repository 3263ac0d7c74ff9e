"""Nearest codes, in float32 whatever the network's precision: ids must not hang on rounding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Distances held at once: 64 MiB, so that 16,384 codes take 1,024 latents at a time.
_DISTANCES = 1 << 24


def code_vectors(codebook: Tensor, *, normalised: bool) -> Tensor:
    """float32[n, d]: the codebook as latents are compared with it, and as decoders are fed."""
    table = codebook.detach().float().clone()  # the network's own may change its precision
    return functional.normalize(table, dim=1, eps=1e-12) if normalised else table


def nearest(latents: Tensor, table: Tensor, *, normalised: bool) -> Tensor:
    """int64[B, h, w] for latents [B, d, h, w] and the table of `code_vectors`.

    argmin of |z|^2 + |e|^2 - 2 z.e; on a tie the lowest index.
    """
    b, d, h, w = latents.shape
    flat = latents.float().permute(0, 2, 3, 1).reshape(-1, d)
    if normalised:
        flat = functional.normalize(flat, dim=1, eps=1e-12)
    squares = table.square().sum(dim=1)
    rows = max(1, _DISTANCES // len(table))
    found = []
    for part in torch.split(flat, rows):
        distances = part.square().sum(dim=1, keepdim=True) + squares - 2 * (part @ table.T)
        found.append(distances.argmin(dim=1))
    return torch.cat(found).reshape(b, h, w)
