"""Reads a shard that anybody may have written: everything is checked before it is believed.

A local shard is memory-mapped and plain columns are not copied; a remote one is read by ranges,
or whole through a LocalCache. Packed ids come out as plain ones: one row asked for is unpacked
alone, a batch asked for as a whole. Offsets are int32 per batch: batches are never combined.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.errors import CorruptStore
from tokenmill.schemas.shard import (
    FORMAT_VERSION,
    META_BATCH_ROWS,
    META_ENCODING,
    META_FORMAT,
    META_SHARD,
    ContentHasher,
    ShardMeta,
    Verdict,
    order_hash,
)
from tokenmill.store import packed
from tokenmill.store.access import Access
from tokenmill.store.cache import LocalCache
from tokenmill.store.columns import DTYPES, Layout, from_batch
from tokenmill.store.shard_batch import ShardBatch, ShardRow

# A batch is one large buffer: threads only add to its cost, and readers bring their own.
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
HELD_BATCHES = 4  # decompressed or downloaded ones; views into a map cost nothing: all are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCounts:
    """What the bytes of a shard file say, to be compared with what the ledger says."""

    rows: int
    samples: int
    tokens: int
    size: int  # bytes
    order_hash: bytes  # over this file's ids alone


class ShardReader:
    """A context manager over one shard file; each thread opens its own.

    encoding: plain | zstd | packed; batches have ids of `meta.dtype` whatever it is.

    Raises CorruptStore where the file is missing, truncated, not Arrow, of a newer
    format_version, or inconsistent; StoreUnavailable where the store does not answer.
    """

    meta: ShardMeta
    rows: int
    batch_rows: int
    encoding: str

    def __init__(
        self,
        access: Access,
        path: str,
        *,
        cache: LocalCache | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.where = access.full(path)
        self._held: OrderedDict[int, ShardBatch] = OrderedDict()
        self._columns: list[str] | None = None
        with self._reading():
            self._source, self._map = _open(access, path, cache)
        try:
            with self._reading():
                self._reader = pa.ipc.open_file(self._source, options=_OPTIONS)
                self._read_head()
                if columns is not None:
                    self._narrow(columns)
        except BaseException:
            self._source.close()
            raise

    def _read_head(self) -> None:
        schema = self._reader.schema
        metadata = schema.metadata or {}
        self._check_version(metadata)
        self.meta = self._parse_meta(metadata.get(META_SHARD, b""))
        self.batch_rows = self._positive(metadata.get(META_BATCH_ROWS, b""), "rows per batch")
        # files of the first tokenmill do not say it: they are not packed
        self.encoding = metadata.get(META_ENCODING, b"plain").decode("ascii", "replace")
        self._check_schema(schema)
        count = self._reader.num_record_batches
        self.batch_count: int = count
        last = self._get(count - 1).rows if count else 0
        self.rows = max(0, count - 1) * self.batch_rows + last

    def _narrow(self, columns: Sequence[str]) -> None:
        """Read only these columns from here on, `ids` and `verdict` among them: the others are
        neither decompressed nor checked."""
        names = self._reader.schema.names
        self._columns = [name for name in columns if name in names]
        held = self._held.values()
        mapped = self._map is not None and all(b.empty or b.lies_in(self._map) for b in held)
        self._held.clear()
        if not mapped:  # of a plain mapped file, pyarrow would copy what is included
            fields_ = [names.index(name) for name in self._columns]
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields_)
            self._reader = pa.ipc.open_file(self._source, options=options)

    @property
    def region(self) -> pa.Buffer | None:
        """The mapped file, None for a remote one: ids of plain batches are views into it."""
        return self._map

    def _check_version(self, metadata: dict[bytes, bytes]) -> None:
        if META_FORMAT not in metadata:
            raise self._corrupt("this Arrow file is not a shard of tokenmill")
        version = self._positive(metadata[META_FORMAT], "format_version")
        if version > FORMAT_VERSION:
            raise CorruptStore(
                f"this shard has format_version {version}, newer than {FORMAT_VERSION}, "
                "the newest that this tokenmill reads",
                where=self.where,
                remedy="upgrade tokenmill",
            )

    def _positive(self, text: bytes, what: str) -> int:
        if not text.isdigit() or len(text) > 9 or int(text) < 1:
            raise self._corrupt(f"its {what} is {text[:40]!r}")
        return int(text)

    def _parse_meta(self, text: bytes) -> ShardMeta:
        try:
            found = json.loads(text)
            known = {f.name: found[f.name] for f in fields(ShardMeta)}
            known["axes"] = tuple(str(axis) for axis in known["axes"])
            known["codebook_sizes"] = tuple(int(size) for size in known["codebook_sizes"])
            meta = ShardMeta(**known)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._corrupt("its description cannot be read") from error
        texts = {f.name for f in fields(ShardMeta)} - {"axes", "codebook_sizes", "first_row"}
        if not all(isinstance(known[name], str) for name in texts) or meta.dtype not in DTYPES:
            raise self._corrupt("its description has fields of the wrong kind")
        if not isinstance(meta.first_row, int) or meta.first_row < 0:
            raise self._corrupt(f"its first row is {meta.first_row!r}")
        return meta

    def _check_schema(self, schema: pa.Schema) -> None:
        names = schema.names
        layout = Layout(
            dtype=self.meta.dtype,
            span="span" in names,
            shape="shape" in names,
            n_valid="n_valid" in names,
            media_valid="media_valid" in names,
            bits=self._packed_bits(schema),
        )

        def found(wanted: pa.Field) -> pa.DataType:
            return packed.storage_type(schema.field(wanted.name).type)

        for field in layout.schema({}):
            if names.count(field.name) != 1 or found(field) != field.type:
                raise self._corrupt(f"its column {field.name!r} is missing or not {field.type}")
        self._bits = layout.bits

    def _packed_bits(self, schema: pa.Schema) -> int | None:
        if self.encoding != "packed" or schema.names.count("ids") != 1:
            return None
        bits = packed.bits_of(schema.field("ids"))
        kind = np.dtype(self.meta.dtype)
        if bits is None or kind.kind != "u" or not 1 <= bits <= 8 * kind.itemsize:
            raise self._corrupt(f"its column 'ids' is not {self.meta.dtype} packed as {bits} bits")
        return bits

    def _corrupt(self, why: str) -> CorruptStore:
        return CorruptStore(
            "a shard cannot be believed",
            where=self.where,
            why=why,
            remedy="run `tokenmill verify`; restore the file, or tokenize its unit again",
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._corrupt("the file is missing") from error
        except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
            raise self._corrupt(f"it is truncated or not an Arrow file ({error})") from error

    def _get(self, index: int) -> ShardBatch:
        held = self._held.get(index)
        if held is not None:
            self._held.move_to_end(index)
            return held
        with self._reading():
            data = self._reader.get_batch(index)
            if self._columns is not None:
                data = data.select(self._columns)
            data.validate(full=True)  # offsets and indices of a stranger's file may point anywhere
        full = index < self.batch_count - 1
        if data.num_rows > self.batch_rows or (full and data.num_rows < self.batch_rows):
            raise self._corrupt(f"batch {index} has {data.num_rows} rows, not {self.batch_rows}")
        try:
            batch = ShardBatch(data, bits=self._bits, dtype=self.meta.dtype)
        except ValueError as error:
            raise self._corrupt(f"ids of batch {index}: {error}") from error
        if not batch.consistent():
            raise self._corrupt(f"verdicts and ids of batch {index} disagree")
        self._held[index] = batch
        while len(self._held) > HELD_BATCHES and not batch.lies_in(self._map):
            self._held.popitem(last=False)
        return batch

    def batch(self, index: int) -> pa.RecordBatch:
        """Record batch `index`; rows index * batch_rows and on. Packed ids are unpacked anew by
        each call. Raises IndexError."""
        if not 0 <= index < self.batch_count:
            raise IndexError(f"batch {index} of {self.batch_count}")
        return self._get(index).plain()

    def unchecked(self) -> Iterator[pa.RecordBatch]:
        """All record batches as they lie in the file, buffers of the right size and nothing more:
        offsets may point anywhere. For readers that check all batches of a shard at once."""
        for index in range(self.batch_count):
            with self._reading():
                data = self._reader.get_batch(index)
                if self._columns is not None:
                    data = data.select(self._columns)
                data.validate()
            yield data

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All record batches in order."""
        for index in range(self.batch_count):
            yield self.batch(index)

    def _at(self, row: int) -> tuple[ShardBatch, int]:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        return self._get(row // self.batch_rows), row % self.batch_rows

    def ids(self, row: int) -> NDArray[Any] | None:
        """The flat ids of one row of this file, None without tokens. Raises IndexError."""
        batch, at = self._at(row)
        return batch.ids(at)

    def row(self, row: int) -> ShardRow:
        """One whole row of this file. Raises IndexError."""
        batch, at = self._at(row)
        return batch.row(at)

    def close(self) -> None:
        self._held.clear()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open(
    access: Access, path: str, cache: LocalCache | None
) -> tuple[pa.NativeFile, pa.Buffer | None]:
    """The file, and the mapped region it is if it is one."""
    local = access.local_path(path)
    if local is None and cache is not None:
        local = cache.fetch(access, path)
    if local is None:
        return pa.PythonFile(access.open(path), mode="r"), None
    mapped = pa.memory_map(str(local))
    region = mapped.read_buffer()
    mapped.seek(0)
    return mapped, region


def content_hash(access: Access, path: str) -> tuple[ShardCounts, bytes]:
    """Counts and content hash recomputed from the bytes: for `verify`. Raises as ShardReader."""
    samples = tokens = rows = 0
    ids: list[bytes] = []
    with ShardReader(access, path) as reader:
        hasher = ContentHasher(reader.meta.dtype)
        for batch in reader.batches():
            found = from_batch(batch)
            hasher.update(found)
            ids.append(found.ids)
            rows += found.n
            samples += int((found.verdicts == Verdict.TOKENS).sum())
            tokens += len(found.values)
    counts = ShardCounts(
        rows=rows,
        samples=samples,
        tokens=tokens,
        size=access.stat(path).size,
        order_hash=order_hash(ids),
    )
    return counts, hasher.digest()
