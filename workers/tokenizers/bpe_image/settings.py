"""The `config` of a bpe-image stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image.checks import Rules, check
from tokenmill.workers.tokenizers.bpe_image.pictures import MEGA, Bounds
from tokenmill.workers.tokenizers.bpe_image.presets import PRESETS, Aspect, Crop, Preset

_RULES: Rules = {
    "preset": PRESETS,
    "size": (8, 8192),
    "aspect": ("square", "keep"),
    "frames": ("first", "all"),
    "precision": ("float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "batch": (1, 4096),
    "threads": (1, 1024),
    "max_pixels": (1, 10_000 * MEGA),
    "max_frames": (1, 1 << 20),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a job may say. Left out, preset and size are those of the checkpoint's family.

    preset: chameleon | being-vl | adm (presets.py). size: pixels of the short side.
    aspect: square, or keep the picture's own. frames: of an animation, the first or all.
    precision: of the networks; the search for codes is float32 always.
    batch: pictures of `size` by `size` in one call on a GPU. threads: on the CPU.
    max_pixels, max_frames: larger files are quarantined before they are decoded.
    """

    preset: Preset | None = None
    size: int | None = None
    aspect: Aspect = "square"
    frames: Literal["first", "all"] = "first"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: int = 16
    threads: int = 1
    max_pixels: int = 100 * MEGA
    max_frames: int = 256

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Settings:
        """Raises TokenizerError naming the key, the value and what it may be."""
        check(config, cls, _RULES, "config")
        return cls(**config)

    @property
    def axes(self) -> tuple[str, ...]:
        return ("H", "W") if self.frames == "first" else ("T", "H", "W")

    @property
    def bounds(self) -> Bounds:
        return Bounds(max_pixels=self.max_pixels, max_frames=self.max_frames)

    def crop(self, *, preset: str, size: int, factor: int) -> Crop:
        """The crop of these settings over a checkpoint's own. Raises TokenizerError where the
        size does not fit the checkpoint's grid."""
        wanted = self.size or size
        if wanted % factor:
            raise TokenizerError(
                f"a size of {wanted} pixels is no multiple of {factor}",
                where="config.size",
                why=f"this checkpoint makes one code of {factor} x {factor} pixels",
                remedy=f"take {wanted // factor * factor or factor}",
            )
        return Crop(
            preset=self.preset or cast("Preset", preset),
            size=wanted,
            aspect=self.aspect,
            multiple=factor,
        )
