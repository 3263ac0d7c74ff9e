"""Slots to batches: every part, epoch and block that some steps need is gathered in few calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.store.stream.assemble import Pieces, write_fragments
from tokenmill.store.stream.batch import SequenceBatch
from tokenmill.store.stream.blocks import in_lanes
from tokenmill.store.stream.held import HeldBlocks
from tokenmill.store.stream.opened import Block, Fragments, Ints, distinct
from tokenmill.store.stream.packing import windows
from tokenmill.store.stream.plan import PartPlan

Draw = Callable[[Ints], tuple[Ints, Ints]]
IGNORE = -100  # what torch's losses skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Group:
    """Fragments of one block. seq: the sequence (of all that are made at once), place: where in
    it."""

    plan: PartPlan
    block: Block
    fragments: Fragments
    seq: Ints
    place: Ints

    @property
    def size(self) -> Ints:
        return self.fragments.end - self.fragments.begin


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How batches are made. width: tokens of a sequence, None for the longest of the batch.
    isolate: documents of one sequence do not see each other."""

    width: int | None
    dtype: np.dtype[Any]
    pad: int
    fields: frozenset[str]
    isolate: bool


class ChunkMaker:
    """Batches of one rank from the parts of a plan; usable from several threads."""

    def __init__(
        self, parts: Sequence[PartPlan], draw: Draw, held: HeldBlocks, making: Making
    ) -> None:
        self._parts = parts
        self._draw = draw
        self._held = held
        self._making = making

    def make(self, steps: Sequence[tuple[int, int]], slots: Sequence[Ints]) -> list[SequenceBatch]:
        """A batch for each (step, slot after it), of its slots, numbered from the plan's first."""
        counts = [len(s) for s in slots]
        part, draw = self._draw(np.concatenate(slots))
        groups: list[_Group] = []
        for number in distinct(part):
            mine = np.flatnonzero(part == number)
            groups += self._groups(self._parts[number], draw[mine], mine)
        edges = np.concatenate([[0], np.cumsum(counts)]).tolist()
        ranges = list(pairwise(edges))
        width = self._making.width or _even_width(groups)
        if width is not None:
            made = _Made(groups, 0, edges[-1], width, self._making)
            return [
                made.batch(*r, step, slot) for r, (step, slot) in zip(ranges, steps, strict=True)
            ]
        batches = []
        for (first, last), (step, slot) in zip(ranges, steps, strict=True):
            here = [g for g in (_within(g, first, last) for g in groups) if len(g.seq)]
            longest = max((int(g.size.max()) for g in here), default=1)
            made = _Made(here, first, last, max(1, longest), self._making)
            batches.append(made.batch(first, last, step, slot))
        return batches

    def _groups(self, plan: PartPlan, draws: Ints, seq: Ints) -> list[_Group]:
        first = int(draws[0]) // plan.sequences
        if int(draws.max()) < (first + 1) * plan.sequences and int(draws.min()) == int(draws[0]):
            epoch, rest = np.full_like(draws, first), draws - first * plan.sequences
        else:
            epoch, rest = np.divmod(draws, plan.sequences)
        place = in_lanes(rest, plan.sequences, plan.lanes)
        groups = []
        for number in distinct(epoch):
            mine = epoch == number
            make = self._cut if plan.selection.packing == "cut" else self._counted
            groups += make(plan, number, place[mine], seq[mine])
        return groups

    def _counted(self, plan: PartPlan, epoch: int, place: Ints, seq: Ints) -> list[_Group]:
        """Samples or packs: each is counted in the line."""
        order = plan.order(epoch)
        blocks = order.block_of(place)
        groups = []
        for number in distinct(blocks):
            mine = blocks == number
            block = self._block(plan, epoch, number)
            local = place[mine] - order.line[number]
            whole = plan.selection.packing == "whole"
            found = block.packed(local) if whole else block.whole(local)
            groups.append(
                _Group(
                    plan=plan,
                    block=block,
                    fragments=found,
                    seq=seq[mine][found.which],
                    place=found.at,
                )
            )
        return groups

    def _cut(self, plan: PartPlan, epoch: int, place: Ints, seq: Ints) -> list[_Group]:
        """Stretches of the line; one that crosses into the next block takes from both."""
        order, length = plan.order(epoch), plan.selection.length
        begin = place * length
        end = np.minimum(begin + length, plan.line)
        which, blocks, start, stop = windows(order.line, begin, end)
        before = order.line[blocks] + start - begin[which]
        groups = []
        for number in distinct(blocks):
            mine = blocks == number
            block = self._block(plan, epoch, number)
            found = block.cut(start[mine], stop[mine])
            groups.append(
                _Group(
                    plan=plan,
                    block=block,
                    fragments=found,
                    seq=seq[which[mine]][found.which],
                    place=before[mine][found.which] + found.at,
                )
            )
        return groups

    def _block(self, plan: PartPlan, epoch: int, number: int) -> Block:
        block = self._held.get((plan.number, epoch, number))
        last = number + 2 >= len(plan.order(epoch).edges)
        following = (plan.number, epoch + 1, 0) if last else (plan.number, epoch, number + 1)
        self._held.expect(following)
        return block


def _even_width(groups: Sequence[_Group]) -> int | None:
    """The length of all samples if it is one and the same."""
    sizes = {
        int(n)
        for g in groups
        for n in ((g.block.length,) if g.fragments.even else (g.size.min(), g.size.max()))
        if n is not None
    }
    return sizes.pop() or None if len(sizes) == 1 else None


def _within(group: _Group, first: int, last: int) -> _Group:
    mine = np.flatnonzero((group.seq >= first) & (group.seq < last))
    f = group.fragments
    return _Group(
        plan=group.plan,
        block=group.block,
        fragments=Fragments(
            which=f.which[mine],
            sample=f.sample[mine],
            begin=f.begin[mine],
            end=f.end[mine],
            at=f.at[mine],
            even=f.even,
        ),
        seq=group.seq[mine],
        place=group.place[mine],
    )


class _Made:
    """Sequences [first, last) of a chunk as arrays; `batch` gives views of them."""

    def __init__(
        self, groups: Sequence[_Group], first: int, last: int, width: int, making: Making
    ) -> None:
        self._making = making
        self._first = first
        self._width = width
        self._rows = last - first
        flat = np.empty(self._rows * width, making.dtype)
        dests = [(g.seq - first) * width + g.place for g in groups]
        pieces = [
            write_fragments(flat, width, g.block, g.plan.selection.layouts, g.fragments, d)
            for g, d in zip(groups, dests, strict=True)
        ]
        self._lengths = np.zeros(self._rows, np.int32)
        for g in groups:
            if g.fragments.even:
                self._lengths[g.seq - first] = g.block.length or 0
            else:
                self._lengths += np.bincount(g.seq - first, g.size, self._rows).astype(np.int32)
        self._tokens = flat.reshape(self._rows, width)
        self._padding = self._mask_of_padding()
        if self._padding is not None:
            self._tokens[self._padding] = making.pad
        self._dest = self._size = np.zeros(0, np.int64)
        self._ids: NDArray[np.uint8] | None = None
        self._tabulate(groups, dests)
        if "cu_seqlens" in making.fields:
            self._edges = self._made_edges()
        self._grids = self._made_grids(pieces)
        self._spans = self._made_spans(pieces) if "spans" in making.fields else None

    def _mask_of_padding(self) -> NDArray[np.bool_] | None:
        if not len(self._lengths) or self._lengths.min() == self._width:
            return None
        return np.arange(self._width) >= self._lengths[:, None]

    def _tabulate(self, groups: Sequence[_Group], dests: Sequence[Ints]) -> None:
        """Where documents begin in the flat output, how long they are, whose they are."""
        none = np.zeros(0, np.int64)
        if not self._making.fields - {"loss_mask", "modality", "spans"}:
            return
        dest = np.concatenate([none, *dests])
        order = np.argsort(dest, kind="stable")
        self._dest = dest[order]
        self._size = np.concatenate([none, *(g.size for g in groups)])[order]
        if "ids" in self._making.fields:
            ids = [g.block.ids(g.fragments.sample) for g in groups]
            self._ids = np.concatenate([np.zeros((0, 16), np.uint8), *ids])[order]

    def _made_grids(self, pieces: Sequence[Sequence[Pieces]]) -> dict[str, NDArray[Any]]:
        """Arrays with one entry per token."""
        wanted, shape = self._making.fields, (self._rows, self._width)
        grids: dict[str, NDArray[Any]] = {}
        if wanted & {"positions", "labels"}:
            grids["positions"] = self._positions()
        if wanted & {"loss_mask", "labels"}:
            grids["loss_mask"] = self._loss_mask(pieces)
        if "modality" in wanted:
            codes = np.zeros(self._rows * self._width, np.uint8)
            for part in (p for group in pieces for p in group):
                _fill(codes, part.dest, part.length, part.layout.code)
            grids["modality"] = codes.reshape(shape)
        if "labels" in wanted:
            grids["labels"] = _labels(self._tokens, grids["loss_mask"], grids["positions"])
        return {name: grid for name, grid in grids.items() if name in wanted}

    def _positions(self) -> NDArray[np.int32]:
        if not self._making.isolate:
            each = np.arange(self._width, dtype=np.int32)
            return np.ascontiguousarray(np.broadcast_to(each, (self._rows, self._width)))
        starts = np.union1d(self._dest, self._rests())
        sizes = np.diff(np.append(starts, self._rows * self._width))
        flat = np.arange(self._rows * self._width, dtype=np.int32)
        flat -= np.repeat(starts, sizes).astype(np.int32)
        return flat.reshape(self._rows, self._width)

    def _rests(self) -> Ints:
        """Where the padding of each sequence that has one begins in the flat output."""
        short = np.flatnonzero(self._lengths < self._width)
        return short * self._width + self._lengths[short]

    def _loss_mask(self, pieces: Sequence[Sequence[Pieces]]) -> NDArray[np.bool_]:
        flat = np.ones(self._rows * self._width, bool)
        for part in (p for group in pieces for p in group):
            if not part.layout.in_loss:
                _fill(flat, part.dest, part.length, False)
        mask = flat.reshape(self._rows, self._width)
        if self._padding is not None:
            mask[self._padding] = False
        return mask

    def _made_spans(self, pieces: Sequence[Sequence[Pieces]]) -> Ints:
        """[s, 3]: begin in the flat output, length, stream number; in order."""
        parts = [
            np.column_stack([p.dest, p.length, np.full(len(p.dest), p.layout.code)])
            for group in pieces
            for p in group
        ]
        table = np.concatenate([np.zeros((0, 3), np.int64), *parts])
        return table[np.argsort(table[:, 0], kind="stable")]

    def batch(self, first: int, last: int, step: int, slot: int) -> SequenceBatch:
        """Sequences [first, last) of the chunk."""
        low, high = first - self._first, last - self._first
        wanted, width = self._making.fields, self._width
        a, b = low, high
        if self._making.width is not None:  # else a sequence is one sample
            a, b = np.searchsorted(self._dest, (low * width, high * width)).tolist()
        cu_seqlens, longest = (None, None)
        if "cu_seqlens" in wanted:
            cu_seqlens, longest = self._cu_seqlens(low, high)
        return SequenceBatch(
            step=step,
            slot=slot,
            tokens=self._tokens[low:high],
            lengths=self._lengths[low:high],
            ids=None if self._ids is None else self._ids[a:b],
            documents=self._documents(low, a, b) if "documents" in wanted else None,
            cu_seqlens=cu_seqlens,
            max_seqlen=longest,
            spans=self._span_table(low, high),
            **{name: grid[low:high] for name, grid in self._grids.items()},
        )

    def _documents(self, low: int, a: int, b: int) -> NDArray[np.int32]:
        row, start = np.divmod(self._dest[a:b], self._width)
        table = np.column_stack([row - low, start, start + self._size[a:b]])
        return table.astype(np.int32)

    def _made_edges(self) -> Ints:
        """Where documents, sequences and paddings begin in the flat output, and its end."""
        edges = np.arange(self._rows + 1, dtype=np.int64) * self._width
        if not self._making.isolate:
            return edges
        return np.unique(np.concatenate([edges, self._dest, self._rests()]))

    def _cu_seqlens(self, low: int, high: int) -> tuple[NDArray[np.int32], int]:
        first, last = np.searchsorted(self._edges, (low * self._width, high * self._width))
        edges = (self._edges[first : last + 1] - low * self._width).astype(np.int32)
        return edges, int((edges[1:] - edges[:-1]).max(initial=0))

    def _span_table(self, low: int, high: int) -> NDArray[np.int32] | None:
        if self._spans is None:
            return None
        a, b = np.searchsorted(self._spans[:, 0], (low * self._width, high * self._width))
        dest, length, code = self._spans[a:b].T
        row, start = np.divmod(dest, self._width)
        return np.column_stack([row - low, start, start + length, code]).astype(np.int32)


def _fill(out: NDArray[Any], dest: Ints, length: Ints, value: Any) -> None:
    for start, size in zip(dest.tolist(), length.tolist(), strict=True):
        out[start : start + size] = value


def _labels(
    tokens: NDArray[Any], mask: NDArray[np.bool_], positions: NDArray[np.int32]
) -> NDArray[np.int64]:
    """The next token, where it is learnt and goes on the same document."""
    labels = np.full(tokens.shape, IGNORE, np.int64)
    learnt = mask[:, 1:] & (positions[:, 1:] > 0)
    labels[:, :-1][learnt] = tokens[:, 1:][learnt]
    return labels
