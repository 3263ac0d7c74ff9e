"""The `config` of a vidtok stream, checked, with the nearest known key in the error. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest
from tokenmill.workers.media.resize import Fit
from tokenmill.workers.media.video import Reader
from tokenmill.workers.tokenizers.vidtok.variants import DEFAULT, VARIANTS, Variant

Tail = Literal["pad", "trim", "drop"]
Precision = Literal["float32", "tf32", "bfloat16"]
Latent = Literal["mode", "moments"]
_CHOICES = {
    "variant": tuple(VARIANTS),
    "fit": get_args(Fit),
    "tail": get_args(Tail),
    "reader": get_args(Reader),
    "precision": get_args(Precision),
    "latent": get_args(Latent),
    "latent_dtype": ("float32", "float16"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a job may say.

    variant: a published configuration; `tokenizer: vidtok:NAME` says the same.
    fps: frames per second taken from the video, each the one shown then; None: all as they are.
    size: height and width (or one number for both) that frames are brought to, multiples of the
        variant's spatial factor; fit: crop (shorter side, then the centre), pad or stretch.
    window: frames encoded at once after the first. v1.1: carried state makes the ids those of the
        whole clip, so it bounds memory and nothing else; a multiple of the time factor. v1.0 and
        non-causal models have no state: the length of the clips that a video is cut into.
    tail: a last window that is short. pad: with its last frame (the valid length is stored);
        trim: to the longest length that the model keeps; drop: left out whole.
    reader: auto, decord or pyav.
    latent, latent_dtype: of KL variants, the mode (the mean) or mean and log-variance, as float32
        or float16. Nothing is ever sampled.
    batch: clips of 17 x 256 x 256 frames, or as many pixels otherwise, in one call.
    precision: float32 (TF32 off), tf32 or bfloat16 (autocast): other ids each.
    device: cpu, cuda, cuda:N or auto. In no recipe.
    """

    variant: str = DEFAULT
    fps: float | None = None
    size: int | tuple[int, int] = 256
    fit: Fit = "crop"
    window: int | None = None
    tail: Tail = "pad"
    reader: Reader = "auto"
    latent: Latent = "mode"
    latent_dtype: Literal["float32", "float16"] = "float32"
    batch: int = 1
    precision: Precision = "float32"
    device: str = "auto"

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Settings:
        """Raises TokenizerError naming the key, the value and what it may be."""
        names = [f.name for f in fields(cls)]
        for key in config:
            if key not in names:
                raise TokenizerError(
                    f"vidtok has no setting {key!r}{nearest(str(key), names)}",
                    where="config",
                    remedy="settings: " + ", ".join(names),
                )
        for key, choices in _CHOICES.items():
            if key in config and config[key] not in choices:
                hint = nearest(str(config[key]), choices)
                raise _bad(key, config[key], f"one of {len(choices)}{hint}")
        settings = cls(**{**config, "size": _size(config.get("size", 256))})
        settings._check()
        return settings

    def _check(self) -> None:
        number = (int, float)
        if self.fps is not None and not (isinstance(self.fps, number) and 0 < self.fps <= 1000):
            raise _bad("fps", self.fps, "frames per second, above 0")
        if not isinstance(self.batch, int) or self.batch < 1:
            raise _bad("batch", self.batch, "a whole number from 1")
        if not isinstance(self.device, str):
            raise _bad("device", self.device, "auto, cpu, cuda or cuda:N")
        model = self.model
        if any(side % model.spatial_factor for side in self.frame_size):
            factor = model.spatial_factor
            raise _bad("size", self.size, f"multiples of {factor}, the spatial factor")
        window = self.window
        if window is None:
            return
        fits = isinstance(window, int) and window > 0
        if model.chunks and not (fits and window % model.time_factor == 0):
            raise _bad("window", window, f"a multiple of {model.time_factor}, the time factor")
        if not model.chunks and not (fits and model.fits(window)):
            rest = "1 more than a multiple" if model.causal else "a multiple"
            raise _bad("window", window, f"{rest} of {model.time_factor}, the time factor")

    @property
    def model(self) -> Variant:
        return VARIANTS[self.variant]

    @property
    def frame_size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def frames(self) -> tuple[int, int]:
        """Frames of the first window and of the later ones."""
        model = self.model
        window = self.window or (16 if model.chunks else model.clip_frames)
        return (1 + window, window) if model.chunks else (window, window)

    def recipe(self) -> dict[str, Any]:
        """The settings that may change an id, as JSON values."""
        told = asdict(self)
        for key in ("device", "latent", "latent_dtype") if self.model.levels else ("device",):
            del told[key]
        return {**told, "size": list(self.frame_size), "window": self.frames[1]}


def _size(value: Any) -> int | tuple[int, int]:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise _bad("size", value, "one number of pixels, or [height, width]")
    return value if isinstance(value, int) else (sides[0], sides[1])


def _bad(key: str, value: object, wanted: str) -> TokenizerError:
    return TokenizerError(f"{key}: {value!r} is not {wanted}", where=f"config.{key}")
