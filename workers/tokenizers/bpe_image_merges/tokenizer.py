"""The plug-in `bpe-image-merges`: the codes of a `vq` stream to merged ids.

It reads the ids that its parent stream has committed, so another table of merges never encodes
pixels again. Whole blocks of grids go through one compiled call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    FlatEncoding,
    OutputSpec,
    Piece,
    TokenizerIdentity,
    Window,
)
from tokenmill.workers.fetch import fetch
from tokenmill.workers.tokenizers.bpe_image_merges.codec import MergeCodec
from tokenmill.workers.tokenizers.bpe_image_merges.fit import fit as fit_merges
from tokenmill.workers.tokenizers.bpe_image_merges.framing import Framing
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import read_table
from tokenmill.workers.tokenizers.bpe_image_merges.settings import Settings

IDS_REVISION = 1
ROLE = "vq"


@dataclass(frozen=True, kw_only=True)
class GridPreparer:
    """One grid, one window. Picklable."""

    framing: Framing

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        grid = self.framing.checked(fields[ROLE])
        yield Window(arrays={ROLE: grid}, cost=grid.size)


class MergesTokenizer:
    """Merged ids by a table of merges: see `Settings`."""

    def __init__(self, codec: MergeCodec, settings: Settings, checkpoint_sha256: str) -> None:
        self._codec = codec
        self._settings = settings
        self._sha256 = checkpoint_sha256
        self._framing = Framing.of(codec, settings)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        Settings.parse(config)
        return _descriptor("uint32", ())

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> MergesTokenizer:
        """Raises TokenizerError where table or configuration cannot be used."""
        settings = Settings.parse(config)
        if checkpoint is None:
            raise TokenizerError(
                "bpe-image-merges needs a table of merges",
                where="checkpoint",
                remedy="learn one: tokenmill fit bpe-image-merges --store STORE --stream vq "
                "--out merges.safetensors",
            )
        path = fetch(checkpoint)
        table = read_table(path, where=checkpoint.uri)
        if settings.rules is not None:
            table = table.first(settings.rules)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(MergeCodec(table, where=checkpoint.uri), settings, digest)

    @classmethod
    def fit(
        cls, samples: Iterator[Fields], out: str, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Learn merges from grids of codes (field `vq`) and write the table to `out`."""
        return fit_merges(samples, out, config)

    @classmethod
    def examples(cls) -> Sequence[Fields]:
        """Grids of every shape, of the codes that any table has."""
        rng = np.random.default_rng(7)
        shapes = ((1, 1), (1, 9), (9, 1), (2, 2), (16, 16), (9, 13), (32, 32))
        grids = [rng.integers(0, 2, shape).astype(np.uint16) for shape in shapes]
        return [{ROLE: grid} for grid in (*grids, np.zeros((8, 8), np.uint16))]

    @property
    def descriptor(self) -> Descriptor:
        """Complete: with the vocabulary's size and the dtype that holds it."""
        size, table = self._framing.ids, self._codec.table
        return replace(
            _descriptor("uint16" if size <= 1 << 16 else "uint32", (size,)),
            parent_codebooks=(table.vocab,),
            parent_space=table.codes_space,
        )

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=1 << 20, windows=1024)

    @property
    def lossless(self) -> bool:
        return self._framing.decodes

    def identity(self) -> TokenizerIdentity:
        table = self._codec.table
        return TokenizerIdentity(
            name="bpe-image-merges",
            space=self._framing.space,
            parts={
                "ids_revision": IDS_REVISION,
                "mode": table.mode,
                "merges": table.space(),
                "rules": len(table.rules),
                "grid": self._framing.grid,
            },
            provenance={"checkpoint_sha256": self._sha256},
        )

    def preparer(self) -> GridPreparer:
        return GridPreparer(framing=self._framing)

    def encode_flat(self, values: Sequence[Any]) -> FlatEncoding:
        """Ids of a block of grids. Faults: not-a-grid, code-out-of-range, wrong-grid, too-large."""
        faults: dict[int, SampleError] = {}
        grids: list[NDArray[np.int32]] = []
        for at, value in enumerate(values):
            try:
                grids.append(self._framing.checked(value))
            except SampleError as fault:
                faults[at] = fault
        flat, offsets = self._framing.encode(Grids.of(grids))
        lengths = np.zeros(len(values), np.int64)
        lengths[[i for i in range(len(values)) if i not in faults]] = np.diff(offsets)
        return FlatEncoding(
            values=flat, offsets=np.concatenate([[0], np.cumsum(lengths)]), faults=faults
        )

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        """The generic path: the same ids."""
        flat, offsets = self._framing.encode(Grids.of([w.arrays[ROLE] for w in windows]))
        return [
            Piece(ids={"merged": flat[offsets[n] : offsets[n + 1]]}, index=window.index)
            for n, window in enumerate(windows)
        ]

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        ids = np.concatenate([piece.ids["merged"] for piece in pieces])
        return {"merged": Encoded(ids=ids, shape=ids.shape)}

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> Any:
        """The grid of codes, uint16 or uint32 [H, W]. Raises TokenizerError."""
        return self._framing.decode(encoding["merged"].ids)


def _descriptor(dtype: Literal["uint16", "uint32"], sizes: tuple[int, ...]) -> Descriptor:
    return Descriptor(
        name="bpe-image-merges",
        modality="image",
        ids_revision=IDS_REVISION,
        fields=(ROLE,),
        outputs=(OutputSpec(name="merged", dtype=dtype, axes=("T",), codebook_sizes=sizes),),
        parent=ROLE,
        parent_axes=("H", "W"),
        prepare_in="worker",
        licence_code="Apache-2.0",
        licence_weights="as the corpus it was learnt on",
        use_policy="permissive",
    )
