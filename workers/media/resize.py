"""Resizing with antialiasing and cropping, in numpy: no GPU library in a decode child.

Bilinear with a filter as wide as the reduction, as torchvision's `Resize(antialias=True)` and
torch's `interpolate(mode="bilinear", antialias=True)` do on floats: within 0.01 of 255 of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Fit = Literal["crop", "pad", "stretch"]
FITS = ("crop", "pad", "stretch")

Pixels = NDArray[np.uint8] | NDArray[np.float32]


class Resizer:
    """Frames [H, W, 3] to float32 [height, width, 3] on the scale of 0 to 255.

    crop: the shorter side becomes `size`'s, then the centre is cut out. pad: the whole frame fits
    in, black around. stretch: sides are scaled by themselves. A frame smaller than `size` grows.
    """

    def __init__(self, size: tuple[int, int], fit: Fit = "crop") -> None:
        self.height, self.width = size
        self._fit = fit

    def __call__(self, frame: Pixels) -> NDArray[np.float32]:
        h, w = self._scaled(*frame.shape[:2])
        return self._cut(scale(frame, (h, w)))

    def _scaled(self, h: int, w: int) -> tuple[int, int]:
        if self._fit == "stretch":
            return self.height, self.width
        by_height = self.height * w  # compared as integers: exact
        by_width = self.width * h
        tall = by_height >= by_width if self._fit == "crop" else by_height <= by_width
        if tall:
            return self.height, max(1, self.height * w // h)
        return max(1, self.width * h // w), self.width

    def _cut(self, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        h, w = frame.shape[:2]
        if (h, w) == (self.height, self.width):
            return frame
        top, left = round((h - self.height) / 2), round((w - self.width) / 2)
        if self._fit == "crop":
            return frame[top : top + self.height, left : left + self.width]
        out = np.zeros((self.height, self.width, 3), np.float32)
        out[-top : -top + h, -left : -left + w] = frame
        return out


def scale(frame: Pixels, size: tuple[int, int]) -> NDArray[np.float32]:
    """The whole frame at another size."""
    out: NDArray[np.float32] = frame.astype(np.float32)
    for axis in (0, 1):
        if out.shape[axis] != size[axis]:
            out = _resampled(out, axis, size[axis])
    return out


def _resampled(frame: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    index, weight = _filter(frame.shape[axis], size)
    shape = [1, 1, 1]
    shape[axis] = size
    out = np.zeros((*frame.shape[:axis], size, *frame.shape[axis + 1 :]), np.float32)
    for tap in range(index.shape[1]):
        out += np.take(frame, index[:, tap], axis=axis) * weight[:, tap].reshape(shape)
    return out


@lru_cache(maxsize=64)
def _filter(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each of `new` positions the source positions and their weights: a triangle as wide as
    the reduction, cut at the border and normalised."""
    ratio = old / new
    reach = max(ratio, 1.0)
    centre = (np.arange(new) + 0.5) * ratio
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + reach + 0.5).astype(np.int64), old)
    taps = int((end - first).max())
    index = first[:, None] + np.arange(taps)
    weight = np.maximum(1 - np.abs((index + 0.5 - centre[:, None]) / reach), 0)
    weight[index >= end[:, None]] = 0
    weight /= weight.sum(1, keepdims=True)
    return np.minimum(index, old - 1).astype(np.intp), weight.astype(np.float32)
