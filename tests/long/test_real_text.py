"""The main job on 100 MB of real text in three formats, locally and on S3: `make long`.

The standard library and site-packages of this environment: sources as text files, documentation
as JSON lines (zstd) and as Parquet. Every document's ids are compared with the reference engine's.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

import tokenmill
from tests.pipelines.test_run import cli
from tokenmill.store.access import Access

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PART = 35_000_000  # bytes of text in each of the three formats
SUFFIXES = {".py", ".pyi", ".rst", ".md", ".txt", ".h", ".c"}


def documents() -> Iterator[tuple[Path, bytes]]:
    roots = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    seen: set[Path] = set()
    for root in roots:
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and path not in seen:
                seen.add(path)
                yield path, path.read_bytes()


def corpus(folder: Path) -> int:
    """Bytes written: a third as files, a third as jsonl.zst, a third as parquet."""
    total = 0
    found = documents()
    for name in ("text", "jsonl", "parquet"):
        (folder / name).mkdir(parents=True)
        rows: list[str] = []
        size = 0
        for number, (path, data) in enumerate(found):
            if name == "text":
                (folder / name / f"{number:05d}{path.suffix}").write_bytes(data)
            else:
                rows.append(data.decode("utf-8", "replace"))
            size += len(data)
            if size >= PART:
                break
        total += size
        if name == "jsonl":
            lines = "".join(json.dumps({"text": t}) + "\n" for t in rows).encode()
            (folder / name / "docs.jsonl.zst").write_bytes(zstandard.compress(lines))
        elif name == "parquet":
            table = pa.table({"n": range(len(rows)), "text": rows})
            pq.write_table(table, folder / name / "docs.parquet", row_group_size=500)
    return total


def job(folder: Path, source: str, store: str) -> Path:
    pipelines = {
        name: {
            "source": {"uri": f"{source}/{name}", "format": name},
            "streams": {
                "ids": {
                    "tokenizer": "bpe",
                    "checkpoint": str(folder / "tokenizer.json"),
                    **({} if name == "text" else {"field": "text"}),
                }
            },
        }
        for name in ("text", "jsonl", "parquet")
    }
    path = folder / f"{Path(store).name}.json"
    path.write_text(json.dumps({"name": "real", "store": store, "pipelines": pipelines}))
    return path


def compare(store: str, vocabulary: Path) -> tuple[int, int]:
    """(documents, tokens) that equal the reference engine's; fails on the first that does not."""
    reference = Tokenizer.from_file(str(vocabulary))
    documents = tokens = 0
    for pipeline in ("text", "jsonl", "parquet"):
        for row in tokenmill.open(store, pipeline=pipeline):
            ids = row["ids"]
            if ids is None:
                continue
            text = row.decode("ids")
            expected = reference.encode(text, add_special_tokens=False).ids
            assert np.array_equal(ids, expected), (pipeline, row.key)
            documents, tokens = documents + 1, tokens + len(ids)
    return documents, tokens


def total(store: str) -> tuple[int, int, int]:
    ds = tokenmill.open(store)
    rows = ds.sql("select sum(samples) s, sum(tokens) t from shards").to_pylist()[0]
    refused = ds.sql("select count(*) n from quarantine").to_pylist()[0]["n"]
    return int(rows["s"]), int(rows["t"]), int(refused)


def commits(store: str) -> int:
    return sum(f.path.endswith(".json") for f in Access(store).list("ledger/_delta_log"))


def test_real_text_in_three_formats(tmp_path: Path, s3: Callable[[], str]) -> None:
    """G3, G6 on Ray and without it, in a folder and on S3: the same ids everywhere."""
    size = corpus(tmp_path / "in")
    assert size > 100_000_000
    local = str(tmp_path / "local")
    first = job(tmp_path, str(tmp_path / "in"), local)
    fit = ("tokenizers", "fit", "bpe", "--job", first, "--out", tmp_path / "tokenizer.json")
    cli(*fit, "--set", "vocab_size=8000")
    said = cli("run", first, "--executor", "ray")
    print(said)
    before = commits(local)
    assert "Nothing new" in cli("run", first, "--executor", "local")
    assert commits(local) == before
    documents, tokens = compare(local, tmp_path / "tokenizer.json")
    print(f"{size:,} bytes; {documents:,} documents, {tokens:,} tokens equal the reference")
    samples, all_tokens, refused = total(local)
    assert (samples, all_tokens) == (documents, tokens)
    print(cli("verify", local))

    for number in range(3):
        (tmp_path / "in" / "text" / f"new{number}.txt").write_text(f"a new text, {number}\n")
    cli("run", first, "--executor", "local")
    grown = total(local)
    assert grown[0] == samples + 3 and grown[2] == refused
    last = tokenmill.open(local).sql(
        "select sum(samples) n from shards where committed_at = (select max(committed_at) "
        "from shards)"
    )
    assert last["n"].to_pylist() == [3]

    remote = s3()
    _upload(tmp_path / "in", Access(f"{remote}/in"))
    second = job(tmp_path, f"{remote}/in", f"{remote}/store")
    cli("run", second, "--executor", "local")
    assert total(f"{remote}/store") == grown
    assert "Nothing new" in cli("run", second, "--executor", "local")
    cli("verify", f"{remote}/store")


def _upload(folder: Path, access: Access) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            access.put(path, os.fspath(path.relative_to(folder)))
