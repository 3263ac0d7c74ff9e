"""An opened shuffle block: where the ids of its samples lie, in which order they come.

It holds numbers per sample (about 24 bytes) and the maps of its shards, never the ids themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import ID_BYTES
from tokenmill.store.stream.layout import StreamLayout
from tokenmill.store.stream.mapped import ShardRef, ShardRows
from tokenmill.store.stream.packing import Packing, Packs, pack_whole, windows
from tokenmill.store.stream.permutation import permutation
from tokenmill.store.stream.regions import one_array
from tokenmill.store.stream.spans import Missing, Spans

# `split` counts in ten thousandths: hash(id) mod 10,000.
SPLIT_PARTS = 10_000
Split = tuple[int, int]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """What of which rows becomes a sample: spans, the layout of each of their streams, and rules.

    split: samples whose hash mod 10,000 lies in [low, high). packing, length: see packing.py.
    """

    spans: Spans
    layouts: tuple[StreamLayout, ...]
    missing: Missing
    split: Split | None
    packing: Packing | None
    length: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpanSamples:
    """The m samples of one span over S streams. rows: [m] within the span. starts: [m, S] in each
    stream's values, raw: [m, S] ids there, has: [m, S], None where every sample has every stream.
    total: [m] tokens with specials. shapes: per stream, [m, ndim] where its layout needs them.
    """

    shards: tuple[ShardRows | None, ...]
    first: tuple[int, ...]  # local row of the span's first row, per stream
    rows: Ints
    starts: Ints
    raw: NDArray[np.int32]
    has: NDArray[np.bool_] | None
    total: Ints
    shapes: tuple[NDArray[np.int32] | None, ...]

    def ids(self, rows: Ints) -> NDArray[np.uint8]:
        """uint8[len(rows), 16], from whichever stream is there."""
        for shard, first in zip(self.shards, self.first, strict=True):
            if shard is not None:
                return shard.ids(first + rows)
        return np.zeros((len(rows), ID_BYTES), np.uint8)


Open = Callable[[ShardRef], ShardRows]


def read_span(selection: Selection, span: int, open_shard: Open) -> SpanSamples:
    """The samples of a span. Raises CorruptStore, StoreUnavailable, JobError (unknown shapes)."""
    spans = selection.spans
    start, stop = int(spans.start[span]), int(spans.stop[span])
    shards: list[ShardRows | None] = []
    first: list[int] = []
    for file in spans.file[span].tolist():
        shards.append(None if file < 0 else open_shard(_shard_ref(spans, file)))
        first.append(0 if file < 0 else start - int(spans.first_row[file]))
    n = stop - start
    has = np.stack([_present(s, f, n) for s, f in zip(shards, first, strict=True)], axis=1)
    keep = has.all(axis=1) if selection.missing == "drop" else has.any(axis=1)
    lead = next((i for i, s in enumerate(shards) if s is not None), None)
    if selection.split is not None and lead is not None:
        ids = shards[lead].ids(first[lead] + np.arange(n))  # type: ignore[union-attr]
        keep &= in_split(ids, selection.split)
    rows = np.flatnonzero(keep)
    has = has[rows]
    starts = np.zeros((len(rows), len(shards)), np.int64)
    raw = np.zeros((len(rows), len(shards)), np.int32)
    for j, shard in enumerate(shards):
        if shard is not None:
            starts[:, j] = shard.starts[first[j] + rows]
            raw[:, j] = shard.lengths[first[j] + rows]
    return SpanSamples(
        shards=tuple(shards),
        first=tuple(first),
        rows=rows,
        starts=starts,
        raw=raw,
        has=None if has.all() else has,
        total=_totals(selection.layouts, raw, has),
        shapes=tuple(
            _shapes(layout, shard, f + rows, has[:, j])
            for j, (layout, shard, f) in enumerate(
                zip(selection.layouts, shards, first, strict=True)
            )
        ),
    )


def in_split(ids: NDArray[np.uint8], split: Split) -> NDArray[np.bool_]:
    """bool[n]: ids are hashes already, so their first eight bytes mod 10,000 are uniform, and a
    sample stays on its side however the store grows."""
    part = np.ascontiguousarray(ids[:, :8]).view("<u8")[:, 0] % np.uint64(SPLIT_PARTS)
    return (part >= np.uint64(split[0])) & (part < np.uint64(split[1]))


def _shard_ref(spans: Spans, file: int) -> ShardRef:
    row = spans.files.select(["path", "content_hash", "encoding", "rows"]).slice(file, 1)
    found = row.to_pylist()[0]
    return ShardRef(
        path=found["path"],
        content_hash=found["content_hash"],
        encoding=found["encoding"],
        rows=found["rows"],
    )


def _present(shard: ShardRows | None, first: int, n: int) -> NDArray[np.bool_]:
    return np.zeros(n, bool) if shard is None else shard.has[first : first + n]


def _totals(
    layouts: Sequence[StreamLayout], raw: NDArray[np.int32], has: NDArray[np.bool_]
) -> Ints:
    total = np.zeros(len(raw), np.int64)
    for j, layout in enumerate(layouts):
        total += (layout.kept(raw[:, j]) + layout.around) * has[:, j]
    return total


def _shapes(
    layout: StreamLayout, shard: ShardRows | None, rows: Ints, has: NDArray[np.bool_]
) -> NDArray[np.int32] | None:
    if not layout.shaped or shard is None:
        return None
    if shard.shapes is None:
        raise JobError(
            f"stream {layout.stream!r} cannot be flattened by {layout.order}",
            why="its shards do not store the shapes of samples",
            remedy="flatten it by raster",
        )
    return shard.shapes[rows]


def distinct(values: Ints) -> list[int]:
    """The different values, ascending; most often there is one, and sorting would cost more."""
    if not len(values):
        return []
    first = int(values[0])
    if bool((values == first).all()):
        return [first]
    found: list[int] = np.unique(values).tolist()
    return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fragments:
    """Tokens [begin, end) of samples of a block, for sequences: fragment f goes into sequence
    which[f] at place at[f]. int64 all. even: all are whole samples of the same length."""

    which: Ints
    sample: Ints
    begin: Ints
    end: Ints
    at: Ints
    even: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """spans: its spans' samples; sample i of the block is in span s where edges[s] <= i.
    values: per stream one flat array over the shards of all spans (see regions.py), in which
    sample i begins at starts[i]. order: the permuted samples (or packs). line: [m + 1], where they
    begin, with packing "cut". length: of every sample, where it is one and the same (grids)."""

    spans: tuple[SpanSamples, ...]
    edges: Ints
    values: tuple[NDArray[Any], ...]
    starts: Ints
    raw: NDArray[np.int32]
    has: NDArray[np.bool_] | None
    total: Ints
    order: Ints
    line: Ints | None = None
    packs: Packs | None = None
    length: int | None = None

    def span_of(self, samples: Ints) -> Ints:
        return np.searchsorted(self.edges, samples, side="right") - 1

    def whole(self, places: Ints) -> Fragments:
        """One sample a sequence: the samples at these places of the block's order."""
        sample = self.order[places]
        zero = np.zeros(len(places), np.int64)
        which = np.arange(len(places), dtype=np.int64)
        even = self.length is not None
        end = np.full_like(zero, self.length) if even else self.total[sample]
        return Fragments(which=which, sample=sample, begin=zero, end=end, at=zero, even=even)

    def cut(self, begin: Ints, end: Ints) -> Fragments:
        """Stretches [begin, end) of the block's line."""
        assert self.line is not None  # packing is "cut"
        which, place, start, stop = windows(self.line, begin, end)
        at = self.line[place] + start - begin[which]
        return Fragments(which=which, sample=self.order[place], begin=start, end=stop, at=at)

    def packed(self, places: Ints) -> Fragments:
        """The packs at these places of the block's order."""
        assert self.packs is not None  # packing is "whole"
        pack = self.order[places]
        first, count = self.packs.edges[pack], np.diff(self.packs.edges)[pack]
        which = np.repeat(np.arange(len(places), dtype=np.int64), count)
        before = np.cumsum(count) - count
        at = np.arange(len(which), dtype=np.int64) - before[which] + first[which]
        size = self.packs.end[at] - self.packs.begin[at]
        ends = np.cumsum(size)
        return Fragments(
            which=which,
            sample=self.packs.sample[at],
            begin=self.packs.begin[at],
            end=self.packs.end[at],
            at=ends - size - np.append(0, ends)[before][which],
        )

    def shapes(self, samples: Ints, stream: int) -> NDArray[np.int32]:
        """[n, ndim]: the shapes of these samples in a stream whose layout needs them."""
        span = self.span_of(samples)
        parts = {n: self.spans[n].shapes[stream] for n in distinct(span)}
        width = max(p.shape[1] for p in parts.values() if p is not None)
        shapes = np.zeros((len(samples), width), np.int32)
        for number, part in parts.items():
            assert part is not None  # a sample of it has this stream
            mine = span == number
            shapes[mine] = part[samples[mine] - self.edges[number]]
        return shapes

    def ids(self, samples: Ints) -> NDArray[np.uint8]:
        """uint8[n, 16]: sample ids."""
        ids = np.zeros((len(samples), ID_BYTES), np.uint8)
        span = self.span_of(samples)
        for number in distinct(span):
            mine = span == number
            found = self.spans[number]
            ids[mine] = found.ids(found.rows[samples[mine] - self.edges[number]])
        return ids


def open_block(
    selection: Selection, members: Sequence[int], key: bytes | None, open_shard: Open
) -> Block:
    """The block of these spans; key permutes it, None leaves it in file order.

    Raises as `read_span` does.
    """
    spans = tuple(read_span(selection, span, open_shard) for span in members)
    sizes = np.array([len(s.rows) for s in spans], np.int64)
    edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    width = len(selection.layouts)
    starts = np.concatenate([np.zeros((0, width), np.int64), *(s.starts for s in spans)])
    values = []
    for stream in range(width):
        shards = [s.shards[stream] for s in spans]
        joined, shifts = one_array([None if s is None else s.values for s in shards])
        values.append(joined)
        starts[:, stream] += np.repeat(shifts, sizes)
    total = np.concatenate([np.zeros(0, np.int64), *(s.total for s in spans)])
    packs = _packs(spans, edges, selection.length) if selection.packing == "whole" else None
    count = packs.count if packs is not None else int(edges[-1])
    order = np.arange(count, dtype=np.int64) if key is None else permutation(count, key)
    line = None
    if selection.packing == "cut":
        line = np.zeros(count + 1, np.int64)
        np.cumsum(total[order], out=line[1:])
    return Block(
        spans=spans,
        edges=edges,
        values=tuple(values),
        starts=starts,
        raw=np.concatenate([np.zeros((0, width), np.int32), *(s.raw for s in spans)]),
        has=_joined_has(spans, width),
        total=total,
        order=order,
        line=line,
        packs=packs,
        length=int(total[0]) if len(total) and bool((total == total[0]).all()) else None,
    )


def _joined_has(spans: Sequence[SpanSamples], width: int) -> NDArray[np.bool_] | None:
    if all(s.has is None for s in spans):
        return None
    return np.concatenate(
        [np.ones((len(s.rows), width), bool) if s.has is None else s.has for s in spans]
    )


def _packs(spans: Sequence[SpanSamples], edges: Ints, length: int) -> Packs:
    """The packs of each span, one after the other."""
    parts = [pack_whole(s.total, length) for s in spans]
    fragments = np.cumsum([0, *(len(p.sample) for p in parts)])
    return Packs(
        sample=np.concatenate([p.sample + e for p, e in zip(parts, edges[:-1], strict=True)]),
        begin=np.concatenate([p.begin for p in parts]),
        end=np.concatenate([p.end for p in parts]),
        edges=np.concatenate(
            [[0], *(p.edges[1:] + f for p, f in zip(parts, fragments[:-1], strict=True))]
        ).astype(np.int64),
    )
