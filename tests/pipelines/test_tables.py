from __future__ import annotations

import csv
import datetime as dt
import io
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tokenmill.pipelines.tables import as_csv, as_json, as_rich, clean, human_bytes, show
from tokenmill.schemas.errors import JobError

ID = bytes(range(16))
AT = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
TABLE = pa.table(
    {
        "id": pa.array([ID, None], pa.binary(16)),
        "bytes": pa.array([1536, 5]),
        "tokens": pa.array([1234567, None]),
        "at": pa.array([AT, None], pa.timestamp("us", tz="UTC")),
        "share": [0.5, float("nan")],
        "ids": pa.array([[1, 2], []]),
    }
)


def printed(answer: Any, width: int = 200, short: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(as_rich(answer, short=short, width=width))
    return out.getvalue()


class Pipe(io.TextIOWrapper):
    """Standard output as a pipe is: text over bytes, no terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def bytes(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_people_see_units_separators_and_hex() -> None:
    text = printed(TABLE)
    for shown in ("1.5 KiB", "1,234,567", ID.hex(), "2026-01-02 03:04:05", "1, 2"):
        assert shown in text
    assert "1536" not in text


def test_csv_is_exact() -> None:
    rows = list(csv.reader(io.StringIO("".join(as_csv(TABLE)))))
    assert rows[0] == TABLE.column_names
    assert rows[1] == [ID.hex(), "1536", "1234567", AT.isoformat(), "0.5", "[1, 2]"]
    assert rows[2] == ["", "5", "", "", "", "[]"]


def test_json_is_exact_and_has_no_nan() -> None:
    rows = json.loads("".join(as_json(TABLE)))
    assert rows[0] == {
        "id": ID.hex(),
        "bytes": 1536,
        "tokens": 1234567,
        "at": AT.isoformat(),
        "share": 0.5,
        "ids": [1, 2],
    }
    assert rows[1]["share"] is None and rows[1]["tokens"] is None


def test_no_rows_are_still_an_answer() -> None:
    empty = TABLE.slice(0, 0)
    assert json.loads("".join(as_json(empty))) == []
    assert "".join(as_csv(empty)).strip() == ",".join(TABLE.column_names)
    assert "no rows" in printed(empty)


def test_two_columns_of_one_name_both_arrive_in_json() -> None:
    table = pa.Table.from_arrays([pa.array([n]) for n in (1, 2, 3)], ["a", "a", "a_1"])
    (row,) = json.loads("".join(as_json(table)))
    assert sorted(row.values()) == [1, 2, 3]


def test_parquet_goes_through_a_pipe_and_reads_back() -> None:
    table = TABLE.drop_columns(["share"])  # NaN equals nothing
    pipe = Pipe()
    show(table, "parquet", pipe)
    assert pq.read_table(io.BytesIO(pipe.bytes())).to_pylist() == table.to_pylist()


def test_parquet_takes_whatever_sql_answers() -> None:
    interval = pa.array([pa.MonthDayNano([1, 2, 3])], pa.month_day_nano_interval())
    pipe = Pipe()
    show(pa.table({"age": interval}), "parquet", pipe)
    assert "1 months" in pq.read_table(io.BytesIO(pipe.bytes()))["age"][0].as_py()


def test_parquet_to_a_terminal_is_refused() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(JobError, match="terminal"):
        show(TABLE, "parquet", Terminal())


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(JobError, match="table, csv, json, parquet"):
        show(TABLE, "yaml", io.StringIO())


def test_facts_are_one_object_or_one_line_each() -> None:
    facts = {"store": "/s", "bytes": 2048, "tags": {"v1": "ab"}, "notes": ()}
    assert json.loads("".join(as_json(facts))) == {**facts, "notes": []}
    text = printed(facts)
    assert "2.0 KiB" in text and "tags.v1" in text and "notes" not in text
    rows = dict(csv.reader(io.StringIO("".join(as_csv(facts)))))
    assert rows["bytes"] == "2048" and json.loads(rows["tags"]) == {"v1": "ab"}


def test_nothing_is_cut_off_where_there_is_no_terminal() -> None:
    long = "x" * 500
    out = io.StringIO()
    show(pa.table({"path": [long], "space": ["ab" * 32]}), "table", out)
    assert long in out.getvalue() and "ab" * 32 in out.getvalue()


def test_on_a_terminal_hashes_are_short_and_long_values_fold() -> None:
    table = pa.table({"path": ["p" * 100], "space": ["ab" * 32]})
    text = printed(table, width=60, short=True)
    assert "ab" * 6 in text and "ab" * 7 not in text
    assert sum(line.count("p") for line in text.splitlines()[1:]) == 100


def test_a_table_that_cannot_fit_becomes_a_record_per_row() -> None:
    wide = pa.table({f"column_{i}": [i * 1_000_000, i] for i in range(12)})
    text = printed(wide, width=80)
    assert "row 1" in text and "row 2" in text
    assert "column_11  11,000,000" in text
    assert "row 1" not in printed(wide, width=200)


def test_numbers_and_short_words_are_never_broken() -> None:
    table = pa.table({"message": ["long " * 40], "tokens": [12_345_678], "stream": ["caption"]})
    lines = printed(table, width=60).splitlines()
    assert any("12,345,678  caption" in line for line in lines)


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "a\rb", "[red]x[/red]", "\x9b31m", "‮txt"])
def test_a_hostile_name_does_not_steer_the_terminal(text: str) -> None:
    shown = printed(pa.table({"key": [text]}))
    assert not set(shown) & {"\x1b", "\r", "\x9b", "‮"}
    assert "[red]" in shown or "[red]" not in text


@given(st.text())
def test_cleaned_text_is_printable_and_plain_text_stays(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in clean(text))
    assert clean(text) == text or not text.isprintable()


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.text(),
            st.integers(-(2**70), 2**70),
            st.floats(),
            st.binary(),
            st.datetimes(),
            st.decimals(allow_nan=False, allow_infinity=False, places=2),
            st.lists(st.integers(), max_size=2),
        ),
        max_size=5,
    )
)
def test_any_fact_can_be_shown_in_every_form(values: list[Any]) -> None:
    facts = {f"f{i}": value for i, value in enumerate(values)}
    assert len(json.loads("".join(as_json(facts)))) == len(values)
    assert "".join(as_csv(facts)).startswith("name,value")
    printed(facts)


def test_decimals_are_numbers_in_json() -> None:
    facts = {"whole": Decimal("12"), "part": Decimal("1.5")}
    assert json.loads("".join(as_json(facts))) == {"whole": 12, "part": 1.5}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**60, "1,024.0 PiB"),
    ],
)
def test_bytes_in_units(count: int, text: str) -> None:
    assert human_bytes(count) == text
