"""From pictures to the pixels that a published pipeline would have made of them. No torch.

    preset     alpha                resize (Pillow, on the CPU)                    pixel values
    chameleon  blended on white     shortest side, LANCZOS, long side rounded      u8 / 255 * 2 - 1
    being-vl   blended on white     shortest side, LANCZOS, long side truncated    u8 * 0.0078 - 1
    adm        dropped              halved by BOX, then BICUBIC, rounded           u8 / 255 * 2 - 1

Then a centre crop. Sources: Chameleon's image tokenizer, the Chameleon image processor of
transformers 4.45 (which Being-VL uses), the centre crop of ADM (guided-diffusion) as in LlamaGen.
`round` is Python's, half to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.schemas.errors import SampleError

Preset = Literal["chameleon", "being-vl", "adm"]
PRESETS: tuple[str, ...] = get_args(Preset)
Aspect = Literal["square", "keep"]
Pixels = NDArray[np.uint8]  # [H, W, 3]

# With `aspect: keep`, a picture's long side is cropped to so many short ones.
LONGEST = 4
# Resizing a strip of 1 x 50,000 pixels to a short side of 512 would make 13 billion.
_MOST_RATIO = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """size: of the short side, in pixels. multiple: sides are multiples of it (the factor)."""

    preset: Preset
    size: int
    aspect: Aspect = "square"
    multiple: int = 1

    def __call__(self, image: Image.Image) -> Pixels:
        """uint8 [H, W, 3] of a picture in mode RGB or RGBA.

        square: H = W = size. keep: the short side is size, the long one what the preset's resize
        makes of it, cropped at the centre to a multiple and to at most 4 sizes.
        Raises SampleError: too-elongated.
        """
        if max(image.size) > _MOST_RATIO * min(image.size):
            raise SampleError(
                "too-elongated",
                f"{image.size[0]} x {image.size[1]} pixels: one side is more than {_MOST_RATIO} "
                "times the other",
                remedy="cut it before",
            )
        rgb = _dropped(image) if self.preset == "adm" else _blended(image)
        resized = _halved_then_cubic(rgb, self.size) if self.preset == "adm" else self._lanczos(rgb)
        if self.aspect == "square":
            return _centre(resized, self.size, self.size)
        most = LONGEST * self.size
        width, height = (min(s, most) // self.multiple * self.multiple for s in resized.size)
        return _centre(resized, width, height)

    def _lanczos(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.preset == "chameleon":
            scale = self.size / min(width, height)
            sides = (round(scale * width), round(scale * height))
            return image.resize(sides, resample=Image.Resampling.LANCZOS)
        short, long = min(width, height), max(width, height)
        other = int(self.size * long / short)
        sides = (self.size, other) if width <= height else (other, self.size)
        return image.resize(sides, resample=Image.Resampling.LANCZOS)


def _dropped(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _blended(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    values = np.asarray(image.convert("RGBA"))
    if not (values[:, :, 3] < 255).any():
        return image.convert("RGB")
    alpha = (values[:, :, 3] / 255.0)[:, :, np.newaxis]
    blended = (1 - alpha) * 255 + alpha * values[:, :, :3]
    return Image.fromarray(blended.astype(np.uint8))


def _halved_then_cubic(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    sides = (round(image.size[0] * scale), round(image.size[1] * scale))
    return image.resize(sides, resample=Image.Resampling.BICUBIC)


def _centre(image: Image.Image, width: int, height: int) -> Pixels:
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return np.ascontiguousarray(np.asarray(image)[top : top + height, left : left + width])


def to_float(pixels: Any, preset: str) -> Any:
    """Pixel values 0 to 255, as float32 array or tensor, to the network's range."""
    return pixels * np.float32(0.0078).item() - 1 if preset == "being-vl" else pixels / 255 * 2 - 1


def to_pixels(values: NDArray[np.float32], preset: str) -> Pixels:
    """The network's output back to uint8, as each published decoder does it."""
    if preset == "chameleon":
        scaled: NDArray[Any] = (np.clip(values, -1, 1) + 1) / 2 * 255
    elif preset == "being-vl":
        scaled = (values + 1) / np.float32(0.0078)
    else:
        scaled = values * np.float32(127.5) + 128
    pixels: Pixels = np.clip(scaled, 0, 255).astype(np.uint8)
    return pixels
