"""The fast engine is used while it agrees, and nothing wrong gets through when it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers import bpe_files as files
from tokenmill.schemas.tokenizer import EngineMismatch
from tokenmill.workers.tokenizers.bpe import BpeTokenizer, hf
from tokenmill.workers.tokenizers.bpe.engines import EngineRefusal, FastEngine
from tokenmill.workers.tokenizers.bpe.model import Model, read_file
from tokenmill.workers.tokenizers.bpe.patterns import NAMED, guards
from tokenmill.workers.tokenizers.bpe.probes import PROBES, SUSPECTS, around
from tokenmill.workers.tokenizers.bpe.settings import Settings
from tokenmill.workers.tokenizers.bpe.switch import EngineSwitch
from tokenmill.workers.tokenizers.bpe.unit_check import (
    CEILING,
    FIRST_TOKENS,
    MAX_TOKENS,
    UnitSampler,
)

CLEAN = [f"document {n} of the unit, {'word ' * (n % 7)}" for n in range(64)]


@dataclass
class Faulty:
    """The real fast library with one planted defect."""

    real: Any
    wrong_for: str = "\0never"  # the first id of such texts is off by one
    refuse: str = "\0never"  # batches with such a text raise
    seen: list[str] = field(default_factory=list)

    def encode_batch_flat(self, texts: list[str], template: bool, split: bool) -> Any:
        self.seen += texts
        if any(self.refuse in text for text in texts):
            raise ValueError("match limit exceeded")
        ids, offsets = self.real.encode_batch_flat(texts, template, split)
        changed, at = np.frombuffer(ids, np.uint32).copy(), np.frombuffer(offsets, np.uint64)
        for n, text in enumerate(texts):
            if self.wrong_for in text:
                changed[int(at[n])] += 1
        return changed.tobytes(), offsets


def _model() -> Model:
    file = read_file(Path(files.fitted()), files.fitted())
    return hf.read(file, Settings.parse({}))


def _switch(model: Model, **defect: Any) -> tuple[EngineSwitch, Faulty]:
    real = model.fast()
    faulty = Faulty(real.tokenizer, **defect)
    engine: FastEngine = replace(real, tokenizer=faulty)
    return EngineSwitch(replace(model, fast=lambda: engine), "auto", ()), faulty


def _lists(switch: EngineSwitch, texts: Sequence[str]) -> list[list[int]]:
    (ids, at), faults = switch.encode(texts)
    assert not faults
    return [ids[at[n] : at[n + 1]].tolist() for n in range(len(texts))]


@pytest.fixture(scope="module")
def model() -> Model:
    return _model()


def test_engine_that_differs_on_a_probe_is_never_used(model: Model) -> None:
    switch, _ = _switch(model, wrong_for="天地玄黃")
    assert switch.fast is None
    assert "天地玄黃" in switch.notes[0] and "tokenizers" in switch.notes[0]


def test_character_that_differs_is_kept_from_the_fast_engine(model: Model) -> None:
    switch, faulty = _switch(replace(model, guards="\u180e"), wrong_for="\u2028")
    assert switch.fast is not None and "\u2028" in switch.guarded
    faulty.seen.clear()
    texts = [*CLEAN[:5], "x\u2028y", *CLEAN[5:9], "\u180e", ""]
    reference, _ = model.reference.encode(texts)
    assert [i for one in _lists(switch, texts) for i in one] == reference.tolist()
    assert not any("\u2028" in text or "\u180e" in text for text in faulty.seen)


def test_mismatch_within_a_unit_switches_for_good_and_says_so(model: Model) -> None:
    switch, _ = _switch(model, wrong_for="of the unit")
    assert switch.fast is not None  # the probes do not show it
    switch.start_unit(b"\x01" * 16)
    with pytest.raises(EngineMismatch, match="01" * 16):
        switch.encode(CLEAN)
    assert switch.fast is None and len(switch.notes) == 1
    switch.start_unit(b"\x01" * 16)
    ids, _ = model.reference.encode(CLEAN)
    assert [i for one in _lists(switch, CLEAN) for i in one] == ids.tolist()


def test_encode_flat_and_encode_raise_the_mismatch(model: Model) -> None:
    tokenizer = files.load(files.fitted())
    windows = [w for t in CLEAN for w in tokenizer.preparer().prepare({"text": t}, _rng())]
    for call in (lambda: tokenizer.encode_flat(CLEAN), lambda: tokenizer.encode(windows)):
        tokenizer._switch, _ = _switch(model, wrong_for="of the unit")
        with pytest.raises(EngineMismatch):
            call()
        golden = [tokenizer.oracle({"text": t})["ids"].ids.tolist() for t in CLEAN]  # type: ignore[index]
        assert files.ids(tokenizer, *CLEAN) == golden
        assert "tokenizers" in tokenizer.identity().provenance["engine"]


def _rng() -> np.random.Generator:
    return np.random.default_rng()


def test_text_that_the_fast_engine_refuses_goes_to_the_reference_alone(model: Model) -> None:
    switch, _ = _switch(model, refuse="refuse me")
    texts = [*CLEAN[:7], "please refuse me", *CLEAN[7:20], "refuse me too"]
    ids, _ = model.reference.encode(texts)
    assert [i for one in _lists(switch, texts) for i in one] == ids.tolist()
    assert switch.fast is not None


def test_text_that_no_engine_takes_is_a_fault_of_its_own() -> None:
    """tiktoken's regex overflows on a million spaces before a word."""
    tokenizer = files.load(files.ranks(), pattern="cl100k_base", engine="reference")
    flat = tokenizer.encode_flat(["good", " " * 1_000_000 + "x", "good"])
    assert {n: f.reason for n, f in flat.faults.items()} == {1: "encoder-refused"}
    assert flat.offsets[1] == flat.offsets[2]
    assert flat.values[: flat.offsets[1]].tolist() == flat.values[flat.offsets[2] :].tolist()


def test_long_unbroken_text_is_encoded_alike(model: Model) -> None:
    switch, _ = _switch(model)
    texts = ["a" * 200_000, " " * 200_000, "天" * 60_000, "=" * 100_000, "\r\n" * 50_000]
    ids, _ = model.reference.encode(texts)
    assert [i for one in _lists(switch, texts) for i in one] == ids.tolist()


def test_without_fastokens_the_reference_engine_works_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = files.load(files.fitted())
    monkeypatch.setitem(sys.modules, "fastokens", None)
    slow = files.load(files.fitted())
    assert "not installed" in slow.notes()[0]
    assert files.ids(slow, *PROBES) == files.ids(fast, *PROBES)
    assert slow.identity().recipe == fast.identity().recipe


def test_engine_reference_is_a_choice_and_no_incident() -> None:
    tokenizer = files.load(files.fitted(), engine="reference")
    assert tokenizer.notes() == ()
    assert "tokenizers" in tokenizer.identity().provenance["engine"]


def test_every_code_point_of_the_first_plane_is_cut_alike() -> None:
    """Classes of code points differ between regex libraries: U+180E is one that was found so."""
    tokenizers = [files.load(files.fitted()), files.load(files.ranks(), pattern="r50k_base")]
    chars = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    texts = ["".join(around(c)[0] for c in chars[n : n + 256]) for n in range(0, len(chars), 256)]
    for tokenizer in tokenizers:
        expected = tokenizer._switch.reference.encode(texts)[0]
        assert np.array_equal(tokenizer.encode_flat(texts).values, expected)


def test_one_core_unless_the_user_says_otherwise() -> None:
    code = (
        "import os, sys; sys.path[:] = sys.argv[2:];"
        "from tokenmill.schemas.tokenizer import Checkpoint;"
        "from tokenmill.workers.tokenizers.bpe import BpeTokenizer;"
        "BpeTokenizer.load(Checkpoint(uri=sys.argv[1]), {}).encode_flat(['a'] * 100);"
        "print(os.environ['RAYON_NUM_THREADS'], os.environ['TOKENIZERS_PARALLELISM'],"
        " len(os.listdir('/proc/self/task')))"
    )
    names = ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    bare = {k: v for k, v in os.environ.items() if k not in names}
    answers = []
    for extra in ({}, {"RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}):
        done = subprocess.run(
            [sys.executable, "-c", code, files.fitted(), *sys.path],
            env={**bare, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **extra},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(done.stdout.split()[:2])
    assert answers == [["1", "false"], ["2", "true"]]


@settings(max_examples=60, deadline=None)
@given(
    unit=st.binary(min_size=16, max_size=16),
    batches=st.lists(st.lists(st.integers(0, 5000), max_size=300), min_size=1, max_size=20),
)
def test_sampler_picks_the_same_documents_whenever_a_unit_is_run(
    unit: bytes, batches: list[list[int]]
) -> None:
    runs = []
    for _ in range(2):
        sampler = UnitSampler()
        sampler.start(unit)
        runs.append([sampler.picks(np.array(b, np.int64)) for b in batches])
    assert runs[0] == runs[1]
    for picks, batch in zip(runs[0], batches, strict=True):
        assert all(0 <= n < len(batch) for n in picks)


def test_sampler_checks_one_short_document_of_every_unit() -> None:
    sampler = UnitSampler()
    lengths = np.array([9000, 40, 700] * 5, np.int64)
    for n in range(50):
        sampler.start(n.to_bytes(16, "big"))
        assert min(lengths[sampler.picks(lengths)]) <= FIRST_TOKENS


def test_sampler_keeps_to_its_share_of_the_tokens() -> None:
    sampler, rng = UnitSampler(), np.random.default_rng(3)
    seen = checked = units = 0
    for unit in range(20):
        sampler.start(unit.to_bytes(16, "big"))
        units += 1
        for _ in range(40):
            lengths = rng.lognormal(6, 1.5, 1000).astype(np.int64)
            picks = sampler.picks(lengths)
            seen += int(lengths.sum())
            checked += int(lengths[picks].sum())
            assert all(lengths[n] <= MAX_TOKENS for n in picks)
    assert checked <= CEILING * seen + units * FIRST_TOKENS
    assert 0 < checked / seen < 0.0005


def test_refusal_of_the_library_at_load_is_a_note_and_no_error(model: Model) -> None:
    def broken() -> FastEngine:
        raise EngineRefusal("cannot read this model")

    switch = EngineSwitch(replace(model, fast=broken), "auto", ())
    assert "cannot read this model" in switch.notes[0]
    assert _lists(switch, ["a"]) == [model.reference.encode(["a"])[0].tolist()]


def test_checking_is_part_of_the_plug_in(model: Model) -> None:
    tokenizer = BpeTokenizer(model, Settings.parse({}), "0" * 64)
    tokenizer.start_unit(b"\x05" * 16)
    before = tokenizer._switch._sampler._checked
    tokenizer.encode_flat(CLEAN)
    assert tokenizer._switch._sampler._checked > before


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k_base", "o200k_base", r"(?i:'k)|\w+|[\s\S]"])
def test_characters_that_regex_libraries_class_differently_get_the_reference_ids(
    pattern: str,
) -> None:
    tokenizer = files.load(files.ranks(), pattern=pattern)
    assert tokenizer._switch.fast is not None
    texts = [text for char in SUSPECTS for text in around(char)]
    expected = tokenizer._switch.reference.encode(texts)[0]
    assert np.array_equal(tokenizer.encode_flat(texts).values, expected)


def test_known_differences_are_guarded_whatever_the_vocabulary_shows() -> None:
    guarded = {p: guards([NAMED[p].fast]) for p in NAMED}
    assert "\u180e" in guarded["gpt2"] and "\u017f" in guarded["o200k_base"]
    assert guarded["cl100k_base"] == ""  # a document with such a character is 50 times slower
    assert guards([]) == ""
