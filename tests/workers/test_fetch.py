"""Checkpoints: local or in S3, hash checked before anybody parses, no secrets in errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Checkpoint
from tokenmill.store.access import Access
from tokenmill.workers.fetch import fetch


def test_local_file_is_used_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w")
    good = hashlib.sha256(b"w").hexdigest()
    assert fetch(Checkpoint(uri=str(file), sha256=good)) == file
    assert fetch(Checkpoint(uri=f"file://{file}")) == file


def test_other_bytes_than_the_job_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w")
    with pytest.raises(TokenizerError, match="SHA-256") as caught:
        fetch(Checkpoint(uri=str(file), sha256="0" * 64))
    assert caught.value.where == str(file)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        fetch(Checkpoint(uri=str(tmp_path / "none")))


@pytest.mark.s3
def test_object_is_downloaded_once_and_anew_when_it_changed(
    s3: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    root = Access(s3())
    assert root.create("w/tokenizer.json", b"one")
    uri = root.full("w/tokenizer.json")
    first = fetch(Checkpoint(uri=uri, sha256=hashlib.sha256(b"one").hexdigest()))
    assert first.read_bytes() == b"one" and first == fetch(Checkpoint(uri=uri))
    assert root.replace("w/tokenizer.json", b"two", root.stat("w/tokenizer.json").version)
    assert fetch(Checkpoint(uri=uri)).read_bytes() == b"two"
    with pytest.raises(TokenizerError, match="SHA-256"):
        fetch(Checkpoint(uri=uri, sha256=hashlib.sha256(b"one").hexdigest()))
    with pytest.raises(TokenizerError, match="does not exist"):
        fetch(Checkpoint(uri=root.full("w/none")))
