"""Row groups out of a Parquet footer: as pyarrow sees them, and whatever the footer claims."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.workers.sources.bounded import Damaged
from tokenmill.workers.sources.footer import read_groups


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 50),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from(["1.0", "2.6"]),
    st.sampled_from(["snappy", "none", "zstd"]),
)
def test_it_finds_what_pyarrow_finds(
    rows: int, group: int, dictionary: bool, version: str, compression: str
) -> None:
    out = io.BytesIO()
    columns: dict[str, Any] = {
        "text": [f"t{n % 5}" for n in range(rows)],
        "meta": pa.array([{"a": n, "b": [True, False]} for n in range(rows)]),
    }
    schema = pa.schema([("text", pa.string()), ("meta", columns["meta"].type)])
    pq.write_table(
        pa.table(columns, schema=schema if rows else None),
        out,
        row_group_size=group,
        use_dictionary=dictionary,
        version=version,
        compression=compression,
        write_page_index=True,
    )
    metadata = pq.ParquetFile(out).metadata
    found = read_groups(out, len(out.getvalue()))
    assert len(found) == metadata.num_row_groups
    first_row = 0
    for number, seen in enumerate(found):
        theirs = metadata.row_group(number)
        chunks = [theirs.column(n) for n in range(theirs.num_columns)]
        assert (seen.first_row, seen.rows) == (first_row, theirs.num_rows)
        assert [(c.path, c.compressed, c.uncompressed) for c in seen.chunks] == [
            (c.path_in_schema, c.total_compressed_size, c.total_uncompressed_size) for c in chunks
        ]
        if theirs.num_rows:  # an empty group may lie anywhere: no span reads a row of it
            assert seen.first_byte == min(
                c.dictionary_page_offset or c.data_page_offset for c in chunks
            )
        first_row += theirs.num_rows


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    zigzag = (value << 1) ^ (value >> 63)
    return b"\x06" + varint(field << 1) + varint(zigzag & (1 << 64) - 1)


def structs(field: int, *bodies: bytes) -> bytes:
    return b"\x09" + varint(field << 1) + bytes([len(bodies) << 4 | 12]) + b"".join(bodies)


def file(rows: int, offset: int, size: int = 100) -> io.BytesIO:
    path = b"\x09" + varint(3 << 1) + b"\x18\x01x"
    meta = path + number(6, size) + number(7, size) + number(9, offset) + b"\0"
    column = b"\x0c" + varint(3 << 1) + meta + b"\0"
    footer = structs(4, structs(1, column) + number(3, rows) + b"\0") + b"\0"
    return io.BytesIO(b"PAR1" + bytes(200) + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def groups(body: io.BytesIO) -> Any:
    return read_groups(body, len(body.getvalue()))


def test_a_footer_made_by_hand_is_read() -> None:
    [group] = groups(file(10, 4))
    assert (group.first_byte, group.rows, group.chunks[0].path) == (4, 10, "x")


@pytest.mark.parametrize("rows", [1 << 40, -1])
def test_a_claim_of_impossible_rows_is_refused(rows: int) -> None:
    with pytest.raises(Damaged, match="claims"):
        groups(file(rows, 4))


def test_many_rows_in_few_bytes_are_taken() -> None:
    assert groups(file(1_000_000, 4))[0].rows == 1_000_000


@pytest.mark.parametrize("offset", [-5, 4, 1 << 50])
def test_a_group_begins_within_the_file_whatever_its_footer_says(offset: int) -> None:
    body = file(10, offset)
    assert 0 <= groups(body)[0].first_byte < len(body.getvalue())


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\x1c" * 1000,  # a struct in a struct in a struct …
        b"\x19" * 1000,
        b"\x49\xfc\xff\xff\xff\xff\x0f",  # a list of four thousand million structs
        b"\x18\xff\xff\xff\xff\x0f",  # a text of four thousand million bytes
        b"\x16" + b"\xff" * 20,  # a number without end
        b"\x1f",
    ],
)
def test_nonsense_is_refused_at_once(footer: bytes) -> None:
    body = io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(Damaged):
        groups(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_footer_or_damage(footer: bytes) -> None:
    body = io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    try:
        groups(body)
    except Damaged as damage:
        assert damage.reason == "invalid-parquet"
