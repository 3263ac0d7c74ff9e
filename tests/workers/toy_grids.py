"""A little `vq`: text such as "2x3 010110" to a grid of codes, each encoded sample in a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import json_hash
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Descriptor,
    Encoded,
    Fields,
    OutputSpec,
    Piece,
    TokenizerIdentity,
    Window,
)

CODES = 8


def text_of(grid: np.ndarray) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]} " + "".join(map(str, grid.ravel()))


class GridPreparer:
    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        text = fields["text"]
        if "<refuse>" in text:
            raise SampleError("toy-refused", "as told")
        size, _, digits = text.partition(" ")
        height, width = map(int, size.split("x"))
        grid = np.array([int(d) for d in digits], np.uint8).reshape(height, width)
        yield Window(arrays={"grid": grid})


class Grids:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        return Descriptor(
            name="toy-grids",
            modality="image",
            ids_revision=1,
            fields=("text",),
            outputs=(
                OutputSpec(name="vq", dtype="uint8", axes=("H", "W"), codebook_sizes=(CODES,)),
            ),
            prepare_in="worker",
            use_policy="permissive",
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Grids:
        return cls(config)

    @property
    def descriptor(self) -> Descriptor:
        return self.describe(self.config)

    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(
            name="toy-grids",
            space=json_hash(["toy-grids", self.config.get("weights", 0)]),
            parts={"ids_revision": 1, "plus": self.config.get("plus", 0)},
        )

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=64, windows=64)

    def preparer(self) -> GridPreparer:
        return GridPreparer()

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        with Path(self.config["log"]).open("a") as log:
            log.write("".join("1\n" for _ in windows))
        plus = self.config.get("plus", 0)
        return [
            Piece(ids={"vq": (w.arrays["grid"] + plus) % CODES}, index=w.index) for w in windows
        ]

    def join(self, pieces: Sequence[Piece]) -> Mapping[str, Encoded]:
        (piece,) = pieces
        return {"vq": Encoded(ids=piece.ids["vq"].ravel(), shape=piece.ids["vq"].shape)}
