"""Take-down: samples that no later snapshot shows, and shard files without their bytes.

`forget` finds the samples that a predicate names, in every shard file that was ever committed, and
records them; from that commit on no snapshot shows them, and a run that meets them again (a new
version of the file, another stream, `--retokenize`) quarantines them unread. `rewrite` puts a new
file in the place of every shard file that still holds their ids or keys: the rows stay, so that
streams stay aligned, with no tokens and no key. The old file goes with the next vacuum, unless a
snapshot still names it: the receipt says which.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.identity import source_id
from tokenmill.schemas.ledger import LEDGER_SCHEMA
from tokenmill.schemas.shard import TokenRows, Verdict
from tokenmill.schemas.work import ShardFile
from tokenmill.store.access import Access
from tokenmill.store.columns import from_batch
from tokenmill.store.forgotten import (
    FORGOTTEN_COLUMNS,
    REFUSED_COLUMNS,
    Rows,
    amended,
    is_refused,
    masked_rows,
)
from tokenmill.store.ledger import Ledger
from tokenmill.store.query import SamplePredicate
from tokenmill.store.shards import ShardReader, ShardWriter
from tokenmill.store.snapshot import FOLDER, parse_snapshot, tags
from tokenmill.store.validity import ATTEMPT

# Shard files rewritten before their rows are committed: what a killed call has to do again.
REWRITTEN_AT_ONCE = 16
_UNITS = (*ATTEMPT, "commit_id", "order_hash", "path", "first_row", "rows", "encoding")

Progress = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewritten:
    """One shard file and what stands in its place."""

    old: str
    new: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    samples: int  # whose ids or key it no longer holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What was, or with `dry_run` would be, forgotten.

    samples: that the predicate names; fresh: of these, not forgotten before. shards: files that
    hold any forgotten row, of this call or an earlier one, superseded files too; tokens: in the
    forgotten rows of these. rewritten: files that were replaced. pinned: file -> snapshots (tags
    first, then hashes) that still name its old bytes; until these are gone vacuum spares the file.
    """

    run: str
    dry_run: bool
    where: str | None
    reason: str
    samples: int
    fresh: int
    rows: int
    shards: tuple[str, ...]
    tokens: int
    rewritten: tuple[Rewritten, ...] = ()
    pinned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Match:
    """One row of a unit that the predicate names."""

    pipeline: str
    unit: bytes
    order_hash: bytes
    row: int
    sample: bytes
    uri: str


def forget(
    access: Access,
    ledger: Ledger,
    where: str | None,
    *,
    reason: str = "",
    rewrite: bool = False,
    dry_run: bool = True,
    progress: Progress | None = None,
) -> Receipt:
    """Forget the samples that `where` names (SQL over pipeline, key, source, id, span).

    where None: nothing new is forgotten; with `rewrite` that finishes what was begun. `rewrite`
    takes every forgotten sample, not only those of this call. Safe to call again after a kill.
    Raises JobError for a predicate that is none, CorruptStore, StoreError, StoreUnavailable.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    run = f"forget-{stamp}-{uuid.uuid4().hex[:6]}"
    scan = _Scan(access, progress)
    matches: list[_Match] = []
    fresh: set[bytes] = set()
    if where is not None:
        with SamplePredicate(where) as predicate:
            for pipeline in _pipelines(ledger):
                found, new = _record(ledger, pipeline, scan, predicate, run, reason, dry_run)
                matches += found
                fresh |= new
    holding = _holding(access, ledger, matches)
    done: tuple[Rewritten, ...] = ()
    if rewrite and not dry_run:
        done = tuple(_rewrite(access, ledger, run, progress))
    paths = tuple(sorted(holding))
    return Receipt(
        run=run,
        dry_run=dry_run,
        where=where,
        reason=reason,
        samples=len({m.sample for m in matches}),
        fresh=len(fresh),
        rows=len(matches),
        shards=paths,
        tokens=sum(holding.values()),
        rewritten=done,
        pinned=_pinned(access, {*paths, *(each.old for each in done)}),
    )


def _pipelines(ledger: Ledger) -> list[str]:
    return sorted(set(ledger.rows("unit", columns=["pipeline"])["pipeline"].to_pylist()))


def _record(
    ledger: Ledger,
    pipeline: str,
    scan: _Scan,
    predicate: SamplePredicate,
    run: str,
    reason: str,
    dry_run: bool,
) -> tuple[list[_Match], set[bytes]]:
    """The matches in one pipeline, committed; and the samples that were not forgotten before.

    What is committed while we look is looked at too: the ledger takes the rows only at the commit
    that was scanned.
    """
    while True:
        seq = ledger.seq(pipeline)
        wanted = {"unit": _UNITS, "forgotten": FORGOTTEN_COLUMNS}
        read = ledger.tables(wanted, pipeline=pipeline)
        found = scan.matches(read["unit"], predicate)
        known = {
            (row["unit"], row["order_hash"], row["row"]): row["seq"]
            for row in read["forgotten"].sort_by("seq").to_pylist()
        }
        new = [m for m in found if (m.unit, m.order_hash, m.row) not in known]
        samples = {m.sample for m in new}
        if dry_run or not new:
            return found, samples
        rows = [
            {
                "unit": m.unit,
                "order_hash": m.order_hash,
                "row": m.row,
                "sample": m.sample,
                "source_id": source_id(m.uri),
                "uri": m.uri,
                "reason": reason,
            }
            for m in new
        ]
        if ledger.forget(pipeline, rows, run=run, seq=seq):
            return found, samples


class _Scan:
    """Matches by attempt. A file is read once, however often the ledger moves meanwhile."""

    def __init__(self, access: Access, progress: Progress | None) -> None:
        self._access = access
        self._progress = progress
        self._known: dict[str, list[_Match]] = {}

    def matches(self, units: pa.Table, predicate: SamplePredicate) -> list[_Match]:
        rows = [row for row in units.to_pylist() if row["path"] is not None]
        found: dict[tuple[bytes, bytes, int], _Match] = {}
        for number, row in enumerate(rows):
            if row["path"] not in self._known:
                self._known[row["path"]] = list(self._file(row, predicate))
            for match in self._known[row["path"]]:
                found[match.unit, match.order_hash, match.row] = match
            if self._progress is not None:
                self._progress(number + 1, len(rows))
        return list(found.values())

    def _file(self, row: Mapping[str, Any], predicate: SamplePredicate) -> Iterator[_Match]:
        with ShardReader(self._access, row["path"]) as reader:
            first = row["first_row"]
            for batch in reader.batches():
                for at in predicate.rows(row["pipeline"], batch):
                    yield _Match(
                        pipeline=row["pipeline"],
                        unit=row["unit"],
                        order_hash=row["order_hash"],
                        row=first + at,
                        sample=batch.column("id")[at].as_py(),
                        uri=batch.column("source")[at].as_py(),
                    )
                first += batch.num_rows


def _masked(
    ledger: Ledger, matches: Sequence[_Match] = ()
) -> tuple[list[dict[str, Any]], dict[int, Rows]]:
    """Every unit row, and by its index the forgotten rows in its file; `matches` count as
    forgotten now (a dry run has not committed them)."""
    wanted = {"unit": _UNITS, "forgotten": FORGOTTEN_COLUMNS}
    read = ledger.tables(wanted)
    refused = ledger.rows("quarantine", columns=list(REFUSED_COLUMNS), filter=is_refused())
    units = read["unit"].filter(read["unit"]["path"].is_valid())
    newest = max((s for s in units["seq"].to_pylist()), default=0)
    asked = pa.Table.from_pylist(
        [
            {
                "pipeline": m.pipeline,
                "unit": m.unit,
                "order_hash": m.order_hash,
                "row": m.row,
                "seq": newest,
            }
            for m in matches
        ],
        schema=pa.schema([LEDGER_SCHEMA.field(name) for name in FORGOTTEN_COLUMNS]),
    )
    forgotten = pa.concat_tables([read["forgotten"], asked])
    return units.to_pylist(), masked_rows(units, forgotten, refused)


def _holding(access: Access, ledger: Ledger, matches: Sequence[_Match]) -> dict[str, int]:
    """Path -> tokens of forgotten rows that the file still holds; only files that hold any, or
    a key of theirs."""
    units, masked = _masked(ledger, matches)
    found = {}
    for index, rows in masked.items():
        held = _held(access, units[index], rows)
        if held is not None:
            found[units[index]["path"]] = held
    return found


def _held(access: Access, unit: Mapping[str, Any], rows: Rows) -> int | None:
    """Tokens in these rows of a file; None where it holds neither ids nor keys of them."""
    tokens, holds = 0, False
    with ShardReader(access, unit["path"]) as reader:
        for batch, gone in _batches(reader, rows - unit["first_row"]):
            if not gone.any():
                continue
            at = np.flatnonzero(gone)
            lengths = from_batch(batch).lengths[at]
            tokens += int(lengths.sum())
            holds |= bool(lengths.any()) or _has_tokens(batch, at) or _has_keys(batch, at)
    return tokens if holds else None


def _has_tokens(batch: pa.RecordBatch, at: NDArray[np.int64]) -> bool:
    return bool((np.asarray(batch.column("verdict"))[at] == Verdict.TOKENS).any())


def _has_keys(batch: pa.RecordBatch, at: NDArray[np.int64]) -> bool:
    return any(batch.column("key").take(pa.array(at)).to_pylist())


def _batches(reader: ShardReader, rows: Rows) -> Iterator[tuple[pa.RecordBatch, NDArray[np.bool_]]]:
    """Record batches with bool[n], true for the rows (of the file) that are forgotten."""
    first = 0
    for batch in reader.batches():
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        gone = np.zeros(batch.num_rows, bool)
        gone[rows[low:high] - first] = True
        yield batch, gone
        first += batch.num_rows


def _rewrite(
    access: Access, ledger: Ledger, run: str, progress: Progress | None
) -> Iterator[Rewritten]:
    """Replace every file that still holds ids or keys of a forgotten sample, a few at a time."""
    units, masked = _masked(ledger)
    todo = [i for i, rows in masked.items() if _held(access, units[i], rows) is not None]
    for start in range(0, len(todo), REWRITTEN_AT_ONCE):
        chosen = todo[start : start + REWRITTEN_AT_ONCE]
        by_pipeline: dict[str, list[int]] = {}
        for index in chosen:
            by_pipeline.setdefault(units[index]["pipeline"], []).append(index)
        for pipeline, indices in by_pipeline.items():
            replaced = {
                units[i]["path"]: _rewritten(access, units[i], masked[i], f"{run}-{i}")
                for i in indices
            }
            commits = sorted({units[i]["commit_id"] for i in indices})
            if not _amend(ledger, pipeline, commits, replaced):
                continue  # another call was first: our files are left to vacuum
            for i in indices:
                old = units[i]["path"]
                yield Rewritten(
                    old=old,
                    new=tuple(file.path for file in replaced[old]),
                    bytes_before=access.stat(old).size,
                    bytes_after=sum(file.size for file in replaced[old]),
                    samples=len(masked[i]),
                )
        if progress is not None:
            progress(start + len(chosen), len(todo))


def _amend(
    ledger: Ledger,
    pipeline: str,
    commits: Sequence[str],
    replaced: Mapping[str, Sequence[ShardFile]],
) -> bool:
    return ledger.amend(pipeline, commits, lambda found: amended(found, replaced))


def _rewritten(
    access: Access, unit: Mapping[str, Any], rows: Rows, attempt: str
) -> tuple[ShardFile, ...]:
    """The file's rows without the ids and keys of `rows` (of the unit-stream), in new files."""
    with ShardReader(access, unit["path"]) as reader:
        writer = ShardWriter(
            access,
            meta=replace(reader.meta, first_row=unit["first_row"]),
            folder=unit["path"].rpartition("/")[0],
            attempt=attempt,
            encoding=unit["encoding"],
        )
        try:
            for batch, gone in _batches(reader, rows - unit["first_row"]):
                writer.append(_without(batch, gone, len(reader.meta.axes)))
            return writer.close()
        except BaseException:
            writer.abort()
            raise


def _without(batch: pa.RecordBatch, gone: NDArray[np.bool_], axes: int) -> TokenRows:
    found = from_batch(batch)
    tokens = found.verdicts == Verdict.TOKENS
    optional = {
        n: batch.column(n) for n in ("span", "n_valid", "media_valid") if n in batch.schema.names
    }
    shapes = None
    if found.shapes is not None:
        shapes = np.zeros((found.n, axes), np.int32)
        if tokens.any():
            shapes[tokens] = found.shapes
    keys = batch.column("key").to_pylist()
    for at in np.flatnonzero(gone).tolist():
        keys[at] = ""
    n_valid, media_valid = optional.get("n_valid"), optional.get("media_valid")
    return TokenRows(
        ids=found.ids,
        keys=keys,
        sources=batch.column("source").to_pylist(),
        verdicts=np.where(gone & tokens, np.uint8(Verdict.ABSENT), found.verdicts),
        values=found.values[~np.repeat(gone, found.lengths)],
        lengths=np.where(gone, 0, found.lengths),
        shapes=shapes,
        spans=optional["span"].to_pylist() if "span" in optional else None,
        n_valid=None if n_valid is None else np.asarray(n_valid.fill_null(0), np.int32),
        media_valid=(
            None if media_valid is None else np.asarray(media_valid.fill_null(0), np.int64)
        ),
    )


def _pinned(access: Access, paths: set[str]) -> dict[str, tuple[str, ...]]:
    """File -> the snapshots that name it: their tags, or their hashes."""
    names: dict[str, list[str]] = {}
    for tag, hash in sorted(tags(access).items()):
        names.setdefault(hash, []).append(f"tag {tag}")
    found: dict[str, list[str]] = {}
    for listed in access.list(FOLDER):
        hash, _, kind = listed.path.removeprefix(f"{FOLDER}/").partition(".")
        if kind != "arrow":
            continue
        try:
            data = access.read(listed.path)
        except FileNotFoundError:
            continue  # it lapsed meanwhile
        table = parse_snapshot(data, hash, where=access.full(listed.path)).table
        for path in paths.intersection(table["path"].to_pylist()):
            found.setdefault(path, []).extend(names.get(hash, [hash]))
    return {path: tuple(found[path]) for path in sorted(found)}
