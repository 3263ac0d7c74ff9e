"""One record batch of a shard, validated by Arrow, with its ids as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.shard import Verdict
from tokenmill.store.packed import PackedLists


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """One sample. ids: 1-D view of the shard's dtype, None without tokens; shape gives it axes."""

    id: bytes
    key: str
    source: str
    span: str | None
    verdict: Verdict
    ids: NDArray[Any] | None
    shape: tuple[int, ...] | None
    n_valid: int | None
    media_valid: int | None = None


class ShardBatch:
    """Plain ids are views of the batch; packed ones (bits: their width) are unpacked on demand.

    Raises ValueError where packed ids are not what Arrow would write.
    """

    def __init__(self, data: pa.RecordBatch, *, bits: int | None, dtype: str) -> None:
        self._data = data
        self.rows: int = data.num_rows
        lists = data.column("ids")
        self._valid: NDArray[np.bool_] = np.asarray(lists.is_valid())
        self._packed = None if bits is None else PackedLists(lists, bits, dtype)
        self._offsets: NDArray[np.int32]
        self._values: NDArray[Any]  # ids, or the bytes that hold them
        if self._packed is None:
            self._offsets, self._values = np.asarray(lists.offsets), np.asarray(lists.values)
        else:
            self._offsets, self._values = self._packed.offsets, self._packed.bytes
        self._optional = {
            n: data.column(n)
            for n in ("span", "shape", "n_valid", "media_valid")
            if n in data.schema.names
        }

    def consistent(self) -> bool:
        verdicts = np.asarray(self._data.column("verdict"))
        return bool(np.array_equal(verdicts == Verdict.TOKENS, self._valid)) and bool(
            len(verdicts) == 0 or verdicts.max() <= max(Verdict)
        )

    @property
    def empty(self) -> bool:
        return not len(self._values)

    def lies_in(self, region: pa.Buffer | None) -> bool:
        """Whether the ids are a view into the mapped file, not decompressed or downloaded."""
        if region is None:
            return False
        address = self._values.__array_interface__["data"][0]
        return bool(region.address <= address <= region.address + region.size)

    def plain(self) -> pa.RecordBatch:
        """The record batch with ids as list<uintN>."""
        if self._packed is None:
            return self._data
        at = self._data.schema.get_field_index("ids")
        ids = self._packed.plain()
        return self._data.set_column(at, pa.field("ids", ids.type), ids)

    def ids(self, at: int) -> NDArray[Any] | None:
        if not self._valid[at]:
            return None
        start, stop = int(self._offsets[at]), int(self._offsets[at + 1])
        if self._packed is not None:
            return self._packed.ids(start, stop)
        return self._values[start:stop]

    def row(self, at: int) -> ShardRow:
        extra = {name: column[at].as_py() for name, column in self._optional.items()}
        shape = extra.get("shape")
        return ShardRow(
            id=self._data.column("id")[at].as_py(),
            key=self._data.column("key")[at].as_py(),
            source=self._data.column("source")[at].as_py(),
            span=extra.get("span"),
            verdict=Verdict(self._data.column("verdict")[at].as_py()),
            ids=self.ids(at),
            shape=None if shape is None else tuple(shape),
            n_valid=extra.get("n_valid"),
            media_valid=extra.get("media_valid"),
        )
