"""The suite passes what is right and names what is wrong, one planted defect at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.workers import bpe_files as files
from tokenmill.schemas.errors import SampleError
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
from tokenmill.workers.conformance import Report, check, check_class

_CALLS = itertools.count()


@dataclass(frozen=True)
class BytesPreparer:
    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        value = fields["text"]
        try:
            raw = value.encode() if isinstance(value, str) else bytes(value)
            raw.decode()
        except UnicodeError:
            raise SampleError("invalid-utf8", "no text") from None
        yield Window(arrays={"text": np.frombuffer(raw, np.uint8)})


class Bytes:
    """A sound tokenizer: one id per byte."""

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        spec = OutputSpec(dtype="uint8", codebook_sizes=(256,), prefix_cut=True)
        return Descriptor(
            name="bytes", modality="text", ids_revision=1, fields=("text",), outputs=(spec,)
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Bytes:
        return cls()

    @classmethod
    def examples(cls) -> Sequence[Fields]:
        return [{"text": text} for text in ("hello", "naïve", "世界", "hello again")]

    @property
    def descriptor(self) -> Descriptor:
        return self.describe({})

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=100, windows=10)

    @property
    def lossless(self) -> bool:
        return True

    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(name="bytes", space="0" * 64, parts={"ids_revision": 1})

    def preparer(self) -> Any:
        return BytesPreparer()

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        return [Piece(ids={"ids": w.arrays["text"].copy()}) for w in windows]

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        ids = np.concatenate([p.ids["ids"] for p in pieces])
        return {"ids": Encoded(ids=ids, shape=ids.shape)}

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> str:
        return encoding["ids"].ids.tobytes().decode("utf-8", "replace")

    def oracle(self, fields: Fields) -> Encoding | None:
        ids = np.frombuffer(fields["text"].encode(), np.uint8)
        return {"ids": Encoded(ids=ids, shape=ids.shape)}

    def encode_flat(self, values: Sequence[str | bytes]) -> FlatEncoding:
        faults, lists = {}, []
        for n, value in enumerate(values):
            try:
                (window,) = self.preparer().prepare({"text": value}, np.random.default_rng())
                lists.append(self.encode([window])[0].ids["ids"])
            except SampleError as fault:
                faults[n] = fault
                lists.append(np.empty(0, np.uint8))
        offsets = np.cumsum([0, *map(len, lists)])
        return FlatEncoding(
            values=np.concatenate([np.empty(0, np.uint8), *lists]), offsets=offsets, faults=faults
        )


class WrongIds(Bytes):
    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        return [Piece(ids={"ids": w.arrays["text"] ^ 1}) for w in windows]


class Random(Bytes):
    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        shift = next(_CALLS) % 11
        return [Piece(ids={"ids": w.arrays["text"] + np.uint8(shift)}) for w in windows]


class BatchDependent(Bytes):
    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        shift = np.uint8(len(windows) > 3)
        return [Piece(ids={"ids": w.arrays["text"] + shift}) for w in windows]


class Reordering(Bytes):
    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        return super().encode(sorted(windows, key=lambda w: len(w.arrays["text"])))


class WideDtype(Bytes):
    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        return [Piece(ids={"ids": w.arrays["text"].astype(np.uint32)}) for w in windows]


class BeyondCodebook(Bytes):
    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        sound = Bytes.describe(config)
        return replace(sound, outputs=(replace(sound.outputs[0], codebook_sizes=(128,)),))


class WrongAxes(Bytes):
    def join(self, pieces: Sequence[Piece]) -> Encoding:
        ids = super().join(pieces)["ids"].ids
        return {"ids": Encoded(ids=ids, shape=(1, len(ids)))}


class OtherDescriptor(Bytes):
    @property
    def descriptor(self) -> Descriptor:
        return replace(self.describe({}), ids_revision=2)


class CrashesOnEmpty(Bytes):
    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        if any(not len(w.arrays["text"]) for w in windows):
            raise IndexError("list index out of range")
        return super().encode(windows)


class FlatShifted(Bytes):
    def encode_flat(self, values: Sequence[str | bytes]) -> FlatEncoding:
        flat = super().encode_flat(values)
        offsets = flat.offsets.copy()
        offsets[1:-1] -= 1
        return replace(flat, offsets=np.maximum(offsets, 0))


class FlatFailsWhole(Bytes):
    def encode_flat(self, values: Sequence[str | bytes]) -> FlatEncoding:
        for value in values:
            tuple(self.preparer().prepare({"text": value}, np.random.default_rng()))
        return super().encode_flat(values)


class Lossy(Bytes):
    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> str:
        return super().decode(encoding).lower().replace("naïve", "naive")


class NoPrefix(Bytes):
    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> str:
        return super().decode(encoding)[::-1]


class ProcessIdentity(Bytes):
    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(
            name="bytes", space="0" * 64, parts={"ids_revision": 1, "process": os.getpid()}
        )


class SetIdentity(Bytes):
    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(
            name="bytes", space="0" * 64, parts={"ids_revision": 1, "h": hash("x")}
        )


class Unpicklable(Bytes):
    def preparer(self) -> Any:
        preparer = BytesPreparer()
        object.__setattr__(preparer, "window", lambda: None)
        return preparer


class TakesAnything(Bytes):
    def preparer(self) -> Any:
        return Lenient()


@dataclass(frozen=True)
class Lenient:
    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        value = fields["text"]
        raw = value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value)
        yield Window(arrays={"text": np.frombuffer(raw, np.uint8)})


def _failed(report: Report) -> set[str]:
    return {c.name for c in report.checks if c.verdict == "fail"}


def test_sound_tokenizer_passes_every_check() -> None:
    report = check_class(Bytes, None, {})
    assert report.ok and {c.verdict for c in report.checks} == {"pass"}


@pytest.mark.parametrize(
    ("cls", "caught"),
    [
        (WrongIds, "golden ids"),
        (Random, "determinism"),
        (BatchDependent, "batch invariance"),
        (Reordering, "batch invariance"),
        (WideDtype, "output"),
        (BeyondCodebook, "output"),
        (WrongAxes, "output"),
        (OtherDescriptor, "descriptor"),
        (CrashesOnEmpty, "lengths"),
        (FlatShifted, "flat path"),
        (FlatFailsWhole, "bad values"),
        (TakesAnything, "bad values"),
        (Lossy, "round trip"),
        (NoPrefix, "prefix rule"),
        (ProcessIdentity, "identity"),
        (SetIdentity, "identity"),
        (Unpicklable, "preparer"),
    ],
)
def test_planted_defect_is_caught_by_its_check(cls: Callable[[], Bytes], caught: str) -> None:
    report = check_class(cls, None, {})  # type: ignore[arg-type]
    assert not report.ok
    assert caught in _failed(report)


@pytest.mark.parametrize("config", [{}, {"special_tokens": "refuse", "eos": files.END}])
def test_bpe_conforms_by_tokenizer_json(config: dict[str, Any]) -> None:
    report = check("bpe", files.fitted(), config)
    assert _failed(report) == set() and report.notes == ()


def test_bpe_conforms_by_ranks_and_by_sentencepiece() -> None:
    ranks = check("bpe", files.ranks(), {"pattern": "cl100k_base"})
    assert _failed(ranks) == set() and ranks.notes == ()
    spm = check("bpe", files.spm(), {"bos": True})
    assert _failed(spm) == set()
    assert any("come back changed" in c.detail for c in spm.checks)


def test_samples_of_the_user_are_checked_too() -> None:
    report = check("bpe", files.fitted(), samples=[{"text": "mine"}])
    ours = check("bpe", files.fitted())
    sizes = [next(c.detail for c in r.checks if c.name == "lengths") for r in (report, ours)]
    assert sizes[0] != sizes[1]
