"""What the ledger's rows must satisfy among themselves. Pure, columnar; `verify` adds the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenmill.store.validity import (
    ATTEMPT,
    CELL_COLUMNS,
    Codes,
    Mask,
    covered_twice,
    group_codes,
    ints,
    valid_cells,
)

_WHOLE = ("enumerated", "with_tokens", "quarantined", "absent")
AUDIT_COLUMNS: dict[str, tuple[str, ...]] = {
    "unit": (
        *ATTEMPT,
        "path",
        "first_row",
        "rows",
        "samples",
        "tokens",
        "bytes",
        "content_hash",
        "order_hash",
        *_WHOLE,
        "tokenizer",
        "space",
        "recipe",
    ),
    "input": (*CELL_COLUMNS, "uri", "ordinal"),
    "quarantine": (*ATTEMPT, "sample", "row"),
    "tokenizer": ("pipeline", "stream", "recipe", "descriptor"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is not as it must be. kind: short and stable, for grouping:
    missing, size, content, counts, g1, order, descriptor, covered-twice, named-twice, cells."""

    kind: str
    where: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """The visible part of the ledger. units: the rows of attempts with a valid cell, sorted by
    attempt and first_row; attempt: their attempt's number; quarantined: attempt -> its rows."""

    units: pa.Table
    attempt: Codes
    quarantined: dict[int, NDArray[np.int64]]
    cells: int  # valid ones
    problems: tuple[Problem, ...]


def audit(tables: dict[str, pa.Table]) -> Books:
    """Check the rows (AUDIT_COLUMNS, of one version) and lay out the visible ones."""
    units, cells, quarantine = tables["unit"], tables["input"], tables["quarantine"]
    valid = valid_cells(cells)
    unit_code, cell_code, q_code = group_codes([units, cells, quarantine], ATTEMPT)
    # every file of an attempt, those too whose rows are all superseded: the sums are over it all
    keep = np.flatnonzero(np.isin(unit_code, cell_code[valid]))
    keep = keep[np.lexsort((ints(units, "first_row")[keep], unit_code[keep]))]
    shown, attempt = units.take(pa.array(keep)), unit_code[keep]
    sampled = np.flatnonzero(np.asarray(quarantine["sample"].is_valid()))
    sampled = sampled[np.isin(q_code[sampled], attempt)]
    problems = [
        *_covered_twice(cells, valid),
        *_named_twice(shown),
        *_equations(shown, attempt, cells, cell_code, q_code[sampled]),
        *_cells_in_line(cells, cell_code, attempt),
        *_orders(shown),
    ]
    return Books(
        units=shown,
        attempt=attempt,
        quarantined=_grouped(q_code[sampled], ints(quarantine, "row")[sampled]),
        cells=int(valid.sum()),
        problems=tuple(problems),
    )


def attempt_name(row: dict[str, Any]) -> str:
    return f"pipeline {row['pipeline']} stream {row['stream']} unit {row['unit'].hex()}"


def _covered_twice(cells: pa.Table, valid: Mask) -> Iterator[Problem]:
    for index in covered_twice(cells, valid).tolist():
        row = cells.slice(index, 1).to_pylist()[0]
        yield Problem(
            kind="covered-twice",
            where=f"{row['uri']} bytes {row['span_start']} to {row['span_end']}",
            what=f"another valid cell of stream {row['stream']} overlaps it (G1)",
        )


def _named_twice(units: pa.Table) -> Iterator[Problem]:
    paths = units["path"].drop_null()
    if len(pc.unique(paths)) == len(paths):
        return
    for entry in paths.value_counts().to_pylist():
        if entry["counts"] > 1:
            what = f"{entry['counts']} visible rows of the ledger name this file"
            yield Problem(kind="named-twice", where=entry["values"], what=what)


def _equations(
    units: pa.Table, attempt: Codes, cells: pa.Table, cell_code: Codes, quarantine: Codes
) -> Iterator[Problem]:
    """G1 of every visible unit-stream, by the sums over its files, cells and quarantine rows."""
    if not len(attempt):
        return
    top = int(max(c.max(initial=0) for c in (attempt, cell_code, quarantine))) + 1
    first = np.flatnonzero(np.diff(attempt, prepend=-1))
    at = attempt[first]
    whole = {name: ints(units, name)[first] for name in _WHOLE}
    files_rows = _sums(top, attempt, ints(units, "rows"))[at]
    files_samples = _sums(top, attempt, ints(units, "samples"))[at]
    cells_rows = _sums(top, cell_code, ints(cells, "rows"))[at]
    listed = _sums(top, quarantine, np.ones(len(quarantine), np.int64))[at]
    verdicts = whole["with_tokens"] + whole["quarantined"] + whole["absent"]
    claims = (
        ("tokens + quarantined + absent", verdicts, "enumerated", whole["enumerated"]),
        ("rows of its files", files_rows, "enumerated", whole["enumerated"]),
        ("rows of its cells", cells_rows, "enumerated", whole["enumerated"]),
        ("samples of its files", files_samples, "with tokens", whole["with_tokens"]),
        ("quarantine rows", listed, "quarantined", whole["quarantined"]),
    )
    for left_name, left, right_name, right in claims:
        for index in np.flatnonzero(left != right).tolist():
            row = units.slice(int(first[index]), 1).to_pylist()[0]
            yield Problem(
                kind="g1",
                where=attempt_name(row),
                what=f"{left_name} = {left[index]}, but {right_name} = {right[index]}",
            )


def _cells_in_line(cells: pa.Table, code: Codes, attempt: Codes) -> Iterator[Problem]:
    """The cells of a visible unit-stream follow one another without gap or overlap of rows."""
    keep = np.flatnonzero(np.isin(code, attempt))
    keep = keep[np.lexsort((ints(cells, "ordinal")[keep], code[keep]))]
    first, rows = ints(cells, "first_row")[keep], ints(cells, "rows")[keep]
    starts = np.diff(code[keep], prepend=-1) != 0
    expected = np.where(starts, 0, np.concatenate([[0], (first + rows)[:-1]]))
    for index in keep[first != expected].tolist():
        row = cells.slice(index, 1).to_pylist()[0]
        yield Problem(
            kind="cells",
            where=attempt_name(row),
            what=f"the rows of cell {row['ordinal']} do not follow those of the one before it",
        )


def _orders(units: pa.Table) -> Iterator[Problem]:
    """All streams of one unit enumerated the same samples in the same order."""
    if not units.num_rows:
        return
    unit, order = (
        group_codes([units], names)[0]
        for names in (("pipeline", "unit"), ("pipeline", "unit", "order_hash"))
    )
    pairs = np.unique(np.stack([unit, order], axis=1), axis=0)
    for code in np.flatnonzero(np.bincount(pairs[:, 0]) > 1).tolist():
        rows = units.filter(pa.array(unit == code)).select(["pipeline", "stream", "unit"])
        row = rows.to_pylist()[0]
        yield Problem(
            kind="order",
            where=f"pipeline {row['pipeline']} unit {row['unit'].hex()}",
            what="its streams hold different samples, or in another order: "
            + ", ".join(sorted(set(rows["stream"].to_pylist()))),
        )


def _sums(top: int, code: Codes, values: NDArray[np.int64]) -> NDArray[np.int64]:
    sums = np.zeros(top, np.int64)
    np.add.at(sums, code, values)
    return sums


def _grouped(code: Codes, rows: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    order = np.lexsort((rows, code))
    cuts = np.flatnonzero(np.diff(code[order])) + 1
    parts: Sequence[NDArray[np.int64]] = np.split(rows[order], cuts)
    heads = code[order][np.concatenate([[0], cuts])] if len(order) else []
    return {int(head): part for head, part in zip(heads, parts, strict=False)}
