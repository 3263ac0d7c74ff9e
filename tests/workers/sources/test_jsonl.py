"""`format: jsonl`, plain and compressed."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.workers.sources import open_source

from .reading import config, cut, read_all, read_spans, whole


def write(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    body = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    path.write_bytes(body)
    return path


def test_lines_are_samples_with_offsets_for_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "one", "n": 1}, {"text": "zwö"}, {"other": "x"})
    read = read_all(config(path, "jsonl"), "text", "other")
    offsets = [0, 24, 24 + 21]
    assert read.keys == [f"a.jsonl#{n}" for n in offsets]
    assert read.values("text") == ["one", "zwö", None]
    assert read.values("other") == [None, None, "x"]


def test_the_key_field_is_what_people_see(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "x1", "t": ""}, {"id": 7, "t": ""}, {"t": ""})
    read = read_all(config(path, "jsonl", key="id"), "t")
    assert read.keys == ["x1", "7", "a.jsonl#41"]


def test_dotted_names_reach_into_objects_and_exact_names_come_first(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"meta": {"text": "deep"}},
        {"meta.text": "flat", "meta": {"text": "deep"}},
        {"meta": "no object"},
        {"meta": {"text": {"x": 1}}},
    )
    read = read_all(config(path, "jsonl"), "meta.text")
    assert read.values("meta.text") == ["deep", "flat", None, ("!", "wrong-type")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "invalid-json"),
        (b"[1, 2]", "invalid-json"),
        (b'"text"', "invalid-json"),
        (b"null", "invalid-json"),
        (b'{"text": "a\xff"}', "invalid-utf8"),
        (b'{"text": "\\ud800"}', "invalid-json"),
        (b'{"text": NaN}', "invalid-json"),
        (b'{"a":' * 40_000, "invalid-json"),
        (b"[" * 100_000 + b"]" * 100_000, "invalid-json"),
        (b'{"text": 1, "text": "a"} x', "invalid-json"),
        (b"\x00", "invalid-json"),
        (b'{"text": "' + b"x" * 300_000 + b'"}', "too-large"),
    ],
)
def test_a_bad_line_costs_only_itself(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "before"}, line, {"text": "after"})
    read = read_all(config(path, "jsonl", max_sample_bytes=250_000), "text")
    assert read.verdicts("text") == ["before", ("!", reason), "after"]
    assert read.faults == []
    assert len({row.id for row in read.rows}) == 3


def test_faults_name_the_line_the_column_and_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {}, b'{"text": oops}', b"\xff", b"x" * 50)
    [batch] = read_all(config(path, "jsonl", max_sample_bytes=40), "text").batches
    json_, utf8, large = (batch.faults[n] for n in (1, 2, 3))
    assert "column 10" in json_.what
    assert json_.where == f"{path}, line at byte 3"
    assert "offset 18" in utf8.what
    assert "50 bytes" in large.what
    assert "40" in large.what
    assert "max_sample_bytes" in (large.remedy or "")


@pytest.mark.parametrize("value", [1, 1.5, True, [1], {"a": 1}, 10**400])
def test_a_value_that_is_not_text_is_a_wrong_type_and_the_sample_lives(
    tmp_path: Path, value: Any
) -> None:
    path = write(tmp_path / "a.jsonl", {"text": value, "other": "fine"})
    read = read_all(config(path, "jsonl"), "text", "other")
    if value == 10**400:  # no double holds it: the parser refuses the line
        assert read.rows[0].fault == "invalid-json"
    else:
        assert read.values("text") == [("!", "wrong-type")]
        assert read.values("other") == ["fine"]


def test_null_is_absent_and_a_repeated_key_keeps_the_last(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": None}, b'{"text": "a", "text": "b"}')
    assert read_all(config(path, "jsonl"), "text").values("text") == [None, "b"]


def test_blank_lines_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \t\n\n{"text": "b"}\r\n\xef\xbb\xbf{}')
    read = read_all(config(path, "jsonl"), "text")
    assert read.verdicts("text") == ["a", "b", ("!", "invalid-json")]
    assert read.keys[:2] == ["a.jsonl#0", "a.jsonl#25"]


@pytest.mark.parametrize("body", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_has_no_samples_and_no_fault(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(body)
    read = read_all(config(tmp_path, "jsonl"), "text")
    assert (read.rows, len(read.done), read.faults) == ([], 1, [])


def test_the_same_samples_whatever_fields_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"a": "x"}, b"bad", {"b": 3}, b"")
    read = {f: read_all(config(path, "jsonl"), *f) for f in ((), ("a",), ("a", "b"))}
    assert len({tuple(row.id for row in r.rows) for r in read.values()}) == 1
    assert len({tuple(row.fault for row in r.rows) for r in read.values()}) == 1


COMPRESS = {"gz": gzip.compress, "zst": zstandard.compress}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_are_read_like_plain_ones(tmp_path: Path, kind: str) -> None:
    plain = write(tmp_path / "a.jsonl", *({"text": f"line {n}" * 10} for n in range(5000)))
    packed = tmp_path / f"a.jsonl.{kind}"
    packed.write_bytes(COMPRESS[kind](plain.read_bytes()))
    one, two = (read_all(config(p, "jsonl"), "text") for p in (plain, packed))
    assert one.values("text") == two.values("text")
    assert [k.split("#")[1] for k in one.keys] == [k.split("#")[1] for k in two.keys]
    source = open_source(config(tmp_path, "jsonl"))
    assert [source.splittable(i) for i in source.list()] == [True, False]


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_cut_compressed_file_keeps_its_whole_lines(tmp_path: Path, kind: str) -> None:
    lines = [{"text": f"{n} {n * 7919 % 104729}"} for n in range(100_000)]
    whole_ = write(tmp_path / "x", *lines).read_bytes()
    packed = COMPRESS[kind](whole_)
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed[: len(packed) // 2])
    read = read_all(config(path, "jsonl"), "text")
    [fault] = read.faults
    assert fault.reason == "truncated"
    assert fault.source == str(path)
    assert len(read.rows) > 30_000
    assert read.verdicts("text") == [line["text"] for line in lines[: len(read.rows)]]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_long_line_is_skipped_unheld_or_taken_when_allowed(tmp_path: Path, ending: str) -> None:
    size = 24 << 20
    body = b'{"text": "a"}\n{"text": "' + b"x" * size + b'"}\n{"text": "b"}\n'
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending[1:]](body) if ending else body)
    del body
    tracemalloc.start()
    read = read_all(config(path, "jsonl", max_sample_bytes=1 << 20), "text")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read.verdicts("text") == ["a", ("!", "too-large"), "b"]
    assert peak < 20 << 20
    values = read_all(config(path, "jsonl", max_sample_bytes=32 << 20), "text").values("text")
    assert [len(v) for v in values] == [1, size, 1]


def test_batches_are_bounded_in_rows_and_bytes(tmp_path: Path) -> None:
    small = write(tmp_path / "small.jsonl", *({"text": "x"} for _ in range(5000)))
    large = write(tmp_path / "large.jsonl", *({"text": "x" * 3_000_000} for _ in range(8)))
    assert max(len(b) for b in read_all(config(small, "jsonl"), "text").batches) == 1024
    assert max(len(b) for b in read_all(config(large, "jsonl"), "text").batches) <= 2


def test_fields_are_the_keys_of_the_first_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"bad", {"b": 1, "a": 2}, {"c": 3})
    source = open_source(config(path, "jsonl"))
    [input_] = source.list()
    assert list(source.fields(input_)) == ["b", "a", "c"]


lines_ = st.one_of(
    st.dictionaries(st.sampled_from(["text", "x"]), st.text(max_size=8), max_size=2).map(
        lambda d: json.dumps(d, ensure_ascii=False).encode()
    ),
    st.sampled_from([b"", b" ", b"\r", b"bad", b"\xff", b"x" * 40]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(lines_, max_size=12), st.lists(st.integers(0, 600), max_size=6), st.booleans())
def test_any_cuts_enumerate_the_same_samples(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], cuts: list[int], newline: bool
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "a.jsonl"
    path.write_bytes(b"\n".join(parts) + (b"\n" if newline else b""))
    cfg = config(path, "jsonl", max_sample_bytes=30)
    [input_] = open_source(cfg).list()
    uncut = read_spans(cfg, [whole(input_)], ["text"])
    assert read_spans(cfg, cut(input_, cuts), ["text"]).rows == uncut.rows
