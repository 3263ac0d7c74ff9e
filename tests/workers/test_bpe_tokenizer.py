"""Policies, frames, values, dtypes, decoding and identity of the plug-in."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers import bpe_files as files
from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import (
    ClaimsLossless,
    Conforms,
    Decodes,
    Encoded,
    Fits,
    FlatTokenizer,
    HasOracle,
    UnitChecker,
)
from tokenmill.workers.tokenizers.bpe import BpeTokenizer

END = files.END
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.differing_executors]
)
# letters and spaces of every plane, and the pieces of special tokens
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([END, "<|", "|>", " ", "\n", "\r\n", "\u180e", "'s", "é", "e\u0301", "12", "ſ"])
).map("".join)


@pytest.fixture(scope="module")
def plain() -> BpeTokenizer:
    return files.load(files.fitted())


@pytest.fixture(scope="module")
def by_ranks() -> BpeTokenizer:
    return files.load(files.ranks(), pattern="cl100k_base", tokens={END: 1999})


@RELAXED
@given(texts=st.lists(TEXT, max_size=5))
def test_any_text_gets_the_ids_of_the_reference_library(
    plain: BpeTokenizer, by_ranks: BpeTokenizer, texts: list[str]
) -> None:
    for tokenizer in (plain, by_ranks):
        assert tokenizer.notes() == ()
        golden = [tokenizer.oracle({"text": text}) for text in texts]
        assert files.ids(tokenizer, *texts) == [g["ids"].ids.tolist() for g in golden if g]


@RELAXED
@given(text=TEXT)
def test_any_text_comes_back_as_it_was(
    plain: BpeTokenizer, by_ranks: BpeTokenizer, text: str
) -> None:
    for tokenizer in (plain, by_ranks):
        assert _decode(tokenizer, files.ids(tokenizer, text)[0]) == text


@RELAXED
@given(data=st.lists(st.binary(max_size=12) | TEXT.map(str.encode), max_size=6))
def test_any_bytes_are_encoded_or_refused_alone(plain: BpeTokenizer, data: list[bytes]) -> None:
    flat = plain.encode_flat(data)
    for n, raw in enumerate(data):
        try:
            expected = files.ids(plain, raw.decode())[0]
        except UnicodeDecodeError:
            assert flat.faults[n].reason == "invalid-utf8"
            expected = []
        assert flat.values[flat.offsets[n] : flat.offsets[n + 1]].tolist() == expected


def _decode(tokenizer: BpeTokenizer, ids: list[int]) -> str:
    return tokenizer.decode({"ids": Encoded(ids=np.array(ids, np.uint32), shape=(len(ids),))})


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_special_token_in_raw_text_follows_the_policy(engine: str) -> None:
    text = f"a{END}b"
    for path, config, special in (
        (files.fitted(), {}, 0),
        (files.ranks(), {"pattern": "gpt2", "tokens": {END: 1999}}, 1999),
    ):
        as_text = files.load(path, engine=engine, **config)
        assert special not in files.ids(as_text, text)[0]
        assert _decode(as_text, files.ids(as_text, text)[0]) == text
        encode = files.load(path, engine=engine, special_tokens="encode", **config)
        assert files.ids(encode, text)[0].count(special) == 1
        refuse = files.load(path, engine=engine, special_tokens="refuse", **config)
        flat = refuse.encode_flat(["fine", text, "fine"])
        assert {n: f.reason for n, f in flat.faults.items()} == {1: "special-token"}
        assert flat.offsets[1] == flat.offsets[2]


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_added_tokens_that_are_not_special_match_under_every_policy(engine: str) -> None:
    path = files.changed(
        "added.json",
        added_tokens=[*files.fitted_json()["added_tokens"], files.added("<tool>", 2000)],
    )
    for policy in ("text", "encode", "refuse"):
        tokenizer = files.load(path, special_tokens=policy, engine=engine)
        assert tokenizer.notes() == ()
        assert files.ids(tokenizer, "x<tool>y")[0].count(2000) == 1


def test_control_symbols_of_sentencepiece_never_match_raw_text() -> None:
    tokenizer = files.load(files.spm())
    assert not {1, 2} & set(files.ids(tokenizer, "a<s>b</s>")[0])
    assert 3 in files.ids(tokenizer, "a<sep>b")[0]  # user-defined: ordinary vocabulary
    refuse = files.load(files.spm(), special_tokens="refuse")
    assert refuse.encode_flat(["a</s>"]).faults[0].reason == "special-token"
    with pytest.raises(TokenizerError, match="impossible"):
        files.load(files.spm(), special_tokens="encode")


@RELAXED
@given(
    values=st.lists(st.sampled_from(["", "a", "hello world", b"caf\xc3\xa9", b"\xff", "\ud800"]))
)
def test_frames_stand_around_every_document_and_no_fault(
    plain: BpeTokenizer, values: list[str | bytes]
) -> None:
    framed, bang = _framed(), files.fitted_json()["model"]["vocab"]["!"]
    bare, flat = plain.encode_flat(values), framed.encode_flat(values)
    assert flat.faults.keys() == bare.faults.keys()
    for n in range(len(values)):
        inner = bare.values[bare.offsets[n] : bare.offsets[n + 1]].tolist()
        outer = flat.values[flat.offsets[n] : flat.offsets[n + 1]].tolist()
        assert outer == ([] if n in flat.faults else [bang, *inner, 0])


@functools.cache
def _framed() -> BpeTokenizer:
    return files.load(files.fitted(), bos="!", eos=END)


def test_frames_are_taken_off_by_decode_even_of_a_cut_sequence() -> None:
    framed = files.load(files.fitted(), bos=END, eos=END)
    ids = files.ids(framed, "hello")[0]
    assert _decode(framed, ids) == "hello"
    assert "hello".startswith(_decode(framed, ids[:-1]))


def test_frames_by_declaration_or_an_error_that_names_candidates() -> None:
    with pytest.raises(TokenizerError, match="endoftext"):
        files.load(files.fitted(), bos=True)
    with pytest.raises(TokenizerError, match="did you mean"):
        files.load(files.fitted(), eos="<|endoftxt|>")
    ranks = files.load(files.ranks(), pattern="gpt2", tokens={END: 1999}, eos=True)
    assert files.ids(ranks, "")[0] == [1999]
    assert files.ids(files.load(files.spm(), bos=True, eos=True), "")[0] == [1, 2]
    template = files.load(_template(), bos=True)
    assert files.ids(template, "")[0] == [0]


def _template() -> str:
    special = {"SpecialToken": {"id": END, "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return files.changed(
        "template.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [special, sequence],
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
        },
    )


def test_post_processor_is_applied_on_request_only() -> None:
    without, with_ = files.load(_template()), files.load(_template(), post_processor=True)
    assert with_.notes() == ()
    assert files.ids(with_, "hi")[0] == [0, *files.ids(without, "hi")[0]]
    assert without.identity().recipe == files.load(files.fitted()).identity().recipe
    assert with_.identity().recipe != without.identity().recipe
    with pytest.raises(TokenizerError, match="both"):
        files.load(_template(), post_processor=True, eos=END)


def test_values_that_are_no_text_are_faults_by_reason(plain: BpeTokenizer) -> None:
    values: list[Any] = ["a", b"caf\xe9", "b\udc80", 7, "\x00", b"\xef\xbb\xbfbom", bytearray(b"c")]
    flat = plain.encode_flat(values)
    assert {n: f.reason for n, f in flat.faults.items()} == {
        1: "invalid-utf8",
        2: "invalid-unicode",
        3: "not-text",
    }
    assert "byte 3" in flat.faults[1].what
    assert _decode(plain, flat.values[flat.offsets[5] : flat.offsets[6]].tolist()) == "\ufeffbom"
    with pytest.raises(SampleError, match="surrogate"):
        list(plain.preparer().prepare({"text": "b\udc80"}, np.random.default_rng()))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_lone_surrogates_are_refused_by_every_format(engine: str) -> None:
    for path, config in (
        (files.fitted(), {}),
        (files.ranks(), {"pattern": "gpt2"}),
        (files.spm(), {}),
    ):
        flat = files.load(path, engine=engine, **config).encode_flat(["ok", "\ud83d", "ok"])
        assert {n: f.reason for n, f in flat.faults.items()} == {1: "invalid-unicode"}


def test_dtype_is_the_narrowest_of_two(plain: BpeTokenizer) -> None:
    assert plain.encode_flat(["a"]).values.dtype == np.uint16
    wide = files.load(files.ranks(), pattern="gpt2", tokens={END: 1 << 16}, eos=True)
    flat = wide.encode_flat(["a"])
    assert flat.values.dtype == np.uint32 and flat.values[-1] == 1 << 16
    assert wide.descriptor.outputs[0].dtype == "uint32"
    edge = files.load(files.ranks(), pattern="gpt2", tokens={END: (1 << 16) - 1}, eos=True)
    assert edge.encode_flat(["a"]).values.tolist()[-1] == (1 << 16) - 1


def test_empty_batch_and_empty_documents(plain: BpeTokenizer) -> None:
    assert plain.encode_flat([]).offsets.tolist() == [0]
    assert plain.encode_flat(["", ""]).offsets.tolist() == [0, 0, 0]


def test_decoding_foreign_ids_names_them(plain: BpeTokenizer) -> None:
    for tokenizer in (plain, files.load(files.spm())):
        with pytest.raises(TokenizerError, match="60000"):
            _decode(tokenizer, [1, 60000])


def test_recipe_follows_what_changes_ids_and_nothing_else(plain: BpeTokenizer) -> None:
    def recipe(**config: Any) -> str:
        return files.load(files.fitted(), **config).identity().recipe

    base = plain.identity().recipe
    assert recipe(engine="reference") == recipe(threads=2) == recipe(special_tokens="text") == base
    changed = {recipe(special_tokens="encode"), recipe(bos=END), recipe(eos=END)}
    assert len(changed | {base}) == 4
    ranks = {files.load(files.ranks(), pattern=p).identity().recipe for p in ("gpt2", "o200k_base")}
    assert len(ranks) == 2
    assert "fastokens" in plain.identity().provenance["engine"]


def test_vocabularies_that_mean_something_else_have_another_space(plain: BpeTokenizer) -> None:
    model = files.fitted_json()["model"]
    vocab = dict(model["vocab"])
    one, two = list(vocab)[300:302]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    other = files.load(files.changed("swapped.json", model={**model, "vocab": vocab}))
    assert other.identity().space != plain.identity().space


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"special_token": "text"}, "did you mean 'special_tokens'"),
        ({"special_tokens": "drop"}, "text, encode, refuse"),
        ({"bos": 1}, "true, false or a token"),
        ({"tokens": {"a": "b"}}, "mapping"),
        ({"threads": 0}, "whole number"),
        ({"post_processor": "yes"}, "true or false"),
    ],
)
def test_settings_are_checked_before_anything_is_read(config: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        BpeTokenizer.describe(config)


def test_it_offers_every_optional_protocol(plain: BpeTokenizer) -> None:
    for protocol in (
        FlatTokenizer,
        UnitChecker,
        Decodes,
        Fits,
        Conforms,
        ClaimsLossless,
        HasOracle,
    ):
        assert isinstance(plain, protocol)
    assert pickle.loads(pickle.dumps(plain.preparer())) == plain.preparer()


def test_unigram_tokenizer_json_falls_back_or_agrees_and_is_not_called_lossless() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.Unigram())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    library.train_from_iterator(files.corpus()[:3], trainer)
    path = files.folder() / "unigram.json"
    library.save(str(path))
    tokenizer = files.load(str(path))
    assert not tokenizer.lossless
    assert files.ids(tokenizer, "import sys")[0] == library.encode("import sys").ids
    assert _decode(tokenizer, files.ids(tokenizer, "import sys")[0]) == "import sys"
