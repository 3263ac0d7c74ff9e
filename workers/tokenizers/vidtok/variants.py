"""The published configurations by name, as plain records: no torch.

v1.0 and v1.1 have the same keys and shapes, and the wrong arithmetic loads without a word and gives
other ids in 99 of 100 places: the version comes from the name or the configuration, never from the
weights. Source: the configuration files of microsoft/VidTok (see docs/video.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

Arithmetic = Literal["causal-1.0", "causal-1.1", "noncausal"]
Regulariser = Literal["fsq", "kl"]

DEFAULT = "fsq_causal_488_32768_v1_1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One model. Levels are numbered from full resolution; `time_factor` frames are one latent.

    z_channels: latent channels; with FSQ also the number of quantised dimensions.
    levels: FSQ levels per dimension, () with KL.
    spatial_down, time_down: levels after which the encoder halves space, and then time.
    spatial_up, time_up: levels after which the decoder doubles them.
    """

    name: str
    arithmetic: Arithmetic
    z_channels: int
    levels: tuple[int, ...] = ()
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time_factor: int = 4
    spatial_down: tuple[int, ...] = (0, 1, 2)
    spatial_up: tuple[int, ...] = (1, 2, 3)
    time_down: tuple[int, ...] = (1, 2)
    time_up: tuple[int, ...] = (1, 2)

    @property
    def causal(self) -> bool:
        return self.arithmetic != "noncausal"

    @property
    def chunks(self) -> bool:
        """Whether a clip may be encoded in chunks that carry state: v1.1 alone."""
        return self.arithmetic == "causal-1.1"

    @property
    def regulariser(self) -> Regulariser:
        return "fsq" if self.levels else "kl"

    @property
    def codebook_size(self) -> int:
        return prod(self.levels)

    @property
    def spatial_factor(self) -> int:
        return 1 << len(self.spatial_down)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.ch * m for m in self.ch_mult)

    @property
    def clip_frames(self) -> int:
        """The clip length that the model was made for."""
        return 17 if self.causal else 16

    def latents(self, frames: int) -> int:
        """Latent frames of a clip encoded whole."""
        return -(-frames // self.time_factor) if self.causal else frames // self.time_factor

    def fits(self, frames: int) -> bool:
        """Whether encoder and decoder keep the count: T = 1 mod f, non-causal T = 0 mod f."""
        return frames > 0 and frames % self.time_factor == int(self.causal) % self.time_factor


_SIXTEEN: Mapping[str, Any] = {
    "ch_mult": (1, 2, 4, 4, 4),
    "spatial_down": (0, 1, 2, 3),
    "spatial_up": (1, 2, 3, 4),
    "time_down": (2, 3),
}


def _variants() -> dict[str, Variant]:
    made: dict[str, Variant] = {}

    def add(name: str, z: int, levels: tuple[int, ...] = (), **shape: Any) -> None:
        kind: Arithmetic = "causal-1.1" if name.endswith("_v1_1") else "causal-1.0"
        if "_noncausal_" in name:
            kind = "noncausal"
        made[name] = Variant(name=name, arithmetic=kind, z_channels=z, levels=levels, **shape)

    for z, size in ((4, 4096), (5, 32768), (6, 262144)):
        add(f"fsq_causal_488_{size}", z, (8,) * z)
    add("fsq_causal_41616_262144", 6, (8,) * 6, **_SIXTEEN)
    add("fsq_noncausal_488_262144", 6, (8,) * 6)
    add("fsq_noncausal_41616_262144", 6, (8,) * 6, **_SIXTEEN)
    for z in (4, 8, 16):
        add(f"kl_causal_488_{z}chn", z)
    two: dict[str, Any] = {"time_factor": 2, "time_down": (1,), "time_up": (2,)}
    add("kl_causal_288_8chn", 8, **two)
    add("kl_causal_444_4chn", 4, spatial_down=(1, 2), spatial_up=(1, 2))
    add("kl_causal_41616_4chn", 4, **_SIXTEEN)
    for z in (4, 16):
        add(f"kl_noncausal_488_{z}chn", z)
        add(f"kl_noncausal_41616_{z}chn", z, **_SIXTEEN)
    add("fsq_causal_488_32768_v1_1", 5, (8,) * 5)
    eight: dict[str, Any] = {"time_factor": 8, "time_down": (0, 1, 2), "time_up": (1, 2, 3)}
    add("fsq_causal_888_32768_v1_1", 5, (8,) * 5, **eight)
    add("fsq_causal_41616_262144_v1_1", 6, (8,) * 6, **_SIXTEEN)
    add("kl_causal_488_4chn_v1_1", 4)
    add("kl_causal_488_16chn_v1_1", 16)
    add("kl_causal_288_8chn_v1_1", 8, **two)
    add("kl_causal_41616_16chn_v1_1", 16, **_SIXTEEN)
    return made


PUBLISHED: Mapping[str, Variant] = _variants()
# Ours, for trying things out: the default's arithmetic and vocabulary, narrow, one block a level.
STARTER = Variant(
    name="starter", arithmetic="causal-1.1", z_channels=5, levels=(8,) * 5, ch=12, blocks=1
)
VARIANTS: Mapping[str, Variant] = {**PUBLISHED, STARTER.name: STARTER}
