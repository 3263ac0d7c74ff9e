"""What a learned tokenizer must beat: a k-means codebook of square patches, as many codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 8192


def patches(pictures: Sequence[NDArray[np.uint8]], side: int) -> Tensor:
    """float32 [n, side * side * 3], 0 to 255: the pictures' tiles, whole ones only."""
    tiles = []
    for picture in pictures:
        rows, columns = picture.shape[0] // side, picture.shape[1] // side
        cut = picture[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        tiles.append(cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1))
    return torch.from_numpy(np.concatenate(tiles)).float()


def kmeans(points: Tensor, count: int, *, rounds: int, seed: int) -> Tensor:
    """[count, d]: Lloyd's algorithm from random points; an empty cluster takes a random point."""
    generator = torch.Generator().manual_seed(seed)
    if len(points) < count:
        points = points.repeat(-(-count // len(points)), 1)
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        labels = assign(points, centres)
        counts = torch.bincount(labels, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        again = torch.randint(len(points), (len(empty),), generator=generator)
        centres[empty] = points[again]
    return centres


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """int64 [n]: the nearest centre of each point."""
    squares = centres.square().sum(dim=1)
    parts = torch.split(points, _CHUNK)
    return torch.cat([(squares - 2 * (part @ centres.T)).argmin(dim=1) for part in parts])


def psnr(error: float) -> float:
    """dB for a mean squared error on the scale 0 to 255."""
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))


def bar_psnr(
    training: Sequence[NDArray[np.uint8]],
    held_out: Sequence[NDArray[np.uint8]],
    *,
    side: int,
    codes: int,
    most: int,
    rounds: int,
    seed: int,
) -> float:
    """Held-out PSNR (dB, of the mean squared error over all pixels) of the patch codebook."""
    points = patches(training, side)
    generator = torch.Generator().manual_seed(seed)
    chosen = points[torch.randperm(len(points), generator=generator)[:most]]
    centres = kmeans(chosen, codes, rounds=rounds, seed=seed).round().clamp(0, 255)
    tested = patches(held_out, side)
    return psnr(float((tested - centres[assign(tested, centres)]).square().mean()))
