"""Where the reference vectors lie, and what of them several tests need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "data" / "bpe_image"
TINY = ("chameleon_tiny", "taming_attn_tiny", "llamagen_tiny")


def weights(name: str) -> Path:
    return DATA / "vq" / f"{name}.safetensors"


def arrays(name: str) -> dict[str, Any]:
    with np.load(DATA / "vq" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def key_shapes(name: str) -> dict[str, tuple[int, ...]]:
    listed = json.loads((DATA / "keys" / f"{name}.json").read_text())["tensors"]
    return {key: tuple(shape) for key, shape in listed.items()}
