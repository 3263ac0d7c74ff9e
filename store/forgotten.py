"""Which rows of which shard files nobody may see any more, and what the ledger says of a file that
was rewritten without them. Pure: no I/O.

A forgotten row is (pipeline, unit, order hash, row): all streams of a unit enumerate the same
samples in the same order, so one row masks the sample in every stream. It masks attempts that were
committed before it; later ones know the sample as condemned, and mask their own quarantine row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenmill.schemas.ledger import FORGOTTEN, LEDGER_SCHEMA
from tokenmill.schemas.work import ShardFile
from tokenmill.store.alignment import Interval, subtract
from tokenmill.store.validity import ATTEMPT, group_codes, ints

FORGOTTEN_COLUMNS = ("pipeline", "unit", "order_hash", "row", "seq")
# of the quarantine rows whose reason is FORGOTTEN
REFUSED_COLUMNS = (*ATTEMPT, "row")
_ORDER = ("pipeline", "unit", "order_hash")

Rows = NDArray[np.int64]


def is_refused() -> pc.Expression:
    """The quarantine rows of samples that were met again after they had been forgotten."""
    return pc.field("reason") == FORGOTTEN


def masked_rows(units: pa.Table, forgotten: pa.Table, refused: pa.Table) -> dict[int, Rows]:
    """Index of a unit row -> rows of its (unit, stream), within the file, that are forgotten.

    units: ATTEMPT, order_hash, first_row, rows. forgotten: FORGOTTEN_COLUMNS. refused:
    REFUSED_COLUMNS, only those whose reason is FORGOTTEN.
    """
    found: dict[int, list[Rows]] = {}
    unit_order, gone_order = group_codes([units, forgotten], _ORDER)
    seq, gone_seq = ints(units, "seq"), ints(forgotten, "seq")
    gone_row = ints(forgotten, "row")
    for index, at in _files_of(units, unit_order, gone_order, gone_row):
        rows = gone_row[at][gone_seq[at] >= seq[index]]
        found.setdefault(index, []).append(rows)
    unit_attempt, q_attempt = group_codes([units, refused], ATTEMPT)
    q_row = ints(refused, "row")
    for index, at in _files_of(units, unit_attempt, q_attempt, q_row):
        found.setdefault(index, []).append(q_row[at])
    masked = {index: np.unique(np.concatenate(parts)) for index, parts in found.items()}
    return {index: rows for index, rows in masked.items() if len(rows)}


def _files_of(
    units: pa.Table, unit_code: Rows, code: Rows, row: Rows
) -> list[tuple[int, NDArray[np.int64]]]:
    """(index of a unit row, positions in `row` that lie in its file) for every file with any."""
    order = np.lexsort((row, code))
    first, size = ints(units, "first_row"), ints(units, "rows")
    files = []
    for index in np.flatnonzero(np.isin(unit_code, code)).tolist():
        low, high = np.searchsorted(code[order], [unit_code[index], unit_code[index] + 1])
        rows = row[order[low:high]]
        begin, end = np.searchsorted(rows, [first[index], first[index] + size[index]])
        if begin < end:
            files.append((index, order[low + begin : low + end]))
    return files


def with_masked(ranges: Sequence[Interval], rows: Rows) -> tuple[Interval, ...]:
    """Excluded ranges and the masked rows (sorted) as one sorted list of disjoint ranges."""
    starts = rows[np.diff(rows, prepend=-2) != 1]
    ends = rows[np.diff(rows, append=rows[-1] + 2) != 1] + 1 if len(rows) else rows
    points = [*ranges, *zip(starts.tolist(), ends.tolist(), strict=True)]
    return tuple(subtract(points, ()))


def amended(units: pa.Table, replaced: Mapping[str, Sequence[ShardFile]]) -> pa.Table | None:
    """Unit rows (all columns) with rewritten files in place of the old ones; None where none of
    the old ones is there any more. A sample that lost its tokens counts as absent (G1)."""
    rows = units.to_pylist()
    lost: dict[tuple[bytes, str, int], int] = {}
    for row in rows:
        if row["path"] in replaced:
            kept = sum(file.samples for file in replaced[row["path"]])
            name = (row["unit"], row["stream"], row["seq"])
            lost[name] = lost.get(name, 0) + row["samples"] - kept
    if not lost:
        return None
    new = []
    for row in rows:
        without = lost.get((row["unit"], row["stream"], row["seq"]), 0)
        row["with_tokens"] -= without
        row["absent"] += without
        files = replaced.get(row["path"])
        new += [row] if files is None else [{**row, **_facts(file)} for file in files]
    return pa.Table.from_pylist(new, schema=LEDGER_SCHEMA)


def _facts(file: ShardFile) -> dict[str, object]:
    return {
        "path": file.path,
        "first_row": file.first_row,
        "rows": file.rows,
        "samples": file.samples,
        "tokens": file.tokens,
        "bytes": file.size,
        "content_hash": file.content_hash,
        "encoding": file.encoding,
    }
