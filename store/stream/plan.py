"""A loader's order over one snapshot: for every part its spans, their counts, and the line of each
epoch. Made once per snapshot; what it reads of shards, the census keeps."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import json_hash
from tokenmill.store.stream.blocks import EpochOrder, epoch_order, lanes_of_rank
from tokenmill.store.stream.census import take_census
from tokenmill.store.stream.layout import StreamLayout
from tokenmill.store.stream.mapped import open_rows
from tokenmill.store.stream.opened import Block, Open, Selection, Split, open_block, read_span
from tokenmill.store.stream.packing import Packing, pack_whole
from tokenmill.store.stream.part import Part, Shuffle
from tokenmill.store.stream.permutation import stream_key
from tokenmill.store.stream.spans import Spans, make_spans

if TYPE_CHECKING:
    from tokenmill.store.cache import LocalCache
    from tokenmill.store.dataset import Dataset

# Raised when the order of an unchanged loader changes: states of another revision are refused.
ORDER_REVISION = 1
_FILE_ORDER_GROUP = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What fixes the order, beside snapshot and seed. length: tokens of a sequence, 0 for whole
    samples."""

    parts: tuple[Part, ...]
    layouts: tuple[tuple[StreamLayout, ...], ...]
    packing: Packing | None
    length: int
    shuffle: Shuffle | None
    split: Split | None

    @property
    def group(self) -> int:
        return self.shuffle.group if self.shuffle else _FILE_ORDER_GROUP

    @property
    def lanes(self) -> int:
        return self.shuffle.lanes if self.shuffle else 1

    def hash(self, tail: str) -> str:
        parts = [
            {
                "pipeline": p.pipeline,
                "where": p.where,
                "missing": p.missing,
                "layouts": [asdict(layout) for layout in layouts],
            }
            for p, layouts in zip(self.parts, self.layouts, strict=True)
        ]
        return json_hash(
            {
                "revision": ORDER_REVISION,
                "parts": parts,
                "packing": self.packing,
                "length": self.length,
                "shuffle": None if self.shuffle is None else asdict(self.shuffle),
                "split": self.split,
                "tail": tail,
            }
        )


class PartPlan:
    """One part over one snapshot. sequences: of every epoch; samples, tokens: that it holds."""

    def __init__(
        self,
        number: int,
        label: str,
        selection: Selection,
        counts: NDArray[np.int64],
        request: Request,
        seed: int,
    ) -> None:
        self.number = number
        self.selection = selection
        self.lanes = request.lanes
        self._counts = counts
        self._request = request
        self._seed = seed
        self._orders: dict[int, EpochOrder] = {}
        self._lock = threading.Lock()
        self.line = int(counts.sum())
        cut = request.packing == "cut"
        self.sequences = -(-self.line // request.length) if cut else self.line
        if not self.sequences:
            raise JobError(
                f"part {label!r} has no samples",
                why="no shard of the snapshot has what its streams, filters and split ask for",
                remedy="`tokenmill ls STORE` shows what is there",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_orders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _orders={})

    def order(self, epoch: int) -> EpochOrder:
        """The line of an epoch; the last two are kept."""
        with self._lock:
            if epoch not in self._orders:
                while len(self._orders) >= 2:
                    del self._orders[min(self._orders)]
                self._orders[epoch] = epoch_order(
                    self._counts,
                    group=self._request.group,
                    seed=self._seed,
                    part=self.number,
                    epoch=epoch,
                    shuffled=self._request.shuffle is not None,
                )
            return self._orders[epoch]

    def open(self, epoch: int, block: int, open_shard: Open) -> Block:
        """A block of an epoch. Raises as opened.open_block does."""
        key = None
        if self._request.shuffle is not None:
            key = stream_key(self._seed, "rows", self.number, epoch, block)
        members = self.order(epoch).members(block).tolist()
        return open_block(self.selection, members, key, open_shard)

    def held(self, world: int) -> int:
        """Blocks that a rank of `world` needs at once: two per lane it reads."""
        return 2 * lanes_of_rank(self.lanes, world)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All parts over one snapshot. selection: hash of the rows chosen, for the state."""

    snapshot: str
    selection: str
    parts: tuple[PartPlan, ...]


def make_plan(
    dataset: Dataset,
    request: Request,
    seed: int,
    threads: int,
    cache: LocalCache | None,
) -> Plan:
    """Raises JobError (unknown names, nothing to load), SpaceMismatch, StoreError."""

    def open_shard(shard: Any) -> Any:
        return open_rows(dataset.access, shard, cache)

    plans, digest = [], hashlib.sha256()
    for number, (part, layouts) in enumerate(zip(request.parts, request.layouts, strict=True)):
        streams = [layout.stream for layout in layouts]
        spans = make_spans(_chosen(dataset, part, streams), streams, part.missing)
        selection = Selection(
            spans=spans,
            layouts=layouts,
            missing=part.missing,
            split=request.split,
            packing=request.packing,
            length=request.length,
        )
        mine = _spans_hash(spans)
        digest.update(mine)
        counts = _counts(dataset, selection, mine, open_shard, threads)
        plans.append(PartPlan(number, part.label, selection, counts, request, seed))
    return Plan(snapshot=dataset.snapshot, selection=digest.hexdigest(), parts=tuple(plans))


def _chosen(dataset: Dataset, part: Part, streams: Sequence[str]) -> pa.Table:
    chosen = dataset.select(pipeline=part.pipeline, streams=streams)
    chosen.check_spaces()
    table = chosen.snapshot_table()
    if part.where is None:
        return table
    paths = chosen.sql(f"select path from shards where ({part.where})")["path"]
    return table.filter(pc.is_in(table["path"], value_set=paths.combine_chunks()))


def _spans_hash(spans: Spans) -> bytes:
    """Over the content and the rows of every span: equal hashes, equal samples."""
    digest = hashlib.sha256()
    column = spans.files["content_hash"].combine_chunks()
    for buffer in column.buffers() if len(column) else ():
        if buffer is not None:
            digest.update(buffer)
    for array in (spans.first_row, spans.start, spans.stop, spans.file):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _counts(
    dataset: Dataset, selection: Selection, spans: bytes, open_shard: Open, threads: int
) -> NDArray[np.int64]:
    """What each span adds to the line: samples, tokens with specials, or packs."""
    known = _known(selection)
    if known is not None:
        return known

    def count(span: int) -> tuple[int, int, int]:
        found = read_span(selection, span, open_shard)
        whole = selection.packing == "whole"
        packs = pack_whole(found.total, selection.length).count if whole else 0
        return len(found.rows), int(found.total.sum()), packs

    key = json_hash(
        {
            "spans": spans.hex(),
            "layouts": [asdict(layout) for layout in selection.layouts],
            "missing": selection.missing,
            "split": selection.split,
            "whole": selection.length if selection.packing == "whole" else None,
            "revision": ORDER_REVISION,
        }
    )
    census = take_census(dataset.access, key, len(selection.spans), count, threads)
    by: Mapping[Packing | None, Callable[[], NDArray[np.int64]]] = {
        None: lambda: census.samples,
        "cut": lambda: census.tokens,
        "whole": lambda: census.packs,
    }
    return by[selection.packing]()


def _known(selection: Selection) -> NDArray[np.int64] | None:
    """The counts where the snapshot's own numbers are enough."""
    spans, layouts = selection.spans, selection.layouts
    if selection.split is not None or selection.packing == "whole" or (spans.samples < 0).any():
        return None
    if selection.packing is None:
        return spans.samples
    tokens: NDArray[np.int64] = spans.tokens
    for layout in layouts:
        if layout.cut is not None:
            return None
        tokens = layout.known_tokens(tokens, spans.samples)
    return tokens
