"""Merged ids straight from pictures: `config: {merges: …}` of a bpe-image stream.

The same ids, of the same space and recipe, as a `bpe-image-merges` stream makes from a committed
`vq` stream; here the codes are kept nowhere. Another table of merges then encodes every picture
again: a child stream does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Decodes,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    Piece,
    Preparer,
    Tokenizer,
    TokenizerIdentity,
    Window,
    parent_mismatch,
)
from tokenmill.workers.tokenizers.bpe_image_merges.tokenizer import MergesTokenizer

VQ, MERGED = "vq", "merged"


def describe_merged(images: Descriptor, config: Mapping[str, Any]) -> Descriptor:
    """Of pictures to merged ids. Raises TokenizerError for settings of the merges."""
    return replace(images, outputs=MergesTokenizer.describe(_settings(config)).outputs)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("table", "sha256")}


class MergedImages:
    """A loaded VQ-GAN with a table of merges behind it: one output, `merged`."""

    def __init__(self, images: Tokenizer, merges: MergesTokenizer) -> None:
        self._images = images
        self._merges = merges

    @classmethod
    def over(cls, images: Tokenizer, config: Mapping[str, Any]) -> MergedImages:
        """config: as `split_config` gives it. Raises TokenizerError where they do not fit."""
        table = Checkpoint(uri=config["table"], sha256=config.get("sha256"))
        merges = MergesTokenizer.load(table, _settings(config))
        output = images.descriptor.outputs[0]
        why = parent_mismatch(
            merges.descriptor, output.axes, output.codebook_sizes, images.identity().space
        )
        if why is not None:
            raise TokenizerError(
                "the merges are not about the codes of this checkpoint",
                where="config.merges",
                why=why,
                remedy="name the checkpoint and the merges that belong together",
            )
        return cls(images, merges)

    @property
    def descriptor(self) -> Descriptor:
        return replace(self._images.descriptor, outputs=self._merges.descriptor.outputs)

    @property
    def budget(self) -> BatchBudget:
        return self._images.budget

    def identity(self) -> TokenizerIdentity:
        """That of a child of the `vq` stream, under this plug-in's name."""
        images, merges = self._images.identity(), self._merges.identity()
        child = merges.child_of(images.space, images.recipe)
        provenance = {**images.provenance, "merges_sha256": merges.provenance["checkpoint_sha256"]}
        return replace(child, name=images.name, provenance=provenance)

    def preparer(self) -> Preparer:
        return self._images.preparer()

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        return self._images.encode(windows)

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        """Raises SampleError for a grid that the merges do not take."""
        codes = self._images.join(pieces)[VQ]
        made = self._merges.encode_flat([codes.ids.reshape(codes.shape)])
        for fault in made.faults.values():
            raise fault
        return {MERGED: Encoded(ids=made.values, shape=made.values.shape)}

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> Any:
        """uint8 [H, W, 3]. Raises TokenizerError where the ids hold no grid, or nothing decodes."""
        if not isinstance(self._images, Decodes):
            raise TokenizerError("this tokenizer cannot decode")
        grid = np.asarray(self._merges.decode(encoding))
        return self._images.decode({VQ: Encoded(ids=grid.ravel(), shape=grid.shape)}, conditions)
