"""From committed facts to the ledger's Arrow rows. Pure: no I/O, no clock."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any

import pyarrow as pa

from tokenmill.schemas.identity import canonical_json, json_hash
from tokenmill.schemas.ledger import LEDGER_SCHEMA
from tokenmill.schemas.tokenizer import Descriptor, TokenizerIdentity
from tokenmill.schemas.work import Cell, Part, Quarantine, TaskResult, WorkUnit

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamFacts:
    """What a commit records of a stream's tokenizer, beside the tokens."""

    stream: str
    modality: str
    identity: TokenizerIdentity
    descriptor: Descriptor
    checkpoint: str | None
    checkpoint_sha256: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A finished task and its unit. `replaces`: --retokenize, retry or a new cut in place.
    `parent`: the stream whose committed tokens it was made from, if any."""

    unit: WorkUnit
    result: TaskResult
    replaces: bool = False
    parent: str | None = None

    @property
    def name(self) -> tuple[bytes, str]:
        return self.result.unit, self.result.stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What all rows of one commit share."""

    pipeline: str
    seq: int
    commit_id: str
    run: str
    at: datetime  # UTC


def commit_rows(
    stamp: Stamp,
    entries: Sequence[Entry],
    *,
    facts: Mapping[str, StreamFacts],
    describe: Iterable[StreamFacts] = (),
    run_row: Mapping[str, Any] | None = None,
) -> pa.Table:
    """All rows of one commit, in LEDGER_SCHEMA.

    facts: by stream, for every entry. describe: those that need a tokenizer row.
    run_row: columns of the run's row, `state` among them.
    """
    rows: list[Row] = []
    for entry in entries:
        rows += _unit_rows(entry, facts[entry.result.stream])
        rows += _input_rows(entry)
        rows += _quarantine_rows(entry)
    rows += [tokenizer_row(each) for each in describe]
    if run_row is not None:
        rows.append({"kind": "run", **run_row})
    return _table(stamp, rows)


def forgotten_rows(stamp: Stamp, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of kind forgotten: unit, order_hash, row, sample, source_id, uri, reason."""
    return _table(stamp, [{"kind": "forgotten", **row} for row in rows])


def check_entry(entry: Entry) -> None:
    """G1 and the result's own arithmetic. Raises ValueError: a worker that miscounts is a fault
    of ours, and nothing of its result is committed."""
    unit, result = entry.unit, entry.result
    name = f"unit {unit.id.hex()} stream {result.stream}"
    total = result.with_tokens + len(result.quarantined) + result.absent
    row = 0
    for cell in result.cells:
        _equal(f"{name}: G1: first row of a cell", cell.first_row, row)
        row += cell.rows
    shard_row = 0
    for shard in result.shards:
        _equal(f"{name}: G1: first row of {shard.path}", shard.first_row, shard_row)
        shard_row += shard.rows
    _equal(f"{name}: unit id", result.unit, unit.id)
    _equal(f"{name}: G1: cells", tuple(c.span for c in result.cells), unit.spans)
    _equal(f"{name}: G1: tokens + quarantined + absent", total, result.enumerated)
    _equal(f"{name}: G1: rows of the cells", row, result.enumerated)
    _equal(f"{name}: G1: rows of the shards", shard_row, result.enumerated)
    samples = sum(s.samples for s in result.shards)
    _equal(f"{name}: G1: samples of the shards", samples, result.with_tokens)
    _equal(f"{name}: tokens of the shards", sum(s.tokens for s in result.shards), result.tokens)


def _equal(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what}: {found!r}, expected {expected!r}")


def _unit_rows(entry: Entry, facts: StreamFacts) -> list[Row]:
    result = entry.result
    whole: Row = {
        "kind": "unit",
        "stream": result.stream,
        "unit": result.unit,
        "order_hash": result.order_hash,
        "enumerated": result.enumerated,
        "with_tokens": result.with_tokens,
        "quarantined": len(result.quarantined),
        "absent": result.absent,
        "tokenizer": facts.identity.name,
        "space": result.space,
        "recipe": result.recipe,
        "modality": facts.modality,
        "stats": json.dumps({**dataclasses.asdict(result.stats), "notes": list(result.notes)}),
    }
    if not result.shards:
        nothing = dict.fromkeys(("first_row", "rows", "samples", "tokens", "bytes"), 0)
        return [{**whole, **nothing, "path": None}]
    return [
        {
            **whole,
            "path": shard.path,
            "first_row": shard.first_row,
            "rows": shard.rows,
            "samples": shard.samples,
            "tokens": shard.tokens,
            "bytes": shard.size,
            "content_hash": shard.content_hash,
            "encoding": shard.encoding,
        }
        for shard in result.shards
    ]


def _input_rows(entry: Entry) -> list[Row]:
    result = entry.result
    return [_input_row(result, ordinal, cell) for ordinal, cell in enumerate(result.cells)]


def _input_row(result: TaskResult, ordinal: int, cell: Cell) -> Row:
    input_ = cell.span.input
    return {
        "kind": "input",
        "stream": result.stream,
        "unit": result.unit,
        "recipe": result.recipe,
        "ordinal": ordinal,
        "input": input_.id,
        "source_id": input_.source,
        "uri": input_.uri,
        "version": input_.version,
        "size": input_.size,
        "span_start": cell.span.start,
        "span_end": cell.span.end,
        "root": input_.root,
        "identity": input_.identity,
        "parts": parts_json(input_.parts),
        "first_row": cell.first_row,
        "rows": cell.rows,
    }


def _quarantine_rows(entry: Entry) -> list[Row]:
    result = entry.result
    by_uri = {cell.span.input.uri: cell for cell in result.cells}

    def row(fault: Quarantine) -> Row:
        cell = _cell_of(result.cells, fault.row) or by_uri.get(fault.source)
        return {
            "kind": "quarantine",
            "stream": result.stream,
            "unit": result.unit,
            "recipe": result.recipe,
            "input": cell.span.input.id if cell else None,
            "uri": cell.span.input.uri if cell else fault.source,
            "sample": fault.sample,
            "key": fault.key,
            "row": fault.row,
            "reason": fault.reason,
            "message": fault.message,
            "stage": fault.stage,
            "error": fault.error,
        }

    return [row(fault) for fault in (*result.quarantined, *result.input_faults)]


def _cell_of(cells: Sequence[Cell], row: int | None) -> Cell | None:
    if row is None:
        return None
    low, high = 0, len(cells)
    while low < high:  # cells lie in row order
        middle = (low + high) // 2
        if cells[middle].first_row + cells[middle].rows <= row:
            low = middle + 1
        else:
            high = middle
    return cells[low] if low < len(cells) else None


def tokenizer_row(facts: StreamFacts) -> Row:
    identity = facts.identity
    return {
        "kind": "tokenizer",
        "stream": facts.stream,
        "tokenizer": identity.name,
        "space": identity.space,
        "recipe": identity.recipe,
        "modality": facts.modality,
        "descriptor": _json(dataclasses.asdict(facts.descriptor)),
        "parts": _json(identity.parts),
        "provenance": _json(identity.provenance),
        "checkpoint": facts.checkpoint,
        "checkpoint_sha256": facts.checkpoint_sha256,
        "config": _json(facts.config),
    }


TOKENIZER_KEY = ("stream", "recipe", "provenance", "checkpoint")


def tokenizer_key(row: Mapping[str, Any]) -> str:
    """Two tokenizer rows of one key say the same."""
    return json_hash([row[name] for name in TOKENIZER_KEY])


def parts_json(parts: Sequence[Part]) -> str | None:
    return json.dumps([dataclasses.asdict(p) for p in parts]) if parts else None


def parts_from_json(text: str | None) -> tuple[Part, ...]:
    return tuple(Part(**part) for part in json.loads(text)) if text else ()


def _json(value: Any) -> str:
    return canonical_json(_plain(value)).decode()


def _plain(value: Any) -> Any:
    """Fractions and tuples of a descriptor as JSON values."""
    if isinstance(value, Fraction):
        return [value.numerator, value.denominator]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _table(stamp: Stamp, rows: Sequence[Row]) -> pa.Table:
    n = len(rows)
    shared = {
        "pipeline": stamp.pipeline,
        "seq": stamp.seq,
        "commit_id": stamp.commit_id,
        "run": stamp.run,
        "committed_at": stamp.at,
    }
    used = {name for row in rows for name in row}
    unknown = used - set(LEDGER_SCHEMA.names)
    if unknown:
        raise ValueError(f"no column of the ledger: {sorted(unknown)}")
    arrays = []
    for field in LEDGER_SCHEMA:
        if field.name in shared:
            arrays.append(pa.repeat(pa.scalar(shared[field.name], field.type), n))
        elif field.name in used:
            arrays.append(pa.array([row.get(field.name) for row in rows], field.type))
        else:
            arrays.append(pa.nulls(n, field.type))
    return pa.table(arrays, schema=LEDGER_SCHEMA)
