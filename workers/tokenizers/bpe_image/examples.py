"""Pictures of every kind, made on the spot: what the conformance suite feeds image tokenizers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from tokenmill.schemas.tokenizer import Fields


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth, coloured, slightly noisy RGB picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / w + p) + np.cos(y / h + p) for w, h, p in rng.uniform(3, 25, (3, 3))]
    values = 127 + 50 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def examples() -> list[Fields]:
    """Wide, tall, tiny, grey, transparent, a palette, an animation; and two that are refused."""
    transparent = scene(70, 80, 3)
    transparent.putalpha(Image.linear_gradient("L").resize((70, 80)))
    animation = [scene(48, 40, n) for n in (4, 5)]
    values: list[bytes] = [
        saved(scene(160, 96, 1), "JPEG"),
        saved(scene(60, 130, 2), "PNG"),
        saved(scene(1, 1), "PNG"),
        saved(scene(90, 90, 6).convert("L"), "PNG"),
        saved(transparent, "PNG"),
        saved(animation[0], "GIF", save_all=True, append_images=animation[1:]),
        saved(scene(64, 64, 7), "WEBP", lossless=True),
        b"",
        b"this is no picture",
    ]
    return [{"image": value} for value in values]
