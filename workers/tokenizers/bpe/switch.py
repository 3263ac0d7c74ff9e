"""The fast engine while it agrees with the reference one; the reference one from then on.

Checked at the start on the probe texts, then on a sample of every unit. Code points on which the
two are known or found to differ are kept from the fast engine: documents that hold one are encoded
by the reference engine alone, so a rare character does not cost the whole corpus its speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.tokenizer import EngineMismatch
from tokenmill.workers.tokenizers.bpe.engines import (
    Engine,
    EngineRefusal,
    FastEngine,
    Flat,
    ReferenceEngine,
    flat,
)
from tokenmill.workers.tokenizers.bpe.model import Model
from tokenmill.workers.tokenizers.bpe.probes import PROBES, SUSPECTS, around
from tokenmill.workers.tokenizers.bpe.settings import EngineChoice
from tokenmill.workers.tokenizers.bpe.texts import lone_surrogate
from tokenmill.workers.tokenizers.bpe.unit_check import UnitSampler

Faults = dict[int, SampleError]


class EngineSwitch:
    """`encode` gives the reference engine's ids, mostly by the fast engine's hands."""

    def __init__(self, model: Model, choice: EngineChoice, extra_probes: Sequence[str]) -> None:
        self.reference: ReferenceEngine = model.reference
        self.fast: FastEngine | None = None
        self.guarded = ""
        self.notes: list[str] = []
        self._sampler = UnitSampler()
        self._unit = b""
        self._document = 0  # position in the unit, for messages
        if choice == "reference":
            return
        try:
            self.fast = model.fast()
            self.guarded = _agree(self.fast, model, (*PROBES, *extra_probes))
        except EngineRefusal as refusal:
            self._drop(str(refusal))

    @property
    def engine(self) -> Engine:
        return self.fast or self.reference

    def start_unit(self, unit: bytes) -> None:
        self._unit = unit
        self._document = 0
        self._sampler.start(unit)

    def encode(self, texts: Sequence[str]) -> tuple[Flat, Faults]:
        """Ids of every text; faults of those that no engine takes (their length is 0).

        Raises EngineMismatch, having switched to the reference engine.
        """
        fast = self.fast
        if fast is None:
            return _isolating(self.reference, self.reference, texts)
        odd = _holding(self.guarded, texts)
        if odd:
            result, faults = self._around(fast, texts, odd)
        else:
            result, faults = _isolating(fast, self.reference, texts)
        self._check(texts, result, {*faults, *odd})
        self._document += len(texts)
        return result, faults

    def _around(
        self, fast: FastEngine, texts: Sequence[str], odd: Sequence[int]
    ) -> tuple[Flat, Faults]:
        """The odd documents by the reference engine, the others by the fast one."""
        left_out = set(odd)
        most, faults = _isolating(
            fast, self.reference, ["" if n in left_out else t for n, t in enumerate(texts)]
        )
        few, few_faults = _isolating(self.reference, self.reference, [texts[n] for n in odd])
        lists = _split(most)
        for n, ids in zip(odd, _split(few), strict=True):
            lists[n] = ids
        return flat(lists), faults | {odd[k]: fault for k, fault in few_faults.items()}

    def _check(self, texts: Sequence[str], result: Flat, skipped: set[int]) -> None:
        ids, offsets = result
        for n in self._sampler.picks(offsets[1:] - offsets[:-1]):
            if n in skipped:
                continue
            try:
                expected, _ = self.reference.encode([texts[n]])
            except EngineRefusal:
                continue  # the reference library has lower limits: nothing to compare with
            given = ids[offsets[n] : offsets[n + 1]]
            if not np.array_equal(given, expected):
                self._mismatch(n, given, expected)

    def _mismatch(self, position: int, given: np.ndarray, expected: np.ndarray) -> None:
        shared = min(len(given), len(expected))
        differs = np.flatnonzero(given[:shared] != expected[:shared])
        at = int(differs[0]) if len(differs) else shared
        why = (
            f"other ids than {self.reference.name} in unit {self._unit.hex() or '-'}, document "
            f"{self._document + position}, from token {at} on; tokens of earlier units by this "
            "engine were compared in samples only: --retokenize makes sure of them"
        )
        self._drop(why)
        raise EngineMismatch(self.notes[-1])

    def _drop(self, why: str) -> None:
        name = self.fast.name if self.fast else "fastokens"
        self.fast = None
        self.notes.append(f"reference engine {self.reference.name} in the place of {name}: {why}")


def _agree(fast: FastEngine, model: Model, probes: Sequence[str]) -> str:
    """The characters to keep from the fast engine. Raises EngineRefusal where it is not to be used.

    The model's own guards stand whatever the probes say: a vocabulary without merges across such a
    character hides the difference on them.
    """
    reference = model.reference
    plain = [text for text in probes if not set(text) & set(SUSPECTS)]
    if (text := _difference(fast, reference, plain)) is not None:
        raise EngineRefusal(f"other ids for {text[:40]!r}")
    differing = [
        char for char in SUSPECTS if _difference(fast, reference, around(char)) is not None
    ]
    guarded = "".join(sorted({*differing, *model.guards}))
    rest = [text for text in probes if not set(text) & set(guarded)]
    if (text := _difference(fast, reference, rest)) is not None:
        raise EngineRefusal(f"other ids for {text[:40]!r}")
    return guarded


def _difference(fast: FastEngine, reference: ReferenceEngine, texts: Sequence[str]) -> str | None:
    given, expected = _split(fast.encode(texts)), _split(reference.encode(texts))
    for text, a, b in zip(texts, given, expected, strict=True):
        if not np.array_equal(a, b):
            return text
    return None


def _isolating(engine: Engine, fallback: Engine, texts: Sequence[str]) -> tuple[Flat, Faults]:
    """The batch at once; where native code refuses it, one by one to find the document at fault."""
    try:
        return engine.encode(texts), {}
    except EngineRefusal:
        if len(texts) > 1:
            return _halves(engine, fallback, texts)
    try:
        _refuse_surrogates(texts[0])
        return fallback.encode(texts), {}
    except EngineRefusal as refusal:
        fault = SampleError(
            "encoder-refused",
            f"{fallback.name} cannot encode this text of {len(texts[0])} characters",
            why=str(refusal)[:300],
        )
    except SampleError as error:
        fault = error
    return flat([[]]), {0: fault}


def _halves(engine: Engine, fallback: Engine, texts: Sequence[str]) -> tuple[Flat, Faults]:
    middle = len(texts) // 2
    (left, left_offsets), left_faults = _isolating(engine, fallback, texts[:middle])
    (right, right_offsets), right_faults = _isolating(engine, fallback, texts[middle:])
    ids = np.concatenate([left, right])
    offsets = np.concatenate([left_offsets, right_offsets[1:] + left_offsets[-1]])
    return (ids, offsets), left_faults | {middle + n: f for n, f in right_faults.items()}


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise lone_surrogate(text, error.start) from None


def _holding(chars: str, texts: Sequence[str]) -> list[int]:
    """Texts with one of `chars`; for ASCII texts that is known without looking at them."""
    found = [n for char in chars for n, text in enumerate(texts) if char in text]
    return sorted(set(found)) if found else found


def _split(result: Flat) -> list[np.ndarray]:
    ids, offsets = result
    return [ids[offsets[n] : offsets[n + 1]] for n in range(len(offsets) - 1)]
