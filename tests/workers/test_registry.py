"""Plug-ins are found by name, imported when asked for, and named in every error."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from tests.workers import bpe_files as files
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers import registry
from tokenmill.workers.tokenizers.bpe import BpeTokenizer


def _offer(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name=n, value=v, group=registry.GROUP) for n, v in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


def test_bpe_is_there_even_without_installed_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bpe" in registry.names()
    _offer(monkeypatch)
    assert registry.tokenizer_class("bpe") is BpeTokenizer


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(TokenizerError, match="did you mean 'bpe'"):
        registry.tokenizer_class("bpee")


def test_listing_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, ("broken", "no_such_module:Tokenizer"))
    assert registry.names() == sorted([*registry.BUILT_IN, "broken"])
    with pytest.raises(TokenizerError, match="no_such_module"):
        registry.tokenizer_class("broken")


def test_two_packages_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, ("bpe", "other:Bpe"))
    with pytest.raises(TokenizerError, match=r"other:Bpe"):
        registry.tokenizer_class("bpe")


def test_load_takes_a_path() -> None:
    tokenizer = registry.load("bpe", files.fitted())
    assert tokenizer.descriptor.name == "bpe"
    with pytest.raises(TokenizerError, match="needs a vocabulary"):
        registry.load("bpe")
