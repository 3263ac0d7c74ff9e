"""Which rows of the ledger count. Pure, columnar: 100,000 cells in a fraction of a second.

A cell is hidden for good by a cell of the same (pipeline, stream, place) that was committed later
and either covers another version of the place or overlaps its span. So for one (input, span) the
row committed last is valid, a newer version of a file hides the older one whole, and after a new
cut in place the later cells hide the earlier ones that they touch.

An *attempt* is one commit of one (unit, stream): the key (pipeline, stream, unit, seq). Its shard
files are visible while any of its rows lies in a valid cell; the rows of its hidden cells are then
excluded. A quarantine row counts while its cell is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]
Ranges = tuple[tuple[int, int], ...]

PLACE = ("pipeline", "stream", "source_id")
ATTEMPT = ("pipeline", "stream", "unit", "seq")
CELL_COLUMNS = (*PLACE, "input", "span_start", "span_end", "seq", "unit", "first_row", "rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class VisibleUnits:
    """Per unit row: whether it counts, and the row ranges [start, end) of its (unit, stream),
    clipped to the file, that do not."""

    mask: Mask
    exclude: dict[int, Ranges]  # index of a visible unit row -> ranges; most have none


def valid_cells(cells: pa.Table) -> Mask:
    """Which input rows are valid. Columns: CELL_COLUMNS. bool[n]."""
    n = cells.num_rows
    if n == 0:
        return np.zeros(0, bool)
    seq = ints(cells, "seq")
    (place,) = group_codes([cells], PLACE)
    (version,) = group_codes([cells], (*PLACE, "input"))
    valid = _newest_version(place, version, seq)
    keep = np.flatnonzero(valid)
    start, end = ints(cells, "span_start")[keep], ints(cells, "span_end")[keep]
    valid[keep] = _last_of_each_span(version[keep], start, end, seq[keep])
    keep = np.flatnonzero(valid)
    start, end = ints(cells, "span_start")[keep], ints(cells, "span_end")[keep]
    valid[keep] = ~_hidden_by_overlap(version[keep], start, end, seq[keep])
    return valid


def visible_units(units: pa.Table, cells: pa.Table, valid: Mask) -> VisibleUnits:
    """Which unit rows count. `units`: ATTEMPT, first_row, rows; `cells`, `valid`: as above."""
    unit_attempt, cell_attempt = group_codes([units, cells], ATTEMPT)
    attempts = int(max(unit_attempt.max(initial=-1), cell_attempt.max(initial=-1))) + 1
    any_valid = np.zeros(attempts, bool)
    any_hidden = np.zeros(attempts, bool)
    any_valid[cell_attempt[valid]] = True
    any_hidden[cell_attempt[~valid]] = True
    mask = any_valid[unit_attempt]
    mixed = np.flatnonzero(mask & any_hidden[unit_attempt])
    exclude: dict[int, Ranges] = {}
    if len(mixed):
        hidden = _HiddenRows(cells, cell_attempt, valid)
        first, rows = ints(units, "first_row"), ints(units, "rows")
        for index in mixed.tolist():
            begin, size = int(first[index]), int(rows[index])
            ranges = hidden.within(int(unit_attempt[index]), begin, begin + size)
            if size and sum(b - a for a, b in ranges) == size:
                mask[index] = False
            elif ranges:
                exclude[index] = ranges
    return VisibleUnits(mask=mask, exclude=exclude)


def valid_quarantine(quarantine: pa.Table, cells: pa.Table, valid: Mask) -> Mask:
    """Which quarantine rows count. Columns: ATTEMPT, input, row (null: the input itself)."""
    n = quarantine.num_rows
    if n == 0:
        return np.zeros(0, bool)
    q_input, c_input = group_codes([quarantine, cells], (*ATTEMPT, "input"))
    top = int(max(q_input.max(initial=-1), c_input.max(initial=-1))) + 1
    input_valid = np.zeros(top, bool)
    input_valid[c_input[valid]] = True
    mask = input_valid[q_input]
    by_row = np.asarray(quarantine["row"].is_valid())
    if not by_row.any():
        return mask
    q_attempt, c_attempt = group_codes([quarantine, cells], ATTEMPT)
    rows = np.flatnonzero(by_row)
    row = ints(quarantine, "row")[rows]
    at = _cell_at(c_attempt, cells, q_attempt[rows], row)
    inside = at >= 0
    mask[rows] = inside & valid[np.where(inside, at, 0)] if len(valid) else False
    return mask


def covered_twice(cells: pa.Table, valid: Mask) -> Codes:
    """Indices of valid cells that overlap another valid one (a healthy ledger has none)."""
    keep = np.flatnonzero(valid)
    (version,) = group_codes([cells], (*PLACE, "input"))
    start, end = ints(cells, "span_start")[keep], ints(cells, "span_end")[keep]
    touching = _touching(version[keep], start, end)
    return keep[touching]


# -- cells -----------------------------------------------------------------------------------


def _newest_version(place: Codes, version: Codes, seq: Codes) -> Mask:
    """Valid as to versions: of the place's newest version, and after every other version."""
    order = np.lexsort((version, seq, place))
    last = np.flatnonzero(np.diff(place[order], append=-1))  # last of each place
    newest = np.empty(int(place.max()) + 1, np.int64)
    newest[place[order[last]]] = version[order[last]]
    is_newest = version == newest[place]
    other_seq = np.full(len(newest), -1, np.int64)
    others = np.flatnonzero(~is_newest)
    np.maximum.at(other_seq, place[others], seq[others])
    return np.asarray(is_newest & (seq >= other_seq[place]))


def _last_of_each_span(version: Codes, start: Codes, end: Codes, seq: Codes) -> Mask:
    """Those of one version and span with the highest seq."""
    if not len(version):
        return np.zeros(0, bool)
    order = np.lexsort((seq, end, start, version))
    changes = (np.diff(version[order]) != 0) | (np.diff(start[order]) != 0)
    changes |= np.diff(end[order]) != 0
    group = np.concatenate([[0], np.cumsum(changes)])
    ends = np.append(np.flatnonzero(changes), len(order) - 1)
    mask = np.empty(len(order), bool)
    mask[order] = seq[order] == seq[order[ends]][group]
    return mask


def _touching(version: Codes, start: Codes, end: Codes) -> Codes:
    """Indices of the cells of every version in which any two cells overlap."""
    if len(version) < 2:
        return np.zeros(0, np.int64)
    order = np.lexsort((end, start, version))
    v, s, e = version[order], start[order], end[order]
    # Without an overlap each cell starts at or after the end of its predecessor; with one, some
    # pair of neighbours in this order overlaps.
    clash = (v[1:] == v[:-1]) & (s[1:] < e[:-1])
    if not clash.any():
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.isin(version, v[1:][clash]))


def _hidden_by_overlap(version: Codes, start: Codes, end: Codes, seq: Codes) -> Mask:
    """Cells that a later cell of the same version overlaps, whatever hides that one in turn."""
    hidden = np.zeros(len(version), bool)
    touching = _touching(version, start, end)
    if len(touching):
        hidden[touching] = _overlapped_later(
            version[touching], start[touching], end[touching], seq[touching]
        )
    return hidden


def _overlapped_later(version: Codes, start: Codes, end: Codes, seq: Codes) -> Mask:
    """The line of each version is cut at every start and end; a cell is hidden when a piece of it
    carries a higher seq. Cost: cells times the pieces of each, a few per cut of the same input."""
    _, version = np.unique(version, return_inverse=True)
    marks, mark = np.unique(np.concatenate([start, end]), return_inverse=True)
    keys = np.concatenate([version, version]) * len(marks) + mark
    points, point = np.unique(keys, return_inverse=True)
    first, last = point[: len(version)], point[len(version) :]
    count = last - first
    owner = np.repeat(np.arange(len(version)), count)
    piece = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    highest = np.full(len(points), -1, np.int64)
    np.maximum.at(highest, piece, seq[owner])
    hidden = np.zeros(len(version), bool)
    hidden[owner[highest[piece] > seq[owner]]] = True
    return hidden


# -- rows ------------------------------------------------------------------------------------


class _HiddenRows:
    """Row ranges of the hidden cells of each attempt, found by binary search."""

    def __init__(self, cells: pa.Table, attempt: Codes, valid: Mask) -> None:
        hidden = np.flatnonzero(~valid)
        first = ints(cells, "first_row")[hidden]
        order = np.lexsort((first, attempt[hidden]))
        self._attempt = attempt[hidden][order]
        self._first = first[order]
        self._end = self._first + ints(cells, "rows")[hidden][order]

    def within(self, attempt: int, begin: int, end: int) -> Ranges:
        """Merged ranges of `attempt` clipped to [begin, end)."""
        low, high = np.searchsorted(self._attempt, [attempt, attempt + 1])
        merged: list[tuple[int, int]] = []
        for a, b in zip(self._first[low:high].tolist(), self._end[low:high].tolist(), strict=True):
            a, b = max(a, begin), min(b, end)
            if a >= b:
                continue
            if merged and merged[-1][1] == a:
                a = merged.pop()[0]
            merged.append((a, b))
        return tuple(merged)


def _cell_at(attempt: Codes, cells: pa.Table, wanted: Codes, row: Codes) -> Codes:
    """Index of the cell of attempt `wanted[i]` that holds `row[i]`, -1 where there is none."""
    first = ints(cells, "first_row")
    end = first + ints(cells, "rows")
    # an empty cell shares its first row with the next one: it sorts before it
    order = np.lexsort((end, first, attempt))
    if not len(order):
        return np.full(len(wanted), -1, np.int64)
    attempt, first, end = attempt[order], first[order], end[order]
    width = int(max(end.max(), row.max(initial=0))) + 1
    at = np.searchsorted(attempt * width + first, wanted * width + row, side="right") - 1
    at = np.maximum(at, 0)
    inside = (attempt[at] == wanted) & (first[at] <= row) & (row < end[at])
    return np.where(inside, order[at], -1)


# -- columns ---------------------------------------------------------------------------------


def ints(table: pa.Table, name: str) -> Codes:
    return np.asarray(table[name].fill_null(0).to_numpy(), dtype=np.int64)


def group_codes(tables: Sequence[pa.Table], names: Sequence[str]) -> list[Codes]:
    """One dense number per distinct value of the columns `names`, the same across `tables`."""
    sizes = [table.num_rows for table in tables]
    code = np.zeros(sum(sizes), np.int64)
    for name in names:
        column = pa.chunked_array([c for table in tables for c in table[name].chunks])
        codes, distinct = _column_codes(column)
        if int(code.max(initial=0)) >= (1 << 62) // max(distinct, 1):
            code = np.unique(code, return_inverse=True)[1]
        code = code * distinct + codes
    dense = np.unique(code, return_inverse=True)[1].astype(np.int64)
    return np.split(dense, np.cumsum(sizes)[:-1])


def _column_codes(column: Any) -> tuple[Codes, int]:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)
