"""Pictures for training: split by hash, kept at three scales, cut into random crops. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.tokenizer import Fields
from tokenmill.workers.tokenizers.bpe_image.pictures import Bounds, frames
from tokenmill.workers.tokenizers.bpe_image.presets import Crop

Pixels = NDArray[np.uint8]

# Shares of the crops from pictures at 2, 1 and 1/2 times `size`: detail, the whole, the coarse.
_SCALES = ((2.0, 0.2), (1.0, 0.5), (0.5, 0.3))
_SPLIT = 10_000


@dataclass(kw_only=True)
class Corpus:
    """training: per picture its scales, uint8 [h, w, 3]. held_out: square crops [size, size, 3]."""

    training: list[list[Pixels]] = field(default_factory=list)
    held_out: list[Pixels] = field(default_factory=list)
    squares: list[Pixels] = field(default_factory=list)  # of the training pictures, for the bar
    skipped: int = 0
    sha256: str = ""


def gather(
    samples: Iterator[Fields], *, size: int, share: float, most: int, bounds: Bounds
) -> Corpus:
    """Read up to `most` pictures. A picture is held out by the hash of its bytes, `share` of them;
    what cannot be decoded is skipped and counted."""
    corpus, digest = Corpus(), hashlib.sha256()
    square = Crop(preset="chameleon", size=size)
    for fields in samples:
        if len(corpus.squares) + len(corpus.held_out) >= most:
            break
        value = fields["image"]
        mark = hashlib.sha256(_bytes(value)).digest()
        try:
            image = next(frames(value, "first", bounds))
            pixels = square(image)
        except SampleError:
            corpus.skipped += 1
            continue
        digest.update(mark)
        if int.from_bytes(mark[:8], "big") % _SPLIT < share * _SPLIT:
            corpus.held_out.append(pixels)
            continue
        corpus.squares.append(pixels)
        corpus.training.append([_at(image, round(size * scale)) for scale, _ in _SCALES])
    corpus.sha256 = digest.hexdigest()
    return corpus


def _bytes(value: Any) -> bytes:
    return value.tobytes() if isinstance(value, np.ndarray) else bytes(value)


def _at(image: Image.Image, side: int) -> Pixels:
    """The whole picture, its short side at most `side`; alpha on white."""
    keep = min(side, min(image.size))
    return Crop(preset="chameleon", size=keep, aspect="keep")(image)


class Sampler:
    """Seeded random crops: a picture, a scale, a place, mirrored and turned."""

    def __init__(self, pictures: list[list[Pixels]], seed: int) -> None:
        self._pictures = pictures
        self._rng = np.random.default_rng(seed)

    def batch(self, count: int, side: int) -> NDArray[np.float32]:
        """float32 [count, 3, side, side] in [-1, 1]."""
        crops = np.stack([self._crop(side) for _ in range(count)])
        return np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1

    def _crop(self, side: int) -> Pixels:
        rng = self._rng
        scales = self._pictures[rng.integers(len(self._pictures))]
        picture = scales[rng.choice(len(_SCALES), p=[p for _, p in _SCALES])]
        height, width = picture.shape[:2]
        if min(height, width) < side:
            short = -(-side // min(height, width))
            picture = np.tile(picture, (short, short, 1))
            height, width = picture.shape[:2]
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = picture[y : y + side, x : x + side]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.rot90(crop, int(rng.integers(4))) if rng.random() < 0.5 else crop
