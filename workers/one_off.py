"""A tokenizer for one-off use: media in, encodings out, in this process and without a store.

    tok = tokenmill.load_tokenizer("bpe-image", checkpoint=…)
    encodings = tok.encode_samples([picture, …])      # uint8 [H, W, 3], or a file's bytes
    tok.decode(encodings[0])

The same ids as a run gives: windows, batches and seeds are made in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import (
    Decodes,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    FlatTokenizer,
    Piece,
    Tokenizer,
    TokenizerIdentity,
    Window,
)
from tokenmill.workers.batching import Batcher
from tokenmill.workers.carrying import encode_carrying
from tokenmill.workers.windows import content_seed


class LoadedTokenizer:
    """A plug-in with its weights. What it offers beside this (`encode_flat`, …) is here too."""

    def __init__(self, plugin: Tokenizer) -> None:
        self.plugin = plugin

    def __getattr__(self, name: str) -> Any:
        if name == "plugin":  # not yet there: a copy is being unpickled
            raise AttributeError(name)
        return getattr(self.plugin, name)

    def __repr__(self) -> str:
        identity = self.identity()
        return f"<{identity.name} space {identity.space[:12]} recipe {identity.recipe[:12]}>"

    @property
    def descriptor(self) -> Descriptor:
        return self.plugin.descriptor

    def identity(self) -> TokenizerIdentity:
        return self.plugin.identity()

    def encode_samples(self, samples: Sequence[Any]) -> list[Encoding]:
        """One encoding per sample, in order: output name -> Encoded (flat ids, shape).

        A sample is its medium: text str; image uint8 [H, W, 3]; video uint8 [T, H, W, 3]; audio
        float32 [L] with a sample rate; a file's bytes; or a mapping of the plug-in's fields where
        it reads several. Raises SampleError, naming the sample, for one that gets no tokens.
        """
        fields = [self._fields(sample) for sample in samples]
        descriptor = self.plugin.descriptor
        flat = isinstance(self.plugin, FlatTokenizer) and len(descriptor.fields) == 1
        return self._flat(fields) if flat else self._windows(fields)

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> Any:
        """Tokens back to media. Raises TokenizerError where the plug-in cannot."""
        if not isinstance(self.plugin, Decodes):
            raise TokenizerError(f"the tokenizer {self.descriptor.name} cannot decode")
        return self.plugin.decode(encoding, conditions)

    def _fields(self, sample: Any) -> Fields:
        roles = (*self.descriptor.fields, *self.descriptor.conditions)
        if isinstance(sample, Mapping):
            return sample
        if len(roles) != 1:
            raise TokenizerError(
                f"{self.descriptor.name} reads {len(roles)} fields ({', '.join(roles)})",
                remedy="give each sample as a mapping of these names",
            )
        return {roles[0]: sample}

    def _flat(self, samples: Sequence[Fields]) -> list[Encoding]:
        assert isinstance(self.plugin, FlatTokenizer)
        role, output = self.descriptor.fields[0], self.descriptor.outputs[0].name
        made = self.plugin.encode_flat([fields[role] for fields in samples])
        for number, fault in sorted(made.faults.items()):
            raise _named(fault, number)
        at = made.offsets
        parts = [made.values[at[n] : at[n + 1]] for n in range(len(samples))]
        return [{output: Encoded(ids=ids, shape=ids.shape)} for ids in parts]

    def _windows(self, samples: Sequence[Fields]) -> list[Encoding]:
        pieces: list[list[Piece]] = [[] for _ in samples]
        carries: dict[int, Any] = {}
        batcher: Batcher[tuple[int, Window]] = Batcher(self.plugin.budget)
        for number, window in self._prepared(samples):
            for batch in batcher.add(
                (number, window), sample=number, bucket=window.bucket, cost=window.cost
            ):
                self._encode(batch, pieces, carries)
        for batch in batcher.flush():
            self._encode(batch, pieces, carries)
        encodings = []
        for number, found in enumerate(pieces):
            try:
                encodings.append(self.plugin.join(found))
            except SampleError as fault:
                raise _named(fault, number) from None
        return encodings

    def _prepared(self, samples: Sequence[Fields]) -> Iterator[tuple[int, Window]]:
        preparer, recipe = self.plugin.preparer(), self.identity().recipe.encode()
        for number, fields in enumerate(samples):
            rng = np.random.default_rng(content_seed(recipe, fields))
            count = 0
            try:
                for window in preparer.prepare(fields, rng):
                    yield number, window
                    count += 1
            except SampleError as fault:
                raise _named(fault, number) from None
            if not count:
                raise _named(SampleError("empty", "prepare made no window of it"), number)

    def _encode(
        self,
        batch: Sequence[tuple[int, Window]],
        pieces: list[list[Piece]],
        carries: dict[int, Any],
    ) -> None:
        made = encode_carrying(self.plugin.encode, batch, carries)
        for (number, _), piece in zip(batch, made, strict=True):
            pieces[number].append(piece)


def _named(fault: SampleError, number: int) -> SampleError:
    return SampleError(
        fault.reason,
        f"sample {number}: {fault.what}",
        where=fault.where,
        why=fault.why,
        remedy=fault.remedy,
    )
