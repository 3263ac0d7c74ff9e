"""Answers on paper: an Arrow table, or named facts, as table, CSV, JSON or Parquet.

`table` is for people: bytes in units, ids shortened on a narrow terminal, control characters of
hostile file names shown and not obeyed. The other three are exact.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, BinaryIO, Literal, TextIO, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from tokenmill.schemas.errors import JobError

Format = Literal["table", "csv", "json", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)

# Without a terminal nothing is cut off: pipes and logs get every character.
UNBOUNDED = 100_000
_BYTES = ("bytes", "size", "bytes_read")
_HASH_SHOWN = 12
_GAP = 2  # blanks between columns
_MEASURED = 500  # rows that decide the layout
_DATE = len("2026-01-02")
_WORD = 20  # a longer text may be folded


def show(
    answer: pa.Table | Mapping[str, Any], format: str = "table", out: TextIO | None = None
) -> None:
    """Write an answer to `out` (standard output).

    Raises JobError for an unknown format, and for Parquet to a terminal.
    """
    out = sys.stdout if out is None else out
    check_format(format)
    if format == "parquet":
        _parquet(answer, out)
    elif format == "table":
        on_terminal = out.isatty()
        console = Console(
            file=out,
            width=None if on_terminal else UNBOUNDED,
            highlight=False,
            soft_wrap=not on_terminal,
        )
        console.print(as_rich(answer, short=on_terminal, width=console.width))
    else:
        for text in as_csv(answer) if format == "csv" else as_json(answer):
            out.write(text)
    out.flush()


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise JobError(f"no output format {format!r}", remedy=f"one of {', '.join(FORMATS)}")


def as_rich(
    answer: pa.Table | Mapping[str, Any], *, short: bool, width: int = UNBOUNDED
) -> RenderableType:
    """For rich to print on `width` columns: a table, or, where it cannot fit, a record per row.

    `short`: leave out the tail of 64-digit hashes.
    """
    if isinstance(answer, Mapping):
        return _record((name, shown(name, v, short=short)) for name, v in _flat(answer))
    names = [clean(name) for name in answer.column_names]
    rows = [
        [shown(name, value, short=short) for name, value in zip(names, row, strict=True)]
        for row in _rows(answer)
    ]
    least = [
        _least_width(field.type, [name, *(row[i] for row in rows[:_MEASURED])])
        for i, (name, field) in enumerate(zip(names, answer.schema, strict=True))
    ]
    gap = _GAP if sum(least) + _GAP * (len(least) - 1) <= width else 1
    if sum(least) + gap * (len(least) - 1) > width and rows:
        return Group(*_records(names, rows))
    table = Table(box=None, header_style="bold", padding=(0, gap, 0, 0), pad_edge=False)
    for name, field, columns in zip(names, answer.schema, least, strict=True):
        justify: JustifyMethod = "right" if _is_number(field.type) else "left"
        table.add_column(Text(name), justify=justify, min_width=columns, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if not rows:
        table.caption = "no rows"
        table.caption_justify = "left"
    return table


def _least_width(kind: pa.DataType, texts: list[str]) -> int:
    """Columns below which a column would be hard to read: numbers and short words stay whole, a
    time may break between date and hour."""
    natural = max(len(line) for text in texts for line in text.split("\n"))
    if _is_number(kind):
        return natural
    return min(natural, max(len(texts[0]), _DATE if pa.types.is_timestamp(kind) else _WORD))


def _records(names: list[str], rows: list[list[str]]) -> Iterator[RenderableType]:
    for number, row in enumerate(rows, 1):
        yield Text(f"{'' if number == 1 else chr(10)}row {number:,}", style="dim")
        yield _record(zip(names, row, strict=True))


def _record(facts: Iterable[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(clean(name)), Text(value))
    return table


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Facts with those of a nested mapping as `outer.inner`; empty ones left out."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        elif value not in ([], ()):
            yield name, value


def as_csv(answer: pa.Table | Mapping[str, Any]) -> Iterator[str]:
    """RFC 4180 with \\n; nested values as JSON, null as nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    table = answer if isinstance(answer, pa.Table) else _as_table(answer)
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow([_csv_value(value) for value in row])
        if buffer.tell() > 1 << 16:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def as_json(answer: pa.Table | Mapping[str, Any]) -> Iterator[str]:
    """A table: an array with one object per line; facts: one object."""
    if isinstance(answer, Mapping):
        yield json.dumps({k: plain(v) for k, v in answer.items()}, ensure_ascii=False, indent=2)
        yield "\n"
        return
    names = _distinct_names(answer.column_names)
    before = "["
    for row in _rows(answer):
        record = dict(zip(names, map(plain, row), strict=True))
        yield f"{before}\n{json.dumps(record, ensure_ascii=False, allow_nan=False)}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def _parquet(answer: pa.Table | Mapping[str, Any], out: TextIO) -> None:
    if out.isatty():
        raise JobError(
            "Parquet is binary: not for a terminal",
            remedy="redirect the output: … --format parquet > answer.parquet",
        )
    table = answer if isinstance(answer, pa.Table) else _as_table(answer)
    renamed = table.rename_columns(_distinct_names(table.column_names))
    buffer = io.BytesIO()  # a pipe cannot tell its position, which the Parquet writer asks for
    pq.write_table(_storable(renamed), buffer, compression="zstd")
    binary: BinaryIO = out.buffer
    binary.write(buffer.getvalue())


def _storable(table: pa.Table) -> pa.Table:
    """Intervals, which Parquet cannot hold from Arrow, as text."""
    for index, field in enumerate(table.schema):
        if pa.types.is_interval(field.type) or pa.types.is_duration(field.type):
            values = [None if v is None else str(plain(v)) for v in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(values, pa.string()))
    return table


def _as_table(facts: Mapping[str, Any]) -> pa.Table:
    values = [_csv_value(v) for v in facts.values()]
    return pa.table({"name": list(facts), "value": pa.array(map(str, values), pa.string())})


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for batch in table.to_batches(max_chunksize=4096):
        columns = [column.to_pylist() for column in batch.columns]
        yield from zip(*columns, strict=True)


def _distinct_names(names: list[str]) -> list[str]:
    """`select a, a` has two columns of one name: the second becomes a_1."""
    taken: set[str] = set()
    distinct = []
    for name in names:
        number, unique = 0, name
        while unique in taken or (number and unique in names):
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        distinct.append(unique)
    return distinct


def plain(value: Any) -> Any:
    """A JSON value: bytes as hex, times in ISO 8601, NaN and infinities as null."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds / 1e9:g} seconds"
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)  # UUIDs and what DuckDB may think of next


def _csv_value(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def shown(name: str, value: Any, *, short: bool = False) -> str:
    """A value as people read it in the column `name`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return human_bytes(value) if name.lower() in _BYTES else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list | tuple):
        return ", ".join(shown(name, v, short=short) for v in value)
    value = plain(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if short and len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:_HASH_SHOWN]
    return clean(text)


def human_bytes(count: int) -> str:
    """1536 -> 1.5 KiB."""
    size, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    for unit in units:
        if abs(size) < 1024 or unit == units[-1]:
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def clean(text: str) -> str:
    """Control characters made visible: a file's name must not steer the terminal.

    Line feeds and tabs stay, they only move down and right.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
