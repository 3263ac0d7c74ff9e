"""A tokenizer by windows that reads another stream's tokens, whatever their axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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


class DoublePreparer:
    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        yield Window(arrays={"ids": np.asarray(fields["ids"]).ravel()})


class Double:
    """Twice the parent's ids, as one sequence."""

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        return Descriptor(
            name="toy-double",
            modality="image",
            ids_revision=1,
            fields=("ids",),
            outputs=(OutputSpec(dtype="uint16", codebook_sizes=(1 << 16,)),),
            parent="ids",
            prepare_in="worker",
            use_policy="permissive",
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Double:
        return cls()

    @property
    def descriptor(self) -> Descriptor:
        return self.describe({})

    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(name="toy-double", space=json_hash("toy-double"), parts={})

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=64, windows=64)

    def preparer(self) -> DoublePreparer:
        return DoublePreparer()

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        return [Piece(ids={"ids": w.arrays["ids"].astype(np.uint16) * 2}) for w in windows]

    def join(self, pieces: Sequence[Piece]) -> Mapping[str, Encoded]:
        (piece,) = pieces
        return {"ids": Encoded(ids=piece.ids["ids"], shape=piece.ids["ids"].shape)}
