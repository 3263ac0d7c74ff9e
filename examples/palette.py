"""A tokenizer plug-in in one page: a picture becomes a grid of the nearest of 64 palette colours.

A job names it by its import path, `tokenizer: "examples.palette:Palette"`; a package would offer it
as an entry point of `tokenmill.tokenizers` instead. It needs no weights, so its space is the
palette.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import json_hash
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    OutputSpec,
    Piece,
    TokenizerIdentity,
    Window,
)

SIDE = 8  # codes across and down
_LEVELS = np.array([32, 96, 160, 224])
PALETTE = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)


class PalettePreparer:
    """Decoding happens in a killable child: this object is pickled into it."""

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        try:
            picture = Image.open(io.BytesIO(fields["image"])).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise SampleError("decoder-refused", "not a picture", why=str(error)) from error
        pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
        yield Window(arrays={"pixels": pixels}, bucket=(SIDE,))


class Palette:
    """Nearest palette colour by squared distance; the same ids on every machine."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        grid = OutputSpec(name="vq", dtype="uint8", axes=("H", "W"), codebook_sizes=(len(PALETTE),))
        return Descriptor(
            name="palette", modality="image", ids_revision=1, fields=("image",), outputs=(grid,)
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Palette:
        return cls(config)

    @property
    def descriptor(self) -> Descriptor:
        return self.describe(self._config)

    def identity(self) -> TokenizerIdentity:
        space = json_hash({"palette": PALETTE.tolist(), "side": SIDE})
        return TokenizerIdentity(name="palette", space=space, parts={"ids_revision": 1})

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=256, windows=256)

    def preparer(self) -> PalettePreparer:
        return PalettePreparer()

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        pixels = np.stack([w.arrays["pixels"] for w in windows]).astype(np.int64)
        distance = ((pixels[..., None, :] - PALETTE) ** 2).sum(axis=-1)
        return [Piece(ids={"vq": ids}) for ids in distance.argmin(axis=-1).astype(np.uint8)]

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        ids = pieces[0].ids["vq"]
        return {"vq": Encoded(ids=ids.reshape(-1), shape=ids.shape)}
