"""docs/loader.md does what it says: its snippets run, one after the other, on a real store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.store.stream.stores import pair_store

PAGE = Path(__file__).parents[3] / "docs" / "loader.md"


def test_the_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pair_store(tmp_path / "tokens", files=6, pairs=25)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert len(snippets) == 6
    assert names["batch"].tokens.shape[1] == 64
    assert names["state"]["slot"] > 0
