"""Formats are told by content, read by their own libraries, and refused with a remedy."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers

from tests.workers import bpe_files as files
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe.patterns import NAMED
from tokenmill.workers.tokenizers.bpe.probes import PROBES


def _copy(source: str, name: str) -> str:
    out = files.folder() / name
    out.write_bytes(Path(source).read_bytes())
    return str(out)


def _refusal(data: bytes, **config: Any) -> str:
    path = files.folder() / "refused"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        files.load(str(path), **config)
    assert "refused" in (caught.value.where or "") and caught.value.remedy
    return str(caught.value)


def test_tokenizer_json_gives_the_ids_of_tokenizers() -> None:
    library = tokenizers.Tokenizer.from_file(files.fitted())
    library.encode_special_tokens = True
    assert files.ids(files.load(files.fitted()), *PROBES) == [
        library.encode(text, add_special_tokens=False).ids for text in PROBES
    ]


def test_rank_file_gives_the_ids_of_tiktoken() -> None:
    table = {
        base64.b64decode(piece): int(rank)
        for piece, rank in (line.split() for line in Path(files.ranks()).read_bytes().splitlines())
    }
    for name in NAMED:
        library = tiktoken.Encoding(
            "x", pat_str=NAMED[name].text, mergeable_ranks=table, special_tokens={}
        )
        given = files.ids(files.load(files.ranks(), pattern=name), *PROBES)
        assert given == [library.encode_ordinary(text) for text in PROBES]


def test_sentencepiece_model_gives_the_ids_of_sentencepiece() -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=files.spm())
    tokenizer = files.load(files.spm())
    assert files.ids(tokenizer, *PROBES) == library.encode(list(PROBES))
    assert any("SentencePiece" in note for note in tokenizer.notes())


def test_one_vocabulary_in_two_formats_encodes_alike() -> None:
    by_json = files.ids(files.load(files.fitted()), *PROBES)
    by_ranks = files.ids(files.load(files.ranks(), pattern="gpt2"), *PROBES)
    assert by_json == [[id_ + 1 for id_ in one] for one in by_ranks]


def test_two_formats_of_one_vocabulary_share_the_space_and_not_the_recipe() -> None:
    data = files.fitted_json()
    vocab = {p: i - 1 for p, i in data["model"]["vocab"].items() if p != files.END}
    end = len(vocab)
    data["model"]["vocab"] = vocab
    data["added_tokens"] = [files.added(files.END, end, special=True)]
    path = files.folder() / "shifted.json"
    path.write_text(json.dumps(data))
    one = files.load(str(path)).identity()
    two = files.load(files.ranks(), pattern="gpt2", tokens={files.END: end}).identity()
    assert one.space == two.space
    assert one.recipe != two.recipe


def test_format_is_told_by_content_and_not_by_name() -> None:
    assert files.load(_copy(files.fitted(), "a.model")).descriptor.outputs[0].codebook_sizes
    assert files.load(_copy(files.ranks(), "b.json"), pattern="gpt2").identity().parts[
        "format"
    ] == ("tiktoken")
    assert files.load(_copy(files.spm(), "c.tiktoken")).identity().parts["format"] == (
        "sentencepiece"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 zip", "no vocabulary"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b'{"model": ', "not JSON"),
        (b'{"add_bos_token": true}', "tokenizer_config.json"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', "tokenizers"),
        (b'{"model": {"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "not JSON"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 4000000000}, "unk_token": "a"}}', "ids"),
        (b"\x0a\x05hello", "sentencepiece"),
        (b"\x0a" + bytes(range(256)) * 8, "sentencepiece"),
    ],
)
def test_damaged_and_foreign_files_are_refused_by_name(data: bytes, words: str) -> None:
    assert words in _refusal(data)


def test_damaged_rank_files_are_refused() -> None:
    good = Path(files.ranks()).read_bytes()
    lines = good.splitlines(keepends=True)
    assert "without" not in _refusal(good)  # no pattern
    assert "pattern" in _refusal(good)
    assert "256 bytes" in _refusal(b"".join(lines[1:]), pattern="gpt2")
    assert "repeated" in _refusal(good + lines[7], pattern="gpt2")
    assert "one rank" in _refusal(good + b"enp6enp6 7\n", pattern="gpt2")
    assert "line 3" in _refusal(b"".join([*lines[:2], b"!!\n", *lines[3:]]), pattern="gpt2")


def test_pattern_that_loses_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="leaves out"):
        files.load(files.ranks(), pattern=r"\w+")
    with pytest.raises(TokenizerError, match="cannot be used"):
        files.load(files.ranks(), pattern="(")
    custom = files.load(files.ranks(), pattern=r"\p{L}{1,7}|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    assert custom.lossless


def test_folders_and_missing_files_are_refused_with_a_hint() -> None:
    files.fitted()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        files.load(str(files.folder()))
    with pytest.raises(TokenizerError, match="does not exist"):
        files.load("/nowhere/tokenizer.json")


def test_truncation_padding_and_dropout_of_the_file_are_ignored() -> None:
    model = {**files.fitted_json()["model"], "dropout": 0.5}
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": files.END,
    }
    cut = files.load(files.changed("cut.json", truncation=truncation, padding=padding, model=model))
    plain = files.load(files.fitted())
    assert files.ids(cut, *PROBES) == files.ids(plain, *PROBES)
    assert cut.identity().recipe == plain.identity().recipe


def test_both_spellings_of_merges_are_one_recipe() -> None:
    model = files.fitted_json()["model"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    joined = [" ".join(pair) for pair in pairs]
    one = files.load(files.changed("pairs.json", model={**model, "merges": pairs}))
    two = files.load(files.changed("joined.json", model={**model, "merges": joined}))
    assert one.identity().recipe == two.identity().recipe


def test_added_token_that_the_library_would_renumber_is_refused() -> None:
    data = files.fitted_json()
    path = files.changed(
        "hole.json", added_tokens=[*data["added_tokens"], files.added("<x>", 5000)]
    )
    with pytest.raises(TokenizerError, match="5000"):
        files.load(path)


def test_holes_in_the_ids_do_not_cost_the_fast_engine() -> None:
    data = files.fitted_json()
    data["model"]["vocab"]["<x>"] = 5000
    path = files.changed(
        "filled.json",
        model=data["model"],
        added_tokens=[*data["added_tokens"], files.added("<x>", 5000, special=True)],
    )
    tokenizer = files.load(path, special_tokens="encode")
    assert tokenizer.notes() == ()
    assert files.ids(tokenizer, "a<x>")[0][-1] == 5000
    assert tokenizer.descriptor.outputs[0].codebook_sizes == (5001,)


def test_public_special_tokens_come_only_with_the_public_vocabulary() -> None:
    small = files.load(files.ranks(), pattern="cl100k_base")
    assert small.descriptor.outputs[0].codebook_sizes == (1999,)


def test_special_tokens_of_a_rank_file_may_not_collide() -> None:
    with pytest.raises(TokenizerError, match="cannot have the id 5"):
        files.load(files.ranks(), pattern="gpt2", tokens={"<x>": 5})
