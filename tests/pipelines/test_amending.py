"""forget and retry through the command line: real runs before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import LOCAL, add, cli, commits, ids, make, vocabulary

import tokenmill

__all__ = ["vocabulary"]  # the fixture


def keys(store: Path) -> set[str]:
    return {row.key for row in tokenmill.open(str(store))}


def test_a_forgotten_sample_does_not_come_back_by_any_run(tmp_path: Path, vocabulary: Path) -> None:
    """Not by the same job again, not by another recipe, not by a new version of its file."""
    job = make(tmp_path, vocabulary, count=3, lines=5)
    store = tmp_path / "store"
    cli("run", job, *LOCAL)
    target = sorted(keys(store))[7]
    where = f"key = '{target}'"
    assert "nothing was touched" in cli("forget", store, "--where", where)
    assert target in keys(store)
    receipt = tmp_path / "receipt.json"
    said = cli("forget", store, "--where", where, "--rewrite", "--yes", "--receipt", receipt)
    assert "vacuum" in said
    told = json.loads(receipt.read_text())
    assert (told["samples"], len(told["rewritten"]), told["dry_run"]) == (1, 1, False)
    assert target not in keys(store) and len(ids(store)) == 14
    before = commits(store)
    assert "Nothing new" in cli("run", job, *LOCAL)  # G3
    assert commits(store) == before
    text = job.read_text()
    job.write_text(text.replace("field: text", "field: text, config: {bos: '<|endoftext|>'}"))
    cli("run", job, *LOCAL, "--retokenize")
    assert len(ids(store)) == 14
    add(tmp_path, int(target.split("/")[-1][:3]), lines=6)
    cli("run", job, *LOCAL)
    assert len(ids(store)) == 15
    rows = tokenmill.open(str(store)).sql("select reason, key from quarantine").to_pylist()
    assert rows == [{"reason": "forgotten", "key": ""}]
    cli("verify", store)


@pytest.mark.parametrize("arguments", [(), ("--where", "nothing = 1")])
def test_what_cannot_be_forgotten_is_the_users_mistake(
    tmp_path: Path, vocabulary: Path, arguments: tuple[str, ...]
) -> None:
    cli("run", make(tmp_path, vocabulary, count=1, lines=2), *LOCAL)
    cli("forget", tmp_path / "store", *arguments, expect=2)
