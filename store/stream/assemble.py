"""Fragments of samples into one flat array of tokens: few calls for many samples.

Runs of one length (grids) are gathered in one call per shard; long runs are copied one by one,
which costs less than an index per token; short ones (captions) are gathered by an index per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.store.stream.layout import StreamLayout, flattened
from tokenmill.store.stream.opened import Block, Fragments, Ints

# Below this mean length an index per token (about 4 ns each) beats a copy per run (about 400 ns).
_LONG_RUN = 96
_EVEN_RUN = 1 << 16
_GATHER_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pieces:
    """Where one stream's part of each fragment went: tokens [dest, dest + length) of the output,
    specials included. fragment: index into the fragments."""

    dest: Ints
    length: Ints
    fragment: Ints
    layout: StreamLayout


def write_fragments(
    out: NDArray[Any],
    width: int,
    block: Block,
    layouts: tuple[StreamLayout, ...],
    fragments: Fragments,
    dest: Ints,
) -> list[Pieces]:
    """Write fragment f at out[dest[f]:]; `out` is flat, sequences of `width` tokens one after the
    other. Literals, offsets and flattening as the layouts say."""
    layout = layouts[0]
    if fragments.even and len(layouts) == 1 and layout.plain and not layout.around and block.length:
        starts = block.starts[fragments.sample, 0]
        _gather_even(out, width, block.values[0], starts, block.length, dest, layout.offset)
        everything = np.arange(len(dest), dtype=np.int64)
        return [Pieces(dest=dest, length=fragments.end, fragment=everything, layout=layout)]
    offset = np.zeros(len(dest), np.int64)
    pieces = []
    for stream, layout in enumerate(layouts):
        kept = layout.kept(block.raw[fragments.sample, stream])
        full = kept + layout.around
        if block.has is not None:
            full = full * block.has[fragments.sample, stream]
        low = np.clip(fragments.begin - offset, 0, full)
        high = np.clip(fragments.end - offset, 0, full)
        here = np.flatnonzero(high > low)
        place = dest + offset + low - fragments.begin
        offset = offset + full
        part = Pieces(dest=place[here], length=(high - low)[here], fragment=here, layout=layout)
        samples, low, high, kept = fragments.sample[here], low[here], high[here], kept[here]
        _write_ids(out, width, block, stream, part, samples, low, high, kept)
        _write_literals(out, part, low, high, kept)
        pieces.append(part)
    return pieces


def _write_literals(out: NDArray[Any], part: Pieces, low: Ints, high: Ints, kept: Ints) -> None:
    layout = part.layout
    before = len(layout.before)
    for i, token in enumerate((*layout.before, *layout.after)):
        at = np.full_like(low, i) if i < before else kept + i
        inside = (low <= at) & (at < high)
        out[(part.dest + at - low)[inside]] = token


def _write_ids(
    out: NDArray[Any],
    width: int,
    block: Block,
    stream: int,
    part: Pieces,
    samples: Ints,
    low: Ints,
    high: Ints,
    kept: Ints,
) -> None:
    before = len(part.layout.before)
    first = np.maximum(low - before, 0)
    last = np.minimum(high - before, kept)
    dest = part.dest + first + before - low
    mine = np.flatnonzero(last > first)
    samples, first, last, dest = samples[mine], first[mine], last[mine], dest[mine]
    if not len(mine):
        return
    values, starts = block.values[stream], block.starts[samples, stream]
    if part.layout.plain:
        _gather(out, width, values, starts + first, last - first, dest, part.layout.offset)
        return
    if part.layout.shaped:
        shapes = block.shapes(samples, stream)
    else:
        shapes = block.raw[samples, stream][:, None]
    _gather_flattened(out, values, starts, first, last, dest, part.layout, shapes)


def _gather(
    out: NDArray[Any],
    width: int,
    values: NDArray[Any],
    starts: Ints,
    counts: Ints,
    dest: Ints,
    offset: int,
) -> None:
    """out[dest + i] = values[starts + i] + offset for i < counts, run by run; one at least."""
    count = int(counts[0])
    if len(counts) > 2 and count <= _EVEN_RUN and bool((counts == count).all()):
        _gather_even(out, width, values, starts, count, dest, offset)
    elif int(counts.sum()) >= _LONG_RUN * len(counts):
        for s, n, d in zip(starts.tolist(), counts.tolist(), dest.tolist(), strict=True):
            if offset:
                # in the output's dtype: a narrow one could not hold the sum
                np.add(
                    values[s : s + n],
                    offset,
                    out=out[d : d + n],
                    dtype=out.dtype,
                    casting="unsafe",
                )
            else:
                out[d : d + n] = values[s : s + n]
    else:
        ends = np.cumsum(counts)
        inside = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(ends - counts, counts)
        found = values[inside + np.repeat(starts, counts)].astype(out.dtype, copy=False)
        out[inside + np.repeat(dest, counts)] = found + offset if offset else found


def _gather_even(
    out: NDArray[Any],
    width: int,
    values: NDArray[Any],
    starts: Ints,
    count: int,
    dest: Ints,
    offset: int,
) -> None:
    size = values.itemsize
    # rows as single items of many bytes: numpy copies each with one memcpy
    row_type = np.dtype((np.void, count * size))
    rows = np.ndarray((len(values) - count + 1,), row_type, values, strides=(size,))
    row, column = np.divmod(dest, width)
    in_place = count == width and values.dtype == out.dtype and not offset and not column.any()
    targets = out.view(row_type) if in_place else out.reshape(-1, width)
    aligned = count + int(column[0]) <= width and bool((column == column[0]).all())
    at = slice(int(column[0]), int(column[0]) + count)
    # few at a time: what is gathered stays in the cache until it is put in its place
    few = max(1, _GATHER_BYTES // (count * size))
    for first in range(0, len(starts), few):
        found = rows[starts[first : first + few]]
        if in_place:
            targets[row[first : first + few]] = found
            continue
        ids = found.view(values.dtype).reshape(-1, count)
        if offset:
            ids = ids.astype(out.dtype, copy=False) + offset
        if aligned:
            targets[row[first : first + few], at] = ids
        else:
            out[dest[first : first + few, None] + np.arange(count)] = ids


def _gather_flattened(
    out: NDArray[Any],
    values: NDArray[Any],
    starts: Ints,
    first: Ints,
    last: Ints,
    dest: Ints,
    layout: StreamLayout,
    shapes: NDArray[Any],
) -> None:
    """As _gather, for flattened orders: samples of one shape and stretch at a time."""
    kinds, which = np.unique(np.column_stack([first, last, shapes]), axis=0, return_inverse=True)
    for number, kind in enumerate(kinds.tolist()):
        mine = which.reshape(-1) == number
        low, high, *shape = kind
        full = tuple(shape) if layout.shaped else layout.shape(shape[0])
        where, add = (a[low:high] for a in flattened(layout, full))
        found = values[starts[mine][:, None] + np.maximum(where, 0)].astype(out.dtype)
        found = np.where(where < 0, 0, found) + add.astype(out.dtype)
        out[dest[mine][:, None] + np.arange(high - low)] = found
