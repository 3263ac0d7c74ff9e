"""`format: text`, by file and by line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.schemas.samples import SpanDone
from tokenmill.workers.sources import open_source

from .reading import config, cut, read_all, read_spans, whole


def test_a_file_is_a_sample_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\nline\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "empty.txt").write_bytes(b"")
    read = read_all(config(tmp_path, "text"), "text")
    assert read.keys == ["a.txt", "b/empty.txt"]
    assert read.values("text") == ["\ufeffcafé\r\nline\n", ""]
    assert [done.span for done in read.done] == [0, 1]
    assert len({row.id for row in read.rows}) == 2


def test_what_is_not_utf8_names_the_byte_and_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"bad \xff")
    (tmp_path / "c.txt").write_bytes(b"\xed\xa0\x80")  # a surrogate, as some writers make
    cfg = config(tmp_path, "text")
    read = read_all(cfg, "text")
    assert read.values("text") == ["good", ("!", "invalid-utf8"), ("!", "invalid-utf8")]
    error = read.batches[1].fields["text"][0]
    assert "offset 4" in error.what
    assert str(tmp_path / "b.txt") in error.where


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 11)
    (tmp_path / "b.txt").write_bytes(b"x" * 10)
    read = read_all(config(tmp_path, "text", max_sample_bytes=10), "text")
    assert read.values("text") == [("!", "too-large"), "x" * 10]
    assert "11 bytes" in read.batches[0].fields["text"][0].what
    assert read.batches[0].bytes_read == 0


def test_another_field_than_text_is_absent_and_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    read = read_all(config(tmp_path, "text"), "title")
    assert read.values("title") == [None]
    assert read.batches[0].bytes_read == 0


def test_compressed_text_is_decompressed(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"hello"))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"x" * 100))
    read = read_all(config(tmp_path, "text", max_sample_bytes=50), "text")
    assert read.values("text") == ["hello", ("!", "too-large")]


def test_a_cut_compressed_text_is_the_inputs_fault(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"hello" * 1000)[:-9])
    read = read_all(config(tmp_path, "text"), "text")
    [fault] = read.faults
    assert (fault.reason, fault.sample, fault.row, fault.stage) == ("truncated", None, None, "read")
    assert read.rows == []


def test_by_line_keys_offsets_and_endings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\n  \ntw\xff\nlast")
    read = read_all(config(tmp_path, "text", by="line"), "text")
    assert read.keys == ["a.txt#0", "a.txt#6", "a.txt#9", "a.txt#13"]
    assert read.values("text") == ["one", "  ", ("!", "invalid-utf8"), "last"]
    assert "offset 11" in read.batches[0].fields["text"][2].what


def test_by_line_only_plain_files_are_cut(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
    by_line = open_source(config(tmp_path, "text", by="line"))
    by_file = open_source(config(tmp_path, "text"))
    plain, packed = by_line.list()
    assert by_line.splittable(plain)
    assert not by_line.splittable(packed)
    assert not by_file.splittable(plain)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="aé\r ", max_size=12), max_size=12),
    st.lists(st.integers(0, 300), max_size=5),
)
def test_cuts_by_line_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "a.txt"
    path.write_bytes("\n".join(parts).encode())
    cfg = config(path, "text", by="line")
    [input_] = open_source(cfg).list()
    uncut = read_spans(cfg, [whole(input_)], ["text"])
    assert read_spans(cfg, cut(input_, cuts), ["text"]).rows == uncut.rows


def test_every_span_ends_with_its_own_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    cfg = config(tmp_path, "text")
    source = open_source(cfg)
    items = list(source.read([whole(i) for i in source.list()], ["text"]))
    assert [(type(i) is SpanDone, i.span) for i in items] == [
        (False, 0),
        (True, 0),
        (False, 1),
        (True, 1),
    ]
