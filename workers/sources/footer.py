"""Row groups out of a Parquet footer, without pyarrow.

pyarrow's `metadata.row_group(i).column(j)` ends the *process* on some damaged footers (pyarrow 26:
`terminate called ... Repetition level histogram size mismatch`, found by flipping bytes). So the
few numbers that planning by bytes needs are read here: Thrift's compact protocol, and of it only
what is wanted. Memory and time are bounded by the footer's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from tokenmill.workers.sources.bounded import Damaged

_MAGIC = b"PAR1"
_DEPTH = 32
# A footer may claim any number of rows. Run lengths make rows cheap, but samples are not: beyond
# this many rows a byte, every one of them would be a fault.
_ROWS_PER_BYTE = 1000
_ROWS_ANYWAY = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One column of one row group. `path` is dotted; sizes in bytes."""

    path: str
    first_byte: int
    compressed: int
    uncompressed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One row group. `first_byte` is within the file, whatever the footer claims, so that each
    group belongs to exactly one span; `first_row` counts from the file's beginning."""

    first_byte: int
    first_row: int
    rows: int
    chunks: tuple[Chunk, ...]


def read_groups(raw: BinaryIO, size: int) -> tuple[Group, ...]:
    """The row groups of a file of `size` bytes, in order.

    Raises Damaged where it is not Parquet or its footer cannot be true.
    """
    raw.seek(max(size - 8, 0))
    tail = raw.read(8)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != _MAGIC or length > size - 8:
        raise Damaged("invalid-parquet", "the file does not end as a Parquet file does")
    raw.seek(size - 8 - length)
    try:
        metadata = _Compact(raw.read(length)).struct(_FILE)
        return tuple(_groups(metadata.get("groups", []), size))
    except (ValueError, IndexError, KeyError) as error:
        raise Damaged("invalid-parquet", f"the footer cannot be read: {error}") from None


def _groups(found: list[dict[str, Any]], size: int) -> list[Group]:
    groups, first_row = [], 0
    for number, item in enumerate(found):
        chunks = tuple(_chunk(column["meta"]) for column in item["columns"])
        rows, held = item["rows"], sum(max(chunk.compressed, 0) for chunk in chunks)
        if rows < 0 or rows > _ROWS_ANYWAY + _ROWS_PER_BYTE * min(held, size):
            raise ValueError(f"row group {number} claims {rows:,} rows in {held:,} bytes")
        first_byte = min((chunk.first_byte for chunk in chunks), default=0)
        groups.append(
            Group(
                first_byte=min(max(first_byte, 0), size - 1),
                first_row=first_row,
                rows=rows,
                chunks=chunks,
            )
        )
        first_row += rows
    return groups


def _chunk(meta: dict[str, Any]) -> Chunk:
    data, dictionary = meta["data"], meta.get("dictionary", 0)
    return Chunk(
        path=".".join(part.decode() for part in meta["path"]),
        # some writers leave a zero where there is no dictionary page
        first_byte=min(data, dictionary) if dictionary > 0 else data,
        compressed=meta["compressed"],
        uncompressed=meta["uncompressed"],
    )


_Reader = Callable[["_Compact", int, int], Any]
_Fields = dict[int, tuple[str, int, _Reader]]  # field id -> name, wire type, reader

_TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = (
    1,
    2,
    3,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
)


class _Compact:
    """Thrift's compact protocol over the bytes of a footer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, fields: _Fields, depth: int = 0) -> dict[str, Any]:
        """The `fields` of the struct that begins here; the others are passed over."""
        found: dict[str, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            kind = head & 15
            name, wanted, reader = fields.get(number, ("", 0, _Compact.skip))
            if name and wanted == kind:
                found[name] = reader(self, kind, depth + 1)
            else:
                self.skip(kind, depth + 1)
        return found

    def skip(self, kind: int, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BYTE:
            self._byte()
        elif kind <= _I64:
            self._varint()
        elif kind == _DOUBLE:
            self._take(8)
        elif kind == _BINARY:
            self._take(self._varint())
        elif kind in (_LIST, _SET):
            element, count = self._list_head()
            for _ in range(count):
                self._skip_element(element, depth + 1)
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._skip_element(kinds >> 4, depth + 1)
                self._skip_element(kinds & 15, depth + 1)
        elif kind == _STRUCT:
            while head := self._byte():
                if not head >> 4:
                    self._varint()
                self.skip(head & 15, depth + 1)
        else:
            raise ValueError(f"unknown type {kind}")

    def _skip_element(self, kind: int, depth: int) -> None:
        # within containers a boolean has a byte of its own
        self.skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth)

    def number(self, kind: int, depth: int) -> int:
        return self._number()

    def texts(self, kind: int, depth: int) -> list[bytes]:
        element, count = self._list_head()
        if element != _BINARY:
            raise ValueError("a list of texts wanted")
        return [self._take(self._varint()) for _ in range(count)]

    def structs(self, fields: _Fields, depth: int) -> list[dict[str, Any]]:
        element, count = self._list_head()
        if element != _STRUCT:
            raise ValueError("a list of structs wanted")
        return [self.struct(fields, depth) for _ in range(count)]

    def _list_head(self) -> tuple[int, int]:
        head = self._byte()
        count = head >> 4
        count = self._varint() if count == 15 else count
        if count > len(self._data) - self._at:  # an element has at least a byte
            raise ValueError("a list is longer than the footer")
        return head & 15, count

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError("a text is longer than the footer")
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _structs_of(fields: _Fields) -> _Reader:
    return lambda compact, kind, depth: compact.structs(fields, depth)


def _struct_of(fields: _Fields) -> _Reader:
    return lambda compact, kind, depth: compact.struct(fields, depth)


# Field numbers of parquet.thrift (format 2.11).
_META: _Fields = {
    3: ("path", _LIST, _Compact.texts),
    6: ("uncompressed", _I64, _Compact.number),
    7: ("compressed", _I64, _Compact.number),
    9: ("data", _I64, _Compact.number),
    11: ("dictionary", _I64, _Compact.number),
}
_COLUMN: _Fields = {3: ("meta", _STRUCT, _struct_of(_META))}
_GROUP: _Fields = {
    1: ("columns", _LIST, _structs_of(_COLUMN)),
    3: ("rows", _I64, _Compact.number),
}
_FILE: _Fields = {4: ("groups", _LIST, _structs_of(_GROUP))}
