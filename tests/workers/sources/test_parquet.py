"""`format: parquet`: row groups to spans, types, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.schemas.identity import sample_ids
from tokenmill.workers.sources import open_source, parquet
from tokenmill.workers.sources.bounded import Damaged

from .reading import config, cut, read_all, read_spans, whole


def write(path: Path, columns: dict[str, Any], **settings: Any) -> Path:
    pq.write_table(pa.table(columns), path, **settings)
    return path


def test_rows_are_samples_numbered_through_the_file(tmp_path: Path) -> None:
    texts = [f"text {n}" if n % 3 else None for n in range(2500)]
    path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=700)
    read = read_all(config(tmp_path, "parquet"), "text")
    assert read.values("text") == texts
    assert read.keys == [f"a.parquet#{n}" for n in range(2500)]
    sample_id = sample_ids(str(path))
    assert [row.id for row in read.rows] == [sample_id(str(n)) for n in range(2500)]
    assert max(len(b) for b in read.batches) <= 1024


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array(["a", None, "é"]), ["a", None, "é"]),
        (pa.array(["a", None, "é"], pa.large_string()), ["a", None, "é"]),
        (pa.array(["a", None, "é"], pa.string_view()), ["a", None, "é"]),
        (pa.array([b"a", None, b"\xff"]), [b"a", None, b"\xff"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([1, None, 3]), [("!", "wrong-type"), None, ("!", "wrong-type")]),
        (pa.array([["a"], None, []]), [("!", "wrong-type"), None, ("!", "wrong-type")]),
        (pa.array([None, None, None]), [None, None, None]),
    ],
)
def test_text_and_bytes_pass_and_other_types_are_wrong(
    tmp_path: Path, array: pa.Array, values: list[Any]
) -> None:
    path = write(tmp_path / "a.parquet", {"x": array})
    assert read_all(config(path, "parquet"), "x").values("x") == values


def test_a_column_that_is_not_there_is_absent_in_every_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b"]})
    cfg = config(path, "parquet")
    read = read_all(cfg, "body", "text")
    assert read.values("body") == [None, None]
    assert read.values("text") == ["a", "b"]
    assert read_all(cfg, "body").keys == read.keys
    [input_] = open_source(cfg).list()
    assert list(open_source(cfg).fields(input_)) == ["text"]


def test_leaves_of_structs_have_dotted_names(tmp_path: Path) -> None:
    rows = [{"text": "deep", "n": 1}, None, {"text": None, "n": 2}]
    path = write(tmp_path / "a.parquet", {"meta": pa.array(rows), "meta.x": ["1", "2", "3"]})
    cfg = config(path, "parquet")
    read = read_all(cfg, "meta.text", "meta.x", "meta.none", "meta")
    assert read.values("meta.text") == ["deep", None, None]
    assert read.values("meta.x") == ["1", "2", "3"]
    assert read.values("meta.none") == [None] * 3
    assert read.values("meta") == [("!", "wrong-type"), None, ("!", "wrong-type")]
    [input_] = open_source(cfg).list()
    assert list(open_source(cfg).fields(input_)) == ["meta", "meta.x", "meta.text", "meta.n"]


def test_a_key_column_of_texts_or_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"id": ["x", None], "n": [7, 8], "t": ["a", "b"]})
    assert read_all(config(path, "parquet", key="id"), "t").keys == ["x", "a.parquet#1"]
    assert read_all(config(path, "parquet", key="n"), "t").keys == ["7", "8"]
    assert read_all(config(path, "parquet", key="none"), "t").keys[0] == "a.parquet#0"


def test_text_that_is_not_utf8_costs_only_itself(tmp_path: Path) -> None:
    lying = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\x00\0\0\0\x01\0\0\0\x03\0\0\0\x04\0\0\0"), pa.py_buffer(b"ab\xffc")
    )
    path = write(tmp_path / "a.parquet", {"text": lying})
    assert read_all(config(path, "parquet"), "text").values("text") == [
        "a",
        ("!", "invalid-utf8"),
        "c",
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()])
def test_a_value_over_the_limit_costs_only_itself(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", {"text": pa.array(["a", "x" * 100, None], kind)})
    values = read_all(config(path, "parquet", max_sample_bytes=50), "text").values("text")
    assert values[1] == ("!", "too-large")
    assert (len(values[0]), values[2]) == (1, None)


def test_large_values_make_small_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [f"{n:07}" * 300_000 for n in range(12)]})
    assert max(len(b) for b in read_all(config(path, "parquet"), "text").batches) <= 4


def test_an_empty_table_has_no_samples_and_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    read = read_all(config(path, "parquet"), "text")
    assert (read.rows, read.faults) == ([], [])


@pytest.mark.parametrize("body", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\xff" * 40])
def test_what_is_no_parquet_is_the_inputs_fault_said_once(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(body)
    cfg = config(path, "parquet")
    [input_] = open_source(cfg).list()
    read = read_spans(cfg, cut(input_, [2, 5]), ["text"])
    assert [fault.reason for fault in read.faults] == ["invalid-parquet"]
    assert read.done[0].fault is not None
    assert list(open_source(cfg).fields(input_)) == []


def test_a_damaged_column_leaves_the_other_and_the_enumeration_alone(tmp_path: Path) -> None:
    noise = [f"{n * 7919 % 104729:06}" * 30 for n in range(6000)]
    path = write(
        tmp_path / "a.parquet",
        {"a": noise, "b": [t[::-1] for t in noise]},
        row_group_size=2000,
        compression="zstd",
        use_dictionary=False,
        data_page_size=1 << 14,
    )
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    body = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    body[middle : middle + 3000] = bytes(3000)
    path.write_bytes(body)
    cfg = config(path, "parquet")
    both, only_a, neither = (read_all(cfg, *f) for f in (("a", "b"), ("a",), ()))
    assert both.keys == only_a.keys == neither.keys
    assert len(both.keys) == 6000
    assert both.values("b") == [t[::-1] for t in noise]
    found = both.values("a")
    assert found == only_a.values("a")
    assert found[:2000] == noise[:2000]
    assert found[4000:] == noise[4000:]
    bad = [n for n, value in enumerate(found) if value == ("!", "invalid-parquet")]
    assert bad
    assert bad == list(range(bad[0], 4000))
    assert both.faults == []


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 20),
    st.booleans(),
    st.lists(st.integers(0, 1 << 20), max_size=6),
)
def test_any_cuts_give_every_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    group: int,
    dictionary: bool,
    cuts: list[int],
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "a.parquet"
    columns = {"text": [f"t{n % 5}" for n in range(rows)], "n": list(range(rows))}
    write(path, columns, row_group_size=group, use_dictionary=dictionary)
    cfg = config(path, "parquet")
    source = open_source(cfg)
    [input_] = source.list()
    assert source.splittable(input_)
    uncut = read_spans(cfg, [whole(input_)], ["text"])
    assert len(uncut.rows) == rows
    assert read_spans(cfg, cut(input_, cuts), ["text"]).rows == uncut.rows


def test_a_cut_at_a_groups_first_byte_gives_it_to_the_later_span(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b"]}, row_group_size=1)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    cfg = config(path, "parquet")
    [input_] = open_source(cfg).list()
    spans = cut(input_, [first])
    assert read_spans(cfg, spans[:1], ["text"]).keys == ["a.parquet#0"]
    assert read_spans(cfg, spans[1:], ["text"]).keys == ["a.parquet#1"]


class _Lying:
    """A footer as a hostile writer may make it; only what `row_groups` looks at."""

    num_row_groups = 1
    num_columns = 1
    total_compressed_size = 100
    has_dictionary_page = False
    dictionary_page_offset = None
    path_in_schema = "text"

    def __init__(self, rows: int, offset: int) -> None:
        self.num_rows, self.data_page_offset = rows, offset

    def row_group(self, number: int) -> _Lying:
        return self

    def column(self, number: int) -> _Lying:
        return self


def test_a_footer_that_claims_too_many_rows_is_refused() -> None:
    with pytest.raises(Damaged, match="claims"):
        parquet.row_groups(_Lying(1 << 40, 4), 1000)
    with pytest.raises(Damaged, match="claims"):
        parquet.row_groups(_Lying(-1, 4), 1000)


@pytest.mark.parametrize("offset", [-5, 4, 1 << 50])
def test_a_group_begins_within_the_file_whatever_its_footer_says(offset: int) -> None:
    [(_, first, _, _)] = parquet.row_groups(_Lying(10, offset), 1000)
    assert 0 <= first < 1000
