"""A store as a reader sees it: rows, batches and SQL over one pinned snapshot.

    ds = tokenmill.open("s3://bucket/tokens")
    for row in ds:
        row.id, row.key, row["text"]            # numpy ids, or None
    for batch in ds.batches(["text"]):
        batch["text"].values, batch["text"].offsets
    ds.sql("select pipeline, sum(tokens) from shards group by 1")

Order: pipeline by name, unit by id, row as enumerated; it depends on the snapshot alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError, SpaceMismatch
from tokenmill.schemas.job import nearest
from tokenmill.store.access import Access
from tokenmill.store.alignment import FileRows, Plan, by_file, plan_pipeline
from tokenmill.store.choosing import choose_snapshot
from tokenmill.store.decoding import Decoder, Decoders, StreamTokenizer
from tokenmill.store.gather import read_piece
from tokenmill.store.joining import Join
from tokenmill.store.ledger import Ledger
from tokenmill.store.parts import Part
from tokenmill.store.query import run_sql
from tokenmill.store.rows import Batch, Column, Row
from tokenmill.store.shards import ShardReader
from tokenmill.store.snapshot import Snapshot
from tokenmill.store.stream.loader import Tensors
from tokenmill.store.stream.making import make_loader, make_vocabulary
from tokenmill.store.views import CELLS_SCHEMA

# From a kind ("numpy", "torch") and whether it is page-locked to what converts batches.
MakeTensors = Callable[[str, bool], Tensors | None]


class MixedRecipes(UserWarning):
    """One space, several recipes: ids mean the same but were not all made the same way (G7)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamType:
    """How a stream's ids come: their dtype, and whether samples have shapes of their own."""

    dtype: np.dtype[Any]
    shaped: bool


def open_store(
    uri: str,
    *,
    tag: str | None = None,
    snapshot: str | None = None,
    pipeline: str | None = None,
    spaces: Mapping[str, str] | None = None,
    decoder: Decoder | None = None,
    tensors: MakeTensors | None = None,
    pin: bool = True,
) -> Dataset:
    """A dataset over the current snapshot of the store at `uri`, or over a named one.

    tag: a name given by `tokenmill tag`. snapshot: a snapshot's hash, or its beginning.
    pipeline: only this one. spaces: stream -> 64 hex digits; tokens of another space are refused
    (G7). decoder: what `decode` uses. tensors: what a loader's batches become.
    pin: False for a quick question: the current snapshot is not written to the store, and nothing
    protects what it names from vacuum.

    Raises StoreError where there is no store, tag or snapshot, JobError for an unknown pipeline
    or stream, SpaceMismatch.
    """
    access = Access(uri)
    chosen = choose_snapshot(access, tag, snapshot, pin=pin)
    dataset = Dataset(access, chosen, decoder=decoder, tensors=tensors)
    if pipeline is not None:
        dataset = dataset.select(pipeline=pipeline)
    for stream, space in (spaces or {}).items():
        dataset.require_space(stream, space)
    return dataset


class Dataset:
    """Immutable; picklable (a copy reads the same snapshot). Made by `open_store`."""

    def __init__(
        self,
        access: Access,
        snapshot: Snapshot,
        *,
        table: pa.Table | None = None,
        decoder: Decoder | None = None,
        tensors: MakeTensors | None = None,
        chosen: tuple[str | None, frozenset[str] | None] = (None, None),
    ) -> None:
        self._access = access
        self._snapshot = snapshot
        self._table = snapshot.table if table is None else table
        self._decoder = decoder
        self._tensors = tensors
        self._chosen = chosen
        self._joins: dict[tuple[str, frozenset[str]], Join] = {}

    def __getstate__(self) -> dict[str, Any]:
        made = ("_ledger", "_decoders", "_files")
        return {**{k: v for k, v in self.__dict__.items() if k not in made}, "_joins": {}}

    # -- what is there ----------------------------------------------------------------------

    @property
    def access(self) -> Access:
        return self._access

    @property
    def uri(self) -> str:
        return self._access.uri

    @property
    def snapshot(self) -> str:
        """Hash of the pinned snapshot: `open(uri, snapshot=…)` reads the very same rows."""
        return self._snapshot.hash

    @cached_property
    def pipelines(self) -> tuple[str, ...]:
        return tuple(sorted(pc.unique(self._table["pipeline"]).to_pylist()))

    @cached_property
    def streams(self) -> tuple[str, ...]:
        return tuple(sorted(pc.unique(self._table["stream"]).to_pylist()))

    @cached_property
    def spaces(self) -> Mapping[str, tuple[str, ...]]:
        """Stream -> its spaces; more than one cannot be read together."""
        return _distinct(self._table, "space")

    @cached_property
    def recipes(self) -> Mapping[str, tuple[str, ...]]:
        """Stream -> its recipes; several of one space are read, with a warning."""
        return _distinct(self._table, "recipe")

    @cached_property
    def _files(self) -> tuple[FileRows, ...]:
        return _files(self._table)  # an object per shard: not before somebody reads rows

    def __repr__(self) -> str:
        return (
            f"<Dataset {self.uri} snapshot {self.snapshot[:12]}: pipelines "
            f"{', '.join(self.pipelines) or 'none'}; streams {', '.join(self.streams) or 'none'}>"
        )

    def __len__(self) -> int:
        """Samples that iteration gives. Reads sample ids where streams were cut differently."""
        streams = frozenset(self.streams)
        return sum(
            sum(piece.rows for piece in plan.pieces)
            - (self._join(plan, streams).not_read if plan.partial else 0)
            for plan in self._plans(streams)
        )

    # -- choosing ---------------------------------------------------------------------------

    def select(
        self, *, pipeline: str | None = None, streams: Collection[str] | None = None
    ) -> Dataset:
        """The same snapshot, one pipeline or some streams of it. Raises JobError for unknown
        names."""
        table, chosen = self._table, self._chosen
        if pipeline is not None:
            _check_known("pipeline", [pipeline], self.pipelines, self.uri)
            if self.pipelines != (pipeline,):
                table = table.filter(pc.equal(table["pipeline"], pipeline))
            chosen = (pipeline, chosen[1])
        if streams is not None:
            wanted = self._wanted(streams)
            if wanted != set(self.streams):  # else a million rows would be copied
                names = pa.array(sorted(wanted), pa.string())
                table = table.filter(pc.is_in(table["stream"], value_set=names))
            chosen = (chosen[0], wanted)
        return Dataset(
            self._access,
            self._snapshot,
            table=table,
            decoder=self._decoder,
            tensors=self._tensors,
            chosen=chosen,
        )

    def at(self, snapshot: str | None) -> Dataset:
        """The same choice over another snapshot: a hash or its beginning, None for the newest.
        Raises StoreError, JobError where it lacks the pipeline or a stream chosen."""
        whole = Dataset(
            self._access,
            choose_snapshot(self._access, None, snapshot, pin=True),
            decoder=self._decoder,
            tensors=self._tensors,
        )
        pipeline, streams = self._chosen
        return whole.select(pipeline=pipeline, streams=streams)

    def require_space(self, stream: str, space: str) -> None:
        """Refuse to go on unless every token of `stream` is of `space` (64 hex digits, or their
        beginning). Raises SpaceMismatch, naming what is there."""
        _check_known("stream", [stream], self.streams, self.uri)
        found = self.spaces[stream]
        if not space or any(not each.startswith(space.lower()) for each in found):
            raise SpaceMismatch(
                f"stream {stream!r} holds tokens of another space than asked for",
                where=self.uri,
                why=f"asked for {space}; found {self._where_spaces(stream)}",
                remedy="read with the tokenizer that made the tokens, or choose the pipeline "
                "or the snapshot that holds your space",
            )

    # -- reading ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, streams: Collection[str] | None = None) -> Iterator[Row]:
        """All samples, or those that have a verdict in one of `streams`.

        Raises SpaceMismatch at once where a stream holds two spaces.
        """
        return itertools.chain.from_iterable(batch.rows() for batch in self.batches(streams))

    def take(self, n: int, streams: Collection[str] | None = None) -> list[Row]:
        """The first n rows."""
        return list(itertools.islice(self.rows(streams), n))

    def batches(self, streams: Collection[str] | None = None) -> Iterator[Batch]:
        """Batches of aligned samples, of varying size (at most a shard's record batch).

        `batch[stream]` is a Column: flat values and offsets, no object per sample. A stream that
        no sample of the batch has is missing from `batch.columns`.
        Raises SpaceMismatch at once where a stream holds two spaces.
        """
        return self._batches(self._readable(streams))

    def columns(self, stream: str) -> Iterator[Column]:
        """The columns of one stream: `values` (flat ids) and `offsets` per batch."""
        return (batch[stream] for batch in self.batches([stream]))

    def _batches(self, streams: frozenset[str]) -> Iterator[Batch]:
        decode = self._decode
        for plan in self._plans(streams):
            joined = frozenset(plan.partial)
            for index, piece in enumerate(plan.pieces):
                if index in joined:
                    yield from self._join(plan, streams).read(index, piece, streams, decode)
                else:
                    yield from read_piece(self._access, piece, streams, decode)

    def parts(self, streams: Collection[str] | None = None) -> list[Part]:
        """All samples in disjoint parts, in the order of `batches`, for processes that share the
        reading: about one part per shard file. Raises SpaceMismatch as `batches` does."""
        wanted = self._readable(streams)
        parts = []
        for plan in self._plans(wanted):
            for index, piece in enumerate(plan.pieces):
                if index in plan.partial:
                    join = self._join(plan, wanted).only(index)
                    parts.append(Part(self._access, piece, wanted, index=index, join=join))
                else:
                    parts += [Part(self._access, each, wanted) for each in by_file(piece)]
        return [part for part in parts if part.rows]

    def _plans(self, streams: frozenset[str]) -> Iterator[Plan]:
        files = sorted((f for f in self._files if f.stream in streams), key=lambda f: f.pipeline)
        for pipeline, group in itertools.groupby(files, key=lambda f: f.pipeline):
            yield plan_pipeline(pipeline, group)

    def _join(self, plan: Plan, streams: frozenset[str]) -> Join:
        key = (plan.pipeline, streams)
        if key not in self._joins:
            self._joins[key] = Join(self._access, plan, partial(self._unit_cells, plan.pipeline))
        return self._joins[key]

    def _unit_cells(self, pipeline: str, units: Sequence[bytes]) -> pa.Table:
        """Every cell that was ever committed of these units."""
        return self._ledger.rows(
            "input",
            pipeline=pipeline,
            columns=["unit", "input", "source_id", "seq", "first_row", "rows"],
            filter=pc.field("unit").isin(pa.array(units, pa.binary())),
        )

    def _readable(self, streams: Collection[str] | None) -> frozenset[str]:
        """The wanted streams: of one space each, with a warning where of several recipes (G7)."""
        wanted = self._wanted(streams)
        self.check_spaces(wanted)
        for stream in sorted(wanted):
            if len(self.recipes[stream]) > 1:
                _warn_of_mix(self.uri, stream, self.recipes[stream])
        return wanted

    def _wanted(self, streams: Collection[str] | None) -> frozenset[str]:
        if streams is None:
            return frozenset(self.streams)
        names = [streams] if isinstance(streams, str) else list(streams)
        _check_known("stream", names, self.streams, self.uri)
        return frozenset(names)

    def check_spaces(self, streams: Collection[str] | None = None) -> None:
        """Raises SpaceMismatch where a stream holds ids of more than one space (G7)."""
        for stream in sorted(self._wanted(streams)):
            if len(self.spaces[stream]) > 1:
                raise SpaceMismatch(
                    f"stream {stream!r} holds tokens of {len(self.spaces[stream])} spaces",
                    where=self.uri,
                    why=f"the same id means different things: {self._where_spaces(stream)}",
                    remedy="read one pipeline (`pipeline=`, `select`), other streams, an older "
                    "snapshot or tag, or encode the rest again (`tokenmill run --retokenize`)",
                )

    def _where_spaces(self, stream: str) -> str:
        places: dict[str, set[str]] = {}
        for file in self._files:
            if file.stream == stream:
                places.setdefault(file.space, set()).add(f"{file.pipeline} ({file.tokenizer})")
        return "; ".join(
            f"{space} in {', '.join(sorted(p))}" for space, p in sorted(places.items())
        )

    def stream_types(self) -> dict[str, StreamType]:
        """By stream; opens one shard of each recipe."""
        first = {(f.stream, f.recipe): f for f in reversed(self._files)}
        found: dict[str, StreamType] = {}
        for (stream, _), file in sorted(first.items()):
            with ShardReader(self._access, file.path) as reader:
                dtype, shaped = np.dtype(reader.meta.dtype), len(reader.meta.axes) != 1
            if (seen := found.get(stream)) is not None:
                dtype, shaped = np.promote_types(dtype, seen.dtype), shaped or seen.shaped
            found[stream] = StreamType(dtype=dtype, shaped=shaped)
        return found

    def first_paths(self) -> dict[tuple[str, str], str]:
        """One shard file of each (stream, recipe)."""
        names = ["stream", "recipe"]
        found = self._table.select([*names, "path"]).group_by(names).aggregate([("path", "min")])
        return {(r["stream"], r["recipe"]): r["path_min"] for r in found.to_pylist()}

    # -- training ---------------------------------------------------------------------------

    loader = make_loader
    vocabulary = make_vocabulary

    def tensors(self, kind: str, pinned: bool) -> Tensors | None:
        """What makes a loader's batches `kind`; None for numpy. Raises JobError."""
        if self._tensors is not None:
            return self._tensors(kind, pinned)
        if kind != "numpy" or pinned:
            raise JobError(
                f"the store alone makes no tensors of kind {kind!r}",
                remedy="open it with tokenmill.open",
            )
        return None

    # -- asking -----------------------------------------------------------------------------

    def sql(self, text: str, parameters: Mapping[str, str] | None = None) -> pa.Table:
        """One SELECT over the views shards, inputs, quarantine, quarantine_history, runs and
        tokenizers. `shards` is this snapshot; the others are the ledger as it stands now.
        Raises JobError with DuckDB's message."""
        return run_sql(self, text, parameters)

    def snapshot_table(self) -> pa.Table:
        """The rows of the snapshot that this dataset selects."""
        return self._table

    def cells(self) -> pa.Table:
        """The valid cells now, in CELLS_SCHEMA."""
        ledger = self._ledger
        # a pipeline's first commit describes its tokenizer: few rows, where cells are many
        names = ledger.rows("tokenizer", columns=["pipeline"])["pipeline"].unique().to_pylist()
        parts = [CELLS_SCHEMA.empty_table()]
        for name in sorted(names):
            table = ledger.coverage(name)
            pipeline = pa.repeat(pa.scalar(name, pa.string()), table.num_rows)
            table = table.append_column("pipeline", pipeline)
            parts.append(table.select(CELLS_SCHEMA.names).cast(CELLS_SCHEMA))
        return pa.concat_tables(parts)

    def ledger_rows(self) -> pads.Dataset:
        return self._ledger.dataset()

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger.open(self._access)

    # -- decoding ---------------------------------------------------------------------------

    def decode(self, row: Row, stream: str) -> Any:
        """The media that the tokens of a row stand for; None where it has none.

        Raises TokenizerError where the tokenizer cannot decode or its row is missing, JobError
        where no decoder was given.
        """
        return row.decode(stream)

    def _decode(
        self, pipeline: str, stream: str, recipe: str, ids: NDArray[Any], shape: tuple[int, ...]
    ) -> Any:
        return self._decoders.decode(pipeline, stream, recipe, ids, shape)

    def tokenizer(self, pipeline: str, stream: str, recipe: str) -> StreamTokenizer:
        """What the ledger records of the tokenizer behind one recipe. Raises TokenizerError."""
        return self._decoders.tokenizer(pipeline, stream, recipe)

    @cached_property
    def _decoders(self) -> Decoders:
        return Decoders(self._ledger, self._decoder, where=self.uri)


def _files(table: pa.Table) -> tuple[FileRows, ...]:
    names = [f for f in FileRows.__dataclass_fields__ if f != "exclude"]
    columns = [table[name].to_pylist() for name in names]
    excludes = table["exclude"].to_pylist()
    return tuple(
        FileRows(
            **dict(zip(names, values, strict=True)),
            exclude=tuple((e["start"], e["end"]) for e in exclude or ()),
        )
        for *values, exclude in zip(*columns, excludes, strict=True)
    )


def _warn_of_mix(uri: str, stream: str, recipes: Collection[str]) -> None:
    warnings.warn(
        f"stream {stream!r} of {uri} mixes {len(recipes)} recipes of one space: "
        f"{', '.join(recipe[:12] for recipe in recipes)}",
        MixedRecipes,
        stacklevel=5,
    )


def _distinct(table: pa.Table, what: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for pair in table.select(["stream", what]).group_by(["stream", what]).aggregate([]).to_pylist():
        found.setdefault(pair["stream"], set()).add(pair[what])
    return {stream: tuple(sorted(values)) for stream, values in sorted(found.items())}


def _check_known(what: str, names: Iterable[str], known: Collection[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise JobError(f"the store has no {what} {name!r}{nearest(name, known)}", where=where)
