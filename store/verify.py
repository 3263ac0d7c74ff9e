"""Verify: do the bytes say what the ledger says? Reads everything that is visible, or a share.

The ledger's own arithmetic (G1, coverage, order hashes) is always checked whole, see
store/audit.py; every shard's existence and size by one listing; the content of a shard by
recomputing hash, counts, verdicts and order from its bytes, and against its tokenizer's descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.errors import CorruptStore, StoreError
from tokenmill.schemas.shard import ContentHasher, ShardMeta, TokenRows, Verdict, order_hash
from tokenmill.store.access import Access
from tokenmill.store.audit import AUDIT_COLUMNS, Books, Problem, attempt_name, audit
from tokenmill.store.columns import from_batch
from tokenmill.store.ledger import Ledger
from tokenmill.store.paths import relative
from tokenmill.store.shards import ShardReader

__all__ = ["Problem", "VerifyReport", "verify"]

SHARDS = "shards"
_WIDTH = {"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What was looked at, and what is not as it must be.

    shards, cells, unit_streams: visible ones. read: shards whose bytes were read; samples and
    tokens: in those.
    """

    shards: int
    unit_streams: int
    cells: int
    read: int
    samples: int
    tokens: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    access: Access,
    ledger: Ledger,
    *,
    share: float = 1.0,
    pipeline: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check a store. Problems are returned, not raised.

    share: of the unit-streams, how many have their bytes read: 1.0 all, 0.0 none; the same ones
    every time. progress: called with (shards read, shards to read).
    Raises StoreUnavailable, and CorruptStore where the ledger itself cannot be read.
    """
    files = {f.path: f.size for f in access.list(SHARDS)}
    tables = ledger.tables(AUDIT_COLUMNS, pipeline=pipeline)
    books = audit(tables)
    problems = list(books.problems)
    missing = _absentees(access, files, books.units)
    problems += missing.values()
    outputs = _outputs(tables["tokenizer"])
    chosen = [(a, b) for a, b in _attempts(books) if _chosen(books.units["unit"][a], share)]
    total, read, samples, tokens = sum(b - a for a, b in chosen), 0, 0, 0
    for begin, end in chosen:
        rows = books.units.slice(begin, end - begin).to_pylist()
        key = (rows[0]["pipeline"], rows[0]["stream"], rows[0]["recipe"])
        rows = [row for row in rows if row["path"] is not None]
        read += end - begin
        if any(row["path"] in missing for row in rows):
            continue
        quarantined = books.quarantined.get(int(books.attempt[begin]), np.zeros(0, np.int64))
        check = _Attempt(access, rows, quarantined, outputs.get(key))
        problems += check.run()
        samples, tokens = samples + check.samples, tokens + check.tokens
        if progress is not None:
            progress(read, total)
    return VerifyReport(
        shards=books.units.num_rows - books.units["path"].null_count,
        unit_streams=len(np.unique(books.attempt)),
        cells=books.cells,
        read=read,
        samples=samples,
        tokens=tokens,
        problems=tuple(problems),
    )


def _absentees(access: Access, files: dict[str, int], units: pa.Table) -> dict[str, Problem]:
    """Visible shards that are not there, or not of their size, or outside the store."""
    found = {}
    for path, size in zip(units["path"].to_pylist(), units["bytes"].to_pylist(), strict=True):
        if path is None:
            continue
        if not _inside(path):
            found[path] = Problem(kind="missing", where=path, what="it lies outside the store")
        elif path not in files and not _there(access, path):
            found[path] = Problem(kind="missing", where=access.full(path), what="no such file")
        elif path in files and files[path] != size:
            what = f"{files[path]} bytes, the ledger says {size}"
            found[path] = Problem(kind="size", where=access.full(path), what=what)
    return found


def _inside(path: str) -> bool:
    try:
        return relative(path) == path and path.startswith(f"{SHARDS}/")
    except StoreError:
        return False


def _there(access: Access, path: str) -> bool:
    """Committed after we listed?"""
    try:
        access.stat(path)
    except FileNotFoundError:
        return False
    return True


def _attempts(books: Books) -> list[tuple[int, int]]:
    """Ranges of rows, one per attempt."""
    cuts = (np.flatnonzero(np.diff(books.attempt, append=-1)) + 1).tolist()
    return list(zip([0, *cuts], cuts, strict=False))


def _chosen(unit: pa.Scalar, share: float) -> bool:
    return int.from_bytes(unit.as_py()[:8], "big") < share * 2**64


def _outputs(tokenizers: pa.Table) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """(pipeline, stream, recipe) -> the outputs of its descriptor."""
    found = {}
    for row in tokenizers.to_pylist():
        try:
            outputs = json.loads(row["descriptor"])["outputs"]
        except (TypeError, ValueError, KeyError):
            outputs = []
        found[row["pipeline"], row["stream"], row["recipe"]] = outputs
    return found


class _Attempt:
    """The files of one unit-stream, read in the order of their rows."""

    def __init__(
        self,
        access: Access,
        rows: list[dict[str, Any]],
        quarantined: NDArray[np.int64],
        outputs: list[dict[str, Any]] | None,
    ) -> None:
        self._access = access
        self._rows = rows
        self._quarantined = quarantined
        self._outputs = outputs
        self._ids: list[bytes] = []
        self._verdicts: list[NDArray[np.uint8]] = []
        self.samples = 0
        self.tokens = 0

    def run(self) -> Iterator[Problem]:
        for row in self._rows:
            try:
                yield from self._file(row)
            except CorruptStore as error:
                what = f"{error.what}: {error.why}" if error.why else error.what
                yield Problem(kind="content", where=self._access.full(row["path"]), what=what)
                return
        if self._rows:
            yield from self._whole(self._rows[0])

    def _file(self, row: dict[str, Any]) -> Iterator[Problem]:
        where = self._access.full(row["path"])
        counts = {"rows": 0, "samples": 0, "tokens": 0}
        highest = _Highest()
        with ShardReader(self._access, row["path"]) as reader:
            meta = reader.meta
            hasher = ContentHasher(meta.dtype)
            for batch in reader.batches():
                found = from_batch(batch)
                hasher.update(found)
                highest.update(found, meta)
                self._ids.append(found.ids)
                self._verdicts.append(found.verdicts)
                counts["rows"] += found.n
                counts["samples"] += int((found.verdicts == Verdict.TOKENS).sum())
                counts["tokens"] += len(found.values)
        self.samples += counts["samples"]
        self.tokens += counts["tokens"]
        for name, number in counts.items():
            if number != row[name]:
                what = f"{number} {name} in the file, the ledger says {row[name]}"
                yield Problem(kind="counts", where=where, what=what)
        if hasher.digest() != row["content_hash"]:
            what = "the content hash recomputed from its bytes is not the one that was committed"
            yield Problem(kind="content", where=where, what=what)
        for what in (*_foreign(meta, row), *self._undescribed(meta), *highest.faults(meta)):
            yield Problem(kind="descriptor", where=where, what=what)

    def _whole(self, row: dict[str, Any]) -> Iterator[Problem]:
        where = attempt_name(row)
        if order_hash(self._ids) != row["order_hash"]:
            yield Problem(kind="order", where=where, what="its samples are not in committed order")
        verdicts = np.concatenate(self._verdicts)
        refused = np.flatnonzero(verdicts == Verdict.QUARANTINED)
        if not np.array_equal(refused, self._quarantined):
            what = (
                f"{len(refused)} rows of its files are quarantined, "
                f"the ledger has {len(self._quarantined)} quarantine rows, or for other rows"
            )
            yield Problem(kind="g1", where=where, what=what)
        absent = int((verdicts == Verdict.ABSENT).sum())
        if absent != row["absent"]:
            what = f"{absent} rows of its files are absent, the ledger says {row['absent']}"
            yield Problem(kind="g1", where=where, what=what)

    def _undescribed(self, meta: ShardMeta) -> Iterator[str]:
        if self._outputs is None:
            yield f"the ledger describes no tokenizer of recipe {meta.recipe[:12]}…"
            return
        output = next((o for o in self._outputs if o.get("name") == meta.output), None)
        if output is None:
            yield f"its tokenizer has no output {meta.output!r}"
            return
        declared = str(output.get("dtype"))
        floats = meta.dtype.startswith("float") or declared.startswith("float")
        wider = _WIDTH.get(meta.dtype, 0) > _WIDTH.get(declared, 8)
        if wider or (floats and meta.dtype != declared):
            yield f"ids are {meta.dtype}, its tokenizer says {output.get('dtype')}"
        sizes = tuple(output.get("codebook_sizes") or ())
        if meta.codebook_sizes != sizes:
            yield f"codebooks of {meta.codebook_sizes}, its tokenizer says {sizes}"


def _foreign(meta: ShardMeta, row: dict[str, Any]) -> Iterator[str]:
    """What the file says of itself against what the ledger says of it."""
    said = {**row, "unit": row["unit"].hex()}
    names = ("pipeline", "stream", "unit", "tokenizer", "space", "recipe", "first_row")
    for name in names:
        if getattr(meta, name) != said[name]:
            yield f"its {name} is {getattr(meta, name)!r}, the ledger says {said[name]!r}"


class _Highest:
    """The highest id per codebook. Where the first axis is the codebook, each has its own size;
    else the ids of all are compared with the largest. Continuous latents must be finite."""

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}
        self._not_finite = 0

    def update(self, rows: TokenRows, meta: ShardMeta) -> None:
        if rows.values.dtype.kind == "f":
            self._not_finite += int(np.count_nonzero(~np.isfinite(rows.values)))
            return
        if not meta.codebook_sizes or not len(rows.values):
            return
        if len(meta.codebook_sizes) > 1 and meta.axes[:1] == ("codebook",):
            self._per_codebook(rows, len(meta.codebook_sizes))
        else:
            self._see(0, int(rows.values.max()))

    def _per_codebook(self, rows: TokenRows, books: int) -> None:
        """ids of a sample are C-ordered with shape [K, ...]: book k is the k-th of K parts."""
        begins = np.cumsum(rows.lengths) - rows.lengths
        for row in np.flatnonzero(rows.lengths > 0).tolist():
            begin, length = int(begins[row]), int(rows.lengths[row])
            count = int(rows.shapes[row][0]) if rows.shapes is not None else books
            if count < 1 or count > books or length % count:
                self._see(-1, length)
                continue
            highest = rows.values[begin : begin + length].reshape(count, -1).max(axis=1)
            for book, value in enumerate(highest.tolist()):
                self._see(book, value)

    def _see(self, book: int, value: int) -> None:
        self._highest[book] = max(self._highest.get(book, 0), value)

    def faults(self, meta: ShardMeta) -> Iterator[str]:
        if self._not_finite:
            yield f"{self._not_finite} values are not finite"
        sizes = meta.codebook_sizes
        apart = len(sizes) > 1 and meta.axes[:1] == ("codebook",)
        for book, value in self._highest.items():
            if book < 0:
                yield f"a sample of {value} ids does not divide into {len(sizes)} codebooks"
            elif value >= (sizes[book] if apart else max(sizes)):
                size = sizes[book] if apart else max(sizes)
                yield f"id {value} in codebook {book} of size {size}"
