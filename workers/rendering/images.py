"""Decoded pictures as files: uint8 [H, W, 3], or [T, H, W, 3] for the frames of an animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.schemas.tokenizer import Window

Pixels = NDArray[np.uint8]

_ANIMATED = (".gif", ".webp")
_FRAME_MS = 100
_GAP = 8  # white pixels between two pictures


class ImageRenderer:
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".gif")

    def write(self, media: Pixels, path: Path) -> None:
        if media.ndim == 3:
            Image.fromarray(media).save(path)
        elif path.suffix.lower() in _ANIMATED:
            frames = [Image.fromarray(frame) for frame in media]
            frames[0].save(
                path, save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0
            )
        else:  # a strip of frames
            Image.fromarray(_joined(list(media))).save(path)

    def original(self, fields: Mapping[str, Any], windows: Sequence[Window]) -> Pixels:
        frames: list[Pixels] = [window.arrays["pixels"] for window in windows]
        return np.stack(frames) if len(frames) > 1 else frames[0]

    def beside(self, original: Pixels, decoded: Pixels) -> Pixels:
        if decoded.ndim == 3:
            return _joined([original.reshape(original.shape[-3:]), decoded])
        first = original if original.ndim == 4 else original[None]
        return np.stack([_joined([a, b]) for a, b in zip(first, decoded, strict=True)])


def _joined(pictures: Sequence[Pixels]) -> Pixels:
    """Side by side, with a white gap; heights may differ."""
    height = max(p.shape[0] for p in pictures)
    width = sum(p.shape[1] for p in pictures) + _GAP * (len(pictures) - 1)
    sheet: Pixels = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for picture in pictures:
        sheet[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    return sheet


RENDERER = ImageRenderer()
