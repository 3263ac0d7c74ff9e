"""Learning a vocabulary: deterministic, bounded, atomic, with its lineage."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers import bpe_files as files
from tokenmill.schemas.errors import StoreUnavailable, TokenizerError
from tokenmill.workers.tokenizers.bpe import BpeTokenizer

SMALL = {"vocab_size": 400}


def _fit(texts: list[Any], out: Path, **config: Any) -> dict[str, Any]:
    samples = ({"text": text} for text in texts)
    return dict(BpeTokenizer.fit(samples, str(out), {**SMALL, **config}))


def test_same_corpus_gives_the_same_file_in_another_process(tmp_path: Path) -> None:
    texts = list(files.corpus()[:6])
    lineage = _fit(texts, tmp_path / "one.json")
    code = (
        "import json, sys; sys.path[:] = sys.argv[2:];"
        "from tokenmill.workers.tokenizers.bpe import BpeTokenizer;"
        "texts = json.load(sys.stdin);"
        "BpeTokenizer.fit(({'text': t} for t in texts), sys.argv[1], {'vocab_size': 400})"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "two.json"), *sys.path],
        input=json.dumps(texts).encode(),
        check=True,
    )
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert lineage["sha256"] == hashlib.sha256((tmp_path / "two.json").read_bytes()).hexdigest()


def test_lineage_counts_what_was_read(tmp_path: Path) -> None:
    lineage = _fit(["grüße " * 50, b"\xff", "b" * 10, "\ud800"], tmp_path / "t.json")
    assert (lineage["samples"], lineage["skipped"]) == (2, 2)
    assert lineage["bytes"] == len(("grüße " * 50).encode()) + 10
    assert lineage["complete"] and lineage["settings"]["tokens"] == [files.END]
    assert json.loads(json.dumps(lineage)) == lineage


def test_reading_stops_at_the_bound(tmp_path: Path) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield {"text": "all work and no play " * 10}

    lineage = BpeTokenizer.fit(endless(), str(tmp_path / "t.json"), {**SMALL, "max_bytes": 10_000})
    assert 9_000 < lineage["bytes"] <= 10_000 and not lineage["complete"]


def test_every_byte_and_token_has_an_id_and_text_comes_back(tmp_path: Path) -> None:
    _fit(["aaa bbb " * 99], tmp_path / "t.json", tokens=["<a>", "<b>"])
    tokenizer = files.load(str(tmp_path / "t.json"), eos="<b>")
    assert tokenizer.lossless and tokenizer.notes() == ()
    assert files.ids(tokenizer, "")[0] == [1]
    assert set(tokenizer._model.vocabulary.specials) == {"<a>", "<b>"}


@pytest.mark.parametrize("pattern", ["cl100k_base", r"\p{L}+|\s+|[^\s\p{L}]+"])
def test_other_patterns_can_be_learnt_with(tmp_path: Path, pattern: str) -> None:
    _fit(list(files.corpus()[:4]), tmp_path / "t.json", pattern=pattern)
    tokenizer = files.load(str(tmp_path / "t.json"))
    assert tokenizer.lossless
    assert files.ids(tokenizer, "import sys")[0]


def test_frequent_words_become_one_token(tmp_path: Path) -> None:
    _fit(["tokenmill " * 500], tmp_path / "t.json")
    assert len(files.ids(files.load(str(tmp_path / "t.json")), " tokenmill")[0]) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vocab_sise": 400}, "did you mean 'vocab_size'"),
        ({"vocab_size": 100}, "257"),
        ({"min_frequency": 0}, "whole number"),
        ({"tokens": "<a>"}, "list"),
        ({"pattern": "("}, "no regex"),
    ],
)
def test_settings_are_checked(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        _fit(["a"], tmp_path / "t.json", **config)
    assert list(tmp_path.iterdir()) == []


def test_corpus_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no text"):
        _fit([b"\xff", ""], tmp_path / "t.json")
    with pytest.raises(TokenizerError, match="does not exist"):
        _fit(["a"], tmp_path / "missing" / "t.json")
    assert list(tmp_path.iterdir()) == []


def test_what_the_source_raises_passes_and_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    out.write_text("old")

    def failing() -> Iterator[dict[str, Any]]:
        yield {"text": "a b c"}
        raise StoreUnavailable("the place does not answer")

    with pytest.raises(StoreUnavailable, match="does not answer"):
        BpeTokenizer.fit(failing(), str(out), SMALL)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
