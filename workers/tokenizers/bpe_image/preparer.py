"""Bytes of a picture to windows of pixels, in a decode child. No torch.

One window per frame: `pixels` uint8 [H, W, 3], sides multiples of the tokenizer's factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenmill.schemas.tokenizer import Fields, Window
from tokenmill.workers.tokenizers.bpe_image.pictures import Bounds, frames
from tokenmill.workers.tokenizers.bpe_image.presets import Crop


@dataclass(frozen=True, kw_only=True)
class ImagePreparer:
    """Picklable. Raises SampleError, see pictures.frames and presets.Crop."""

    crop: Crop
    which: Literal["first", "all"]
    bounds: Bounds

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        waiting: Window | None = None
        for number, image in enumerate(frames(fields["image"], self.which, self.bounds)):
            if waiting is not None:
                yield waiting
            pixels = self.crop(image)
            height, width = pixels.shape[:2]
            waiting = Window(
                arrays={"pixels": pixels},
                index=number,
                last=self.which == "first",
                cost=height * width,
                bucket=(height, width),
            )
        if waiting is not None:
            yield Window(
                arrays=waiting.arrays,
                index=waiting.index,
                last=True,
                cost=waiting.cost,
                bucket=waiting.bucket,
            )
