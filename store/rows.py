"""What a reader gets: columns of token ids, batches of samples, and rows as views of them.

Everything here is a view of the shard's own buffers where it can be, and read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.identity import ID_BYTES
from tokenmill.schemas.shard import Verdict

NOT_COMMITTED = 255  # in `Column.verdicts`: this stream of the sample has no verdict yet

Texts = tuple[Sequence[str], Sequence[str], Sequence[str | None] | None]  # keys, sources, spans
Decode = Callable[[str, str, str, NDArray[Any], tuple[int, ...]], Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One stream of a batch of n samples, without an object per sample.

    values: the flat ids, in the stream's own dtype. offsets: int64[n + 1], sample i has
    values[offsets[i]:offsets[i + 1]]. verdicts: uint8[n], `Verdict`, or NOT_COMMITTED; a sample
    without tokens has length 0. shapes: int32[n, ndim] where the shape varies, else None.
    n_valid, media_valid: what of the first axis, and of the media's, is not padding.
    recipes: index per sample into `recipe_names`, or None where there is one.
    """

    stream: str
    values: NDArray[Any]
    offsets: NDArray[np.int64]
    verdicts: NDArray[np.uint8]
    shapes: NDArray[np.int32] | None = None
    n_valid: NDArray[np.int32] | None = None
    media_valid: NDArray[np.int64] | None = None
    recipe_names: tuple[str, ...] = ()
    recipes: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.verdicts)

    @property
    def tokens(self) -> int:
        return len(self.values)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> Column:
        """Samples [start, stop), the values not copied."""
        if start == 0 and stop == len(self):
            return self
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Column(
            stream=self.stream,
            values=self.values[first:last],
            offsets=_frozen(self.offsets[start : stop + 1] - first),
            verdicts=self.verdicts[start:stop],
            shapes=None if self.shapes is None else self.shapes[start:stop],
            n_valid=None if self.n_valid is None else self.n_valid[start:stop],
            media_valid=None if self.media_valid is None else self.media_valid[start:stop],
            recipe_names=self.recipe_names,
            recipes=None if self.recipes is None else self.recipes[start:stop],
        )

    def take(self, keep: NDArray[np.bool_]) -> Column:
        """The samples where `keep` (bool[n]) is true; copies."""
        lengths = self.lengths
        return Column(
            stream=self.stream,
            values=_frozen(self.values[np.repeat(keep, lengths)]),
            offsets=_frozen(np.concatenate([[0], np.cumsum(lengths[keep])])),
            verdicts=self.verdicts[keep],
            shapes=None if self.shapes is None else self.shapes[keep],
            n_valid=None if self.n_valid is None else self.n_valid[keep],
            media_valid=None if self.media_valid is None else self.media_valid[keep],
            recipe_names=self.recipe_names,
            recipes=None if self.recipes is None else self.recipes[keep],
        )

    def recipe(self, i: int) -> str:
        """The recipe that made the ids of sample i."""
        return self.recipe_names[0 if self.recipes is None else int(self.recipes[i])]

    @cached_property
    def bounds(self) -> list[int]:
        """`offsets` as Python integers: slicing with numpy scalars costs three times as much."""
        bounds: list[int] = self.offsets.tolist()
        return bounds

    @cached_property
    def codes(self) -> list[int]:
        codes: list[int] = self.verdicts.tolist()
        return codes


@dataclass(frozen=True, kw_only=True)
class Batch:
    """n consecutive samples of one pipeline with their streams, aligned sample by sample.

    ids: n x 16 bytes, concatenated. columns: stream -> Column of n samples.
    """

    pipeline: str
    ids: bytes
    columns: Mapping[str, Column]
    texts: Callable[[], Texts]
    streams: frozenset[str] = field(default_factory=frozenset)
    decode: Decode | None = None

    def __len__(self) -> int:
        return len(self.ids) // ID_BYTES

    def __getitem__(self, stream: str) -> Column:
        return self.columns[stream]

    @cached_property
    def id_array(self) -> NDArray[np.uint8]:
        """uint8[n, 16]."""
        return np.frombuffer(self.ids, np.uint8).reshape(-1, ID_BYTES)

    @cached_property
    def _texts(self) -> Texts:
        return self.texts()

    @property
    def keys(self) -> Sequence[str]:
        return self._texts[0]

    @property
    def sources(self) -> Sequence[str]:
        return self._texts[1]

    @property
    def spans(self) -> Sequence[str | None] | None:
        """ "start/end" of a clip or segment within its media, where the source cut any."""
        return self._texts[2]

    def rows(self) -> Iterator[Row]:
        return (Row(self, i) for i in range(len(self)))


class Row:
    """One sample: a view of a batch. `row["stream"]` is its ids, or None where there are none."""

    __slots__ = ("_batch", "_i")

    def __init__(self, batch: Batch, i: int) -> None:
        self._batch = batch
        self._i = i

    @property
    def id(self) -> bytes:
        """16 bytes; `key` is for people and need not be unique."""
        return self._batch.ids[self._i * ID_BYTES : (self._i + 1) * ID_BYTES]

    @property
    def key(self) -> str:
        return self._batch.keys[self._i]

    @property
    def source(self) -> str:
        """URI of the object that the sample came from."""
        return self._batch.sources[self._i]

    @property
    def span(self) -> str | None:
        spans = self._batch.spans
        return None if spans is None else spans[self._i]

    @property
    def pipeline(self) -> str:
        return self._batch.pipeline

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of which this sample has tokens."""
        return tuple(sorted(s for s, c in self._batch.columns.items() if not c.codes[self._i]))

    def __getitem__(self, stream: str) -> NDArray[Any] | None:
        """Flat ids, read-only, in the stream's dtype; None for quarantined, absent, or not yet
        committed (`verdict` says which). Raises KeyError for a stream that was not read."""
        column = self._batch.columns.get(stream)
        if column is None:
            self._check_read(stream)
            return None
        i = self._i
        if column.codes[i]:
            return None
        bounds = column.bounds
        return column.values[bounds[i] : bounds[i + 1]]

    def get(self, stream: str, default: Any = None) -> Any:
        """The ids, or `default` where there are none."""
        if stream not in self._batch.columns:
            return default
        ids = self[stream]
        return default if ids is None else ids

    def shape(self, stream: str) -> tuple[int, ...] | None:
        """The axes of the flat ids: `row["video"].reshape(row.shape("video"))`."""
        column = self._batch.columns.get(stream)
        if column is None:
            self._check_read(stream)
            return None
        if column.codes[self._i]:
            return None
        if column.shapes is None:
            return (column.bounds[self._i + 1] - column.bounds[self._i],)
        return tuple(column.shapes[self._i].tolist())

    def verdict(self, stream: str) -> Verdict | None:
        """None where the stream of this sample is not committed (yet)."""
        column = self._batch.columns.get(stream)
        if column is None:
            self._check_read(stream)
            return None
        code = column.codes[self._i]
        return None if code == NOT_COMMITTED else Verdict(code)

    def recipe(self, stream: str) -> str | None:
        """The recipe that made the ids; None where there are none."""
        if self[stream] is None:
            return None
        return self._batch.columns[stream].recipe(self._i)

    def decode(self, stream: str) -> Any:
        """Tokens back to media (see Dataset.decode), without the padding at its end; None where
        there are no tokens."""
        ids, shape = self[stream], self.shape(stream)
        if ids is None or shape is None:
            return None
        batch = self._batch
        if batch.decode is None:
            raise TypeError("this row was not read through a Dataset: it cannot decode")
        recipe = batch.columns[stream].recipe(self._i)
        media = batch.decode(batch.pipeline, stream, recipe, ids, shape)
        valid = batch.columns[stream].media_valid
        if valid is None or not isinstance(media, np.ndarray):
            return media
        return media[: int(valid[self._i])]

    def _check_read(self, stream: str) -> None:
        """A stream of another pipeline is None here; one that nobody read is a mistake."""
        if stream not in self._batch.streams:
            known = ", ".join(sorted(self._batch.streams)) or "none"
            raise KeyError(f"no stream {stream!r} was read; streams: {known}")

    def __repr__(self) -> str:
        streams = ", ".join(
            f"{s}: {len(ids)}" for s in self.streams if (ids := self[s]) is not None
        )
        return f"<Row {self.key!r} of {self.pipeline} {{{streams}}}>"


def column_of(batch: pa.RecordBatch, stream: str, recipe: str) -> Column:
    """The token columns of a shard's record batch as numpy views."""
    ids = batch.column("ids")
    n = len(ids)
    offsets = np.frombuffer(ids.buffers()[1], np.int32, n + 1, ids.offset * 4).astype(np.int64)
    values = ids.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    return Column(
        stream=stream,
        values=_frozen(values),
        offsets=_frozen(offsets),
        verdicts=_frozen(batch.column("verdict").to_numpy(zero_copy_only=True)),
        shapes=_shapes(batch, n),
        n_valid=_optional_ints(batch, "n_valid", np.int32),
        media_valid=_optional_ints(batch, "media_valid", np.int64),
        recipe_names=(recipe,),
    )


def _shapes(batch: pa.RecordBatch, n: int) -> NDArray[np.int32] | None:
    """int32[n, ndim]; rows without tokens may be null or empty and get zeros."""
    if "shape" not in batch.schema.names:
        return None
    column = batch.column("shape")
    lengths = np.asarray(column.value_lengths().fill_null(0))
    ndim = int(lengths.max(initial=0))
    shapes = np.zeros((n, ndim), np.int32)
    if ndim:
        shapes[lengths == ndim] = column.flatten().to_numpy().reshape(-1, ndim)
    return _frozen(shapes)


def _optional_ints(batch: pa.RecordBatch, name: str, dtype: type[Any]) -> NDArray[Any] | None:
    if name not in batch.schema.names:
        return None
    return _frozen(batch.column(name).fill_null(0).to_numpy(zero_copy_only=False).astype(dtype))


def sample_id_bytes(batch: pa.RecordBatch) -> bytes:
    """The ids of a record batch, n x 16 bytes."""
    column = batch.column("id")
    data = column.buffers()[1]
    start = column.offset * ID_BYTES
    return bytes(memoryview(data)[start : start + len(column) * ID_BYTES])


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
