"""The plug-in `bpe`: text to ids by a vocabulary file.

Hot path: `encode_flat` hands a whole batch of strings to the fast engine and returns its buffer;
Python touches documents, never tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.job import nearest
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
from tokenmill.workers.tokenizers.bpe import hf, ranks, sentencepiece_model
from tokenmill.workers.tokenizers.bpe.engines import one_core
from tokenmill.workers.tokenizers.bpe.fit import fit as fit_vocabulary
from tokenmill.workers.tokenizers.bpe.framing import Frames, frame
from tokenmill.workers.tokenizers.bpe.model import Model, detect, read_file
from tokenmill.workers.tokenizers.bpe.probes import PROBES
from tokenmill.workers.tokenizers.bpe.settings import Frame, Settings
from tokenmill.workers.tokenizers.bpe.switch import EngineSwitch
from tokenmill.workers.tokenizers.bpe.texts import Texts

IDS_REVISION = 1
_MARKED = ("special", "added")
_READERS = {
    "tokenizer.json": hf.read,
    "tiktoken": ranks.read,
    "sentencepiece": sentencepiece_model.read,
}


@dataclass(frozen=True, kw_only=True)
class TextPreparer:
    """One field, one window: the text itself, refused where it is none. Picklable."""

    texts: Texts

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        text = self.texts.one(fields["text"])
        yield Window(arrays={"text": text}, cost=max(len(text), 1))


class BpeTokenizer:
    """Text by tokenizer.json, tiktoken ranks or a SentencePiece model: see `Settings`."""

    def __init__(self, model: Model, settings: Settings, checkpoint_sha256: str) -> None:
        self._model = model
        self._settings = settings
        self._sha256 = checkpoint_sha256
        vocabulary = model.vocabulary
        self._frames = Frames(
            bos=_frame_id(model, "bos", settings.bos), eos=_frame_id(model, "eos", settings.eos)
        )
        specials = vocabulary.specials
        refused = tuple(specials) if settings.special_tokens == "refuse" else ()
        self._texts = Texts(refused=refused)
        self._dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
        self._space = vocabulary.space()
        look_alikes = [f"a{token}b {token} c  {token}\n" for token in _matched(model)]
        self._switch = EngineSwitch(model, settings.engine, look_alikes)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        Settings.parse(config)
        return _descriptor(OutputSpec(name="ids", dtype="uint32", axes=("T",), prefix_cut=True))

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> BpeTokenizer:
        """Raises TokenizerError where checkpoint or configuration cannot be used."""
        settings = Settings.parse(config)
        if checkpoint is None:
            raise TokenizerError(
                "bpe needs a vocabulary",
                where="checkpoint",
                remedy="name a tokenizer.json, a tiktoken rank file or a SentencePiece model, "
                "or make one with `tokenmill fit`",
            )
        one_core(settings.threads)
        file = read_file(fetch(checkpoint), checkpoint.uri)
        model = _READERS[detect(file)](file, settings)
        return cls(model, settings, hashlib.sha256(file.data).hexdigest())

    @classmethod
    def fit(
        cls, samples: Iterator[Fields], out: str, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Learn a byte-level BPE vocabulary and write it to `out` as a tokenizer.json."""
        return fit_vocabulary(samples, out, config)

    @classmethod
    def examples(cls) -> Sequence[Fields]:
        return [{"text": text} for text in PROBES]

    @property
    def descriptor(self) -> Descriptor:
        """Complete: with the vocabulary's size and the dtype that holds it."""
        return _descriptor(
            OutputSpec(
                name="ids",
                dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
                axes=("T",),
                codebook_sizes=(self._model.vocabulary.size,),
                prefix_cut=True,
            )
        )

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=1 << 20, windows=1024)

    @property
    def lossless(self) -> bool:
        return self._model.lossless

    def identity(self) -> TokenizerIdentity:
        settings = self._settings
        return TokenizerIdentity(
            name="bpe",
            space=self._space,
            parts={
                "ids_revision": IDS_REVISION,
                "format": self._model.format,
                "model": self._model.hash,
                "special_tokens": settings.special_tokens,
                "bos": self._frames.bos,
                "eos": self._frames.eos,
                "post_processor": settings.post_processor,
            },
            provenance={
                "engine": self._switch.engine.name,
                "reference": self._switch.reference.name,
                "checkpoint_sha256": self._sha256,
            },
        )

    def preparer(self) -> TextPreparer:
        return TextPreparer(texts=self._texts)

    def start_unit(self, unit: bytes) -> None:
        self._switch.start_unit(unit)

    def notes(self) -> tuple[str, ...]:
        return tuple(self._switch.notes)

    def encode_flat(self, values: Sequence[str | bytes]) -> FlatEncoding:
        """Ids of a batch of documents, str or UTF-8 bytes.

        Faults: invalid-utf8, invalid-unicode, special-token, not-text, encoder-refused.
        Raises EngineMismatch: the unit is to be run again.
        """
        texts, faults = self._texts.batch(values)
        (ids, offsets), refused = self._switch.encode(texts)
        faults = faults | refused
        ids, offsets = frame(ids, offsets, self._frames, faults, self._dtype)
        return FlatEncoding(values=ids, offsets=offsets, faults=faults)

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        """The generic path: the same ids. Raises SampleError for a text that engines refuse."""
        result = self.encode_flat([window.arrays["text"] for window in windows])
        for fault in result.faults.values():
            raise fault
        at = result.offsets
        return [
            Piece(ids={"ids": result.values[at[n] : at[n + 1]]}, index=window.index)
            for n, window in enumerate(windows)
        ]

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        ids = np.concatenate([piece.ids["ids"] for piece in pieces])
        return {"ids": Encoded(ids=ids, shape=ids.shape)}

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> str:
        """The text of the ids, without the BOS and EOS that the settings add.

        Byte-level vocabularies are exact; bytes that are no UTF-8 (a cut sequence, ids that no
        text gives) become U+FFFD. Raises TokenizerError for an id outside the vocabulary.
        """
        ids: list[int] = encoding["ids"].ids.tolist()
        return self._model.decode(self._frames.strip(ids))

    def oracle(self, fields: Fields) -> Encoding | None:
        """Ids by the library of the file's own format alone; None where the text is refused."""
        try:
            text = self._texts.one(fields["text"])
        except SampleError:
            return None
        ids, offsets = self._switch.reference.encode([text])
        ids, _ = frame(ids, offsets, self._frames, {}, self._dtype)
        return {"ids": Encoded(ids=ids, shape=ids.shape)}


def _matched(model: Model) -> list[str]:
    """Tokens that a library may look for in raw text, for the probes: the first of each kind."""
    pieces = model.vocabulary.pieces.values()
    by_kind = [[p.decode("utf-8", "replace") for k, p in pieces if k == kind] for kind in _MARKED]
    return [token for tokens in by_kind for token in sorted(tokens)[:64]]


def _descriptor(output: OutputSpec) -> Descriptor:
    return Descriptor(
        name="bpe",
        modality="text",
        ids_revision=IDS_REVISION,
        fields=("text",),
        outputs=(output,),
        device="cpu",
        prepare_in="worker",
        licence_code="Apache-2.0",
        use_policy="unknown",  # of the vocabulary file: whoever names it knows
    )


def _frame_id(model: Model, name: str, wanted: Frame) -> int | None:
    """The id that `bos` or `eos` asks for. Raises TokenizerError naming candidates."""
    if wanted is False:
        return None
    declared = model.declared[0 if name == "bos" else 1]
    token = declared if wanted is True else wanted
    specials = list(model.vocabulary.specials)
    shown = ", ".join(repr(s) for s in specials[:8]) or "none"
    if token is None:
        raise TokenizerError(
            f"{name}: true, but the checkpoint does not say which token that is",
            where=f"config.{name}",
            remedy=f"name it; the special tokens are {shown}",
        )
    id_ = model.vocabulary.find(str(token))
    if id_ is None:
        raise TokenizerError(
            f"{name}: the vocabulary has no token {token!r}{nearest(str(token), specials[:100])}",
            where=f"config.{name}",
            remedy=f"the special tokens are {shown}",
        )
    return id_
