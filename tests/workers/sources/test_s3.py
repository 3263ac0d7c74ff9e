"""The same sources over S3 (a real server)."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenmill.schemas.errors import InputChanged, SourceError
from tokenmill.store.access import Access
from tokenmill.workers.sources import open_source

from .reading import config, cut, read_all, read_spans, whole
from .test_webdataset import tar

pytestmark = pytest.mark.s3


def put(root: str, path: str, body: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        Access(root, any_names=True).put(Path(file.name), path)


def test_folders_globs_and_single_objects(s3: Callable[[], str]) -> None:
    root = s3()
    for name in ("a.txt", "x/b.txt", "x/c.md", ".hidden", "odd?#/d.txt"):
        put(root, name, name.encode())

    def keys(uri: str) -> list[str]:
        return [i.key for i in open_source(config(uri, "text")).list()]

    assert keys(root) == ["a.txt", "odd?#/d.txt", "x/b.txt", "x/c.md"]
    assert keys(f"{root}/") == keys(root)
    assert keys(f"{root}/*/*.txt") == ["odd?#/d.txt", "x/b.txt"]
    assert keys(f"{root}/?/b.txt") == ["x/b.txt"]
    assert keys(f"{root}/a.txt") == ["a.txt"]
    read = read_all(config(root, "text"), "text")
    assert read.values("text") == read.keys
    with pytest.raises(SourceError, match="nowhere"):
        keys(f"{root}/nowhere")
    spelt = root.replace("s3://", "s3://user:secret@")
    assert next(open_source(config(spelt, "text")).list()).uri == f"{root}/a.txt"


def test_every_format_reads_what_lies_there(s3: Callable[[], str]) -> None:
    root = s3()
    texts = [f"{n:07}" for n in range(3000)]
    table = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), table, row_group_size=500)
    lines = b"".join(b'{"text": "%s"}\n' % t.encode() for t in texts)
    put(root, "a.parquet", table.getvalue())
    put(root, "a.jsonl", lines)
    put(root, "b.jsonl.gz", gzip.compress(lines))
    put(root, "c.tar", tar(*((f"{t}.text", t.encode()) for t in texts)))
    for format, copies in (("parquet", 1), ("jsonl", 2), ("webdataset", 1)):
        values = read_all(config(root, format), "text").values("text")
        got = [v.decode() if isinstance(v, bytes) else v for v in values]
        assert got == texts * copies, format
    for name, format in (("a.parquet", "parquet"), ("a.jsonl", "jsonl")):
        cfg = config(f"{root}/{name}", format)
        [input_] = open_source(cfg).list()
        spans = cut(input_, [100, 5000, 20_000])
        assert read_spans(cfg, spans, ["text"]).values("text") == texts


def test_files_of_one_stem(s3: Callable[[], str]) -> None:
    root = s3()
    put(root, "x/a.jpg", b"j")
    put(root, "x/a.txt", b"t")
    read = read_all(config(root, "files"), "jpg", "txt")
    assert (read.keys, read.values("jpg"), read.values("txt")) == (["x/a"], [b"j"], [b"t"])


@pytest.mark.parametrize("size", [10, 40 << 20])
def test_an_object_that_is_replaced_goes_back_to_planning(s3: Callable[[], str], size: int) -> None:
    root = s3()
    put(root, "a.jsonl", b'{"text": "x"}\n' * (size // 14 + 1))
    cfg = config(root, "jsonl")
    source = open_source(cfg)
    [input_] = source.list()
    reading = iter(source.read([whole(input_)], ["text"]))
    if size > 10:
        next(reading)
    put(root, "a.jsonl", b'{"text": "y"}\n')
    with pytest.raises(InputChanged) as raised:
        list(reading)
    assert raised.value.uri == input_.uri


def test_an_object_that_is_gone_goes_back_to_planning(s3: Callable[[], str]) -> None:
    root = s3()
    for format, name in (("text", "a.txt"), ("parquet", "a.parquet")):
        put(root, name, b"x")
        cfg = config(f"{root}/{name}", format)
        [input_] = open_source(cfg).list()
        Access(root).delete([name])
        with pytest.raises(InputChanged):
            read_spans(cfg, [whole(input_)], ["text"])


def test_content_identity_over_s3(s3: Callable[[], str]) -> None:
    root = s3()
    put(root, "a.txt", b"x")
    [before] = open_source(config(root, "text", identity="content")).list()
    put(root, "b.txt", b"x")
    assert (
        before.identity
        == [i.identity for i in open_source(config(root, "text", identity="content")).list()][1]
    )
