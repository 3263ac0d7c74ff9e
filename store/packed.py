"""The `ids` column of a packed shard: an Arrow extension type over fixed-width bits.

Storage: list<fixed_size_list<bool>[w]>, one list of ids per row, each id w booleans, the least
significant first. Arrow keeps booleans as bits, so the ids lie back to back (see bits.py), and
list offsets, nulls and slices are Arrow's own, counted in ids. The field's metadata names the type
(`ARROW:extension:name` = tokenmill.packed) and says w and the dtype of the ids
(`ARROW:extension:metadata`, JSON). A reader that knows none of this sees the booleans; nothing is
registered with pyarrow, whose registry is the user's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.identity import canonical_json
from tokenmill.store.bits import pack, unpack

EXTENSION = "tokenmill.packed"
_NAME, _METADATA = b"ARROW:extension:name", b"ARROW:extension:metadata"


def width(codebook_sizes: tuple[int, ...], dtype: str) -> int | None:
    """ceil(log2 V) for the largest codebook, at least 1; None where ids cannot be packed: they
    are no integers, or nobody says how large they get."""
    kind = np.dtype(dtype)
    if kind.kind != "u" or not codebook_sizes or max(codebook_sizes) < 1:
        return None
    return min(max(1, (max(codebook_sizes) - 1).bit_length()), 8 * kind.itemsize)


def field(bits: int, dtype: str) -> pa.Field:
    """The `ids` field of a packed shard."""
    about = canonical_json({"bits": bits, "dtype": dtype, "order": "least significant bit first"})
    return pa.field("ids", _storage(bits), metadata={_NAME: EXTENSION.encode(), _METADATA: about})


def _storage(bits: int) -> pa.DataType:
    bit = pa.field("bit", pa.bool_(), nullable=False)
    return pa.list_(pa.field("item", pa.list_(bit, bits), nullable=False))


def bits_of(field: pa.Field) -> int | None:
    """How wide the ids of a field are, None where it is not packed."""
    known = (field.metadata or {}).get(_NAME) == EXTENSION.encode()
    # in a process that has registered a type of this name
    known |= getattr(field.type, "extension_name", None) == EXTENSION
    kind = storage_type(field.type)
    if not known or not pa.types.is_list(kind) or not pa.types.is_fixed_size_list(kind.value_type):
        return None
    return int(kind.value_type.list_size)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """`kind`, or what lies below it where this process has registered it as an extension type."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def lists(
    lengths: NDArray[np.int64], values: NDArray[Any], present: NDArray[np.bool_], bits: int
) -> pa.Array:
    """The column: row i has the next lengths[i] ids of `values`, null where not `present`.

    Raises ValueError where an id needs more than `bits` bits.
    """
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    kind = _storage(bits)
    packed = pa.py_buffer(pack(values, bits))
    flags = pa.Array.from_buffers(pa.bool_(), len(values) * bits, [None, packed])
    items = pa.Array.from_buffers(kind.value_type, len(values), [None], children=[flags])
    mask = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(
        kind, len(lengths), [mask, pa.py_buffer(offsets)], children=[items]
    )


class PackedLists:
    """The `ids` column of one record batch of a packed shard, validated by Arrow.

    offsets: int32[n + 1], in ids. Raises ValueError where ids or bits are null.
    """

    def __init__(self, column: pa.Array, bits: int, dtype: str) -> None:
        self._lists = column.storage if isinstance(column, pa.ExtensionArray) else column
        self._bits = bits
        self._dtype = np.dtype(dtype)
        items = self._lists.values
        flags = items.values
        if items.null_count or flags.null_count or flags.offset % 8 or items.offset:
            raise ValueError("packed ids with nulls or a place of their own")
        self.offsets: NDArray[np.int32] = np.asarray(self._lists.offsets)
        buffer = flags.buffers()[1]
        data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
        self.bytes = data[flags.offset // 8 :]

    def ids(self, start: int, stop: int) -> NDArray[Any]:
        """The ids [start, stop) of the flat sequence."""
        return unpack(
            self.bytes, start=start, count=stop - start, width=self._bits, dtype=self._dtype
        )

    def plain(self) -> pa.Array:
        """The same column as list<uintN>."""
        begin, end = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else (0, 0)
        values = pa.array(self.ids(begin, end))
        offsets = pa.py_buffer(self.offsets - np.int32(begin))
        lists = self._lists
        kind = pa.list_(values.type)
        mask = None
        if lists.null_count:
            mask = pa.py_buffer(np.packbits(np.asarray(lists.is_valid()), bitorder="little"))
        return pa.Array.from_buffers(kind, len(lists), [mask, offsets], children=[values])
