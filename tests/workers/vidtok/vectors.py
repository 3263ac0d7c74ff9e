"""The reference vectors in tests/data/vidtok, as models and tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokenmill.workers.tokenizers.vidtok.model import VidTok
from tokenmill.workers.tokenizers.vidtok.variants import VARIANTS, Variant

DATA = Path(__file__).parents[2] / "data" / "vidtok"
CASES: dict[str, Any] = json.loads((DATA / "cases.json").read_text())
CHUNKED = [name for name in CASES if name.startswith("v1_1")]


def variant_of(case: str) -> Variant:
    name = case.removeprefix("v1_0_").removeprefix("v1_1_")
    full = VARIANTS[name + ("_v1_1" if case.startswith("v1_1") else "")]
    return replace(full, ch=CASES[case]["ch"])


def weights_file(case: str) -> Path:
    return DATA / f"{case}.weights.safetensors"


@cache
def model_of(case: str) -> VidTok:
    model = VidTok(variant_of(case))
    model.load_state_dict(load_file(weights_file(case)), strict=True)
    return model.eval().requires_grad_(False)


@cache
def video() -> Tensor:
    """float32[3, 40, 32, 48] in [-1, 1]."""
    frames = load_file(DATA / "input_video.safetensors")["video_uint8_thwc"]
    return ((frames.float() / 255 - 0.5) / 0.5).permute(3, 0, 1, 2)


def clip(case: str) -> Tensor:
    """The input of a case: the first frames; as a second sample, of the clip run backwards."""
    batch, _, frames, *_ = CASES[case]["input_shape"]
    both = [video()[:, :frames], video().flip(1)[:, :frames]]
    return torch.stack(both[:batch])


def tensors(case: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{case}.tensors.safetensors")


def sampled(decoded: Tensor) -> Tensor:
    return decoded[:, :, :, 1::5, 2::7]
