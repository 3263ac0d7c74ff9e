"""Stores, jobs and checkpoints that somebody made to do harm (G9). Hostile inputs are tested beside
their readers: tests/workers/sources, tests/workers/vidtok, tests/workers/bpe_image."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_run import LOCAL, cli, make, vocabulary

import tokenmill
from tokenmill.schemas.errors import CorruptStore, StoreError, TokenizerError
from tokenmill.schemas.ledger import LEDGER_SCHEMA
from tokenmill.store.access import Access
from tokenmill.store.forget import forget
from tokenmill.store.ledger import Ledger
from tokenmill.store.upkeep import vacuum
from tokenmill.store.verify import verify

__all__ = ["vocabulary"]  # the fixture


@pytest.fixture
def store(tmp_path: Path, vocabulary: Path) -> Path:
    cli("run", make(tmp_path, vocabulary, count=1, lines=3), *LOCAL)
    return tmp_path / "store"


def forge(store: Path, *kinds: str, **changes: Any) -> None:
    """Append copies of the ledger's rows as one commit with other values, past the door."""
    ledger = Ledger.open(Access(str(store)))
    seq = ledger.seq("docs") + 1
    rows = [ledger.rows(kind).to_pylist()[-1] | {"seq": seq} for kind in kinds]
    rows[0] |= changes
    table = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
    ledger._table.append(table, app="tokenmill/docs", seq=seq, commit_id="forged")


class Attack:
    def __init__(self, told: Path) -> None:
        self.told = told

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.told}",)


@pytest.mark.parametrize("name", ["tokenizer.json", "weights.pt", "model.safetensors", "v.model"])
def test_a_checkpoint_of_pickled_code_is_refused_and_nothing_is_executed(
    tmp_path: Path, vocabulary: Path, name: str
) -> None:
    told = tmp_path / "executed"
    (tmp_path / name).write_bytes(pickle.dumps(Attack(told)))
    job = make(tmp_path, vocabulary, count=1, lines=1)
    job.write_text(job.read_text().replace(str(vocabulary / "words.json"), name))
    cli("run", job, *LOCAL, expect=2)
    assert not told.exists()


def test_a_store_that_names_code_as_its_tokenizer_runs_none(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "executed"
    (tmp_path / "evil_plugin.py").write_text(f"open({str(told)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    forge(store, "tokenizer", tokenizer="evil_plugin:Tokenizer", provenance='{"x": "1"}')
    row = next(iter(tokenmill.open(str(store))))
    with pytest.raises(TokenizerError, match="no plug-in"):
        row.decode("text")
    assert not told.exists() and "evil_plugin" not in sys.modules


@pytest.mark.parametrize("path", ["../outside.arrow", "/etc/passwd", "shards/../../outside.arrow"])
def test_a_ledger_that_names_files_outside_its_store_reaches_none(store: Path, path: str) -> None:
    """Neither to read nor to rewrite nor to delete them."""
    outside = store.parent / "outside.arrow"
    (shard,) = (store / "shards").rglob("*.arrow")
    outside.write_bytes(shard.read_bytes())
    before = outside.read_bytes()
    forge(store, "unit", "input", path=path)
    access = Access(str(store))
    with pytest.raises(StoreError):
        list(tokenmill.open(str(store)))
    with pytest.raises((StoreError, CorruptStore)):
        forget(access, Ledger.open(access), "true", dry_run=False, rewrite=True)
    assert not verify(access, Ledger.open(access)).ok
    vacuum(access, Ledger.open(access), dry_run=False, grace=0)
    assert outside.read_bytes() == before


def test_a_commit_id_that_is_sql_is_no_sql(store: Path) -> None:
    forge(store, "unit", "input", commit_id="x') OR kind = 'unit' OR commit_id IN ('")
    access = Access(str(store))
    rows = Ledger.open(access).rows("unit").num_rows
    with pytest.raises(CorruptStore, match="commit called"):
        forget(access, Ledger.open(access), "true", dry_run=False, rewrite=True)
    assert Ledger.open(access).rows("unit").num_rows == rows


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select getenv('AWS_SECRET_ACCESS_KEY')",
        "select * from 'https://example.com/x.parquet'",
        "copy shards to '/tmp/x'",
        "attach '/tmp/x.db'",
        "install httpfs",
        "select * from _ledger, glob('/*')",
        "set enable_external_access = true",
    ],
)
def test_sql_reads_no_file_no_variable_and_no_network(store: Path, sql: str) -> None:
    cli("query", store, sql, expect=2)
