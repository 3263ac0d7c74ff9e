"""The ledger: commits as a compare-and-swap per pipeline, and what they left behind.

A commit of (unit, stream) results, step by step:
  1. load the newest version of the Delta table
  2. seq = the pipeline's application transaction version
  3. learn what others committed after our plan; results that clash with it are dropped
  4. append on *that same* loaded version with the transaction seq + 1
  5. lost the race, or the answer: load anew and begin again at 1; a result whose shards are found
     in the ledger under our run was committed by the attempt whose answer was lost
So two runs commit no cell twice (G5), and no run forgets what it wrote (G4).
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError

from tokenmill.schemas.errors import CorruptStore, StoreError, StoreUnavailable
from tokenmill.schemas.ledger import KINDS, LEDGER_SCHEMA
from tokenmill.store.access import Access
from tokenmill.store.conflict import Name, Rivals, Split
from tokenmill.store.delta import DeltaLedger
from tokenmill.store.delta_errors import first_line, refused
from tokenmill.store.ledger_rows import (
    TOKENIZER_KEY,
    Entry,
    Stamp,
    StreamFacts,
    check_entry,
    commit_rows,
    forgotten_rows,
    tokenizer_key,
    tokenizer_row,
)
from tokenmill.store.paths import relative
from tokenmill.store.validity import CELL_COLUMNS, valid_cells

__all__ = ["GRACE_SECONDS", "Entry", "Ledger", "Outcome", "StreamFacts"]

# vacuum spares younger files; a commit refuses shards older than half of it, so that no file that
# a late commit could name is ever deleted
GRACE_SECONDS = 7 * 86_400.0
# Every lost race means that another run committed: losing this often is a fault, not contention.
RACES = 200
LOST_ANSWERS = 4
COMPACTION_TRIES = 5
_COMMIT = re.compile(r"[0-9a-f]{32}")
COVERAGE_COLUMNS = (
    "stream",
    "recipe",
    "unit",
    "ordinal",
    "input",
    "source_id",
    "uri",
    "version",
    "size",
    "span_start",
    "span_end",
    "root",
    "identity",
    "parts",
    "first_row",
    "rows",
    "seq",
)
_RIVAL_COLUMNS = {
    "input": ("run", "seq", "stream", "input", "source_id", "span_start", "span_end", "recipe"),
    "unit": ("run", "seq", "unit", "stream", "path"),
    "forgotten": ("seq", "source_id"),
}
_PIPELINE_COLUMNS = {"tokenizer": TOKENIZER_KEY, "run": ("run", "state")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a commit's entries, by (unit, stream).

    seq: the pipeline's seq after it. reasons: why each of `dropped` must be planned anew.
    """

    committed: tuple[Name, ...]
    dropped: tuple[Name, ...]
    seq: int
    tokens: int
    reasons: Mapping[Name, str] = field(default_factory=dict)


class Ledger:
    """One handle per process; its methods may be called from several threads, one at a time."""

    def __init__(self, access: Access, table: DeltaLedger) -> None:
        self.access = access
        self._table = table
        self._rivals: dict[tuple[str, str], Rivals] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(cls, access: Access, *, create: bool = False) -> Ledger:
        """Raises StoreError where there is no store and `create` is False, CorruptStore for a
        newer format, StoreUnavailable. `create` also probes that the store may be written and
        honours conditional writes."""
        if create:
            access.check()
        return cls(access, DeltaLedger.open(access, create=create))

    # -- reading -----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The loaded version of the table: it changes with every commit and compaction."""
        return self._table.version

    @property
    def file_count(self) -> int:
        """Parquet files of the loaded version: many small ones make reading slow."""
        return len(self._table.files())

    def refresh(self) -> None:
        """Load the newest version. Every other method does so by itself."""
        with self._lock:
            self._table.refresh()

    def seq(self, pipeline: str) -> int:
        """How many commits the pipeline has; 0 for none. Take it before planning."""
        with self._lock:
            self._table.refresh()
            return self._table.seq(_app(pipeline))

    def coverage(self, pipeline: str) -> pa.Table:
        """The valid cells of a pipeline now, COVERAGE_COLUMNS, in the order of their commits."""
        columns = tuple(dict.fromkeys((*COVERAGE_COLUMNS, *CELL_COLUMNS)))
        with self._lock:
            self._table.refresh()
            cells = self._table.read({"input": columns}, pipeline=pipeline)["input"]
        valid = cells.filter(pa.array(valid_cells(cells))).select(list(COVERAGE_COLUMNS))
        return valid.sort_by([(name, "ascending") for name in ("seq", "stream", "unit", "ordinal")])

    def rows(
        self,
        kind: str,
        *,
        pipeline: str | None = None,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
    ) -> pa.Table:
        """All rows of a kind, superseded ones too (see store/validity.py), in no order.

        `filter` may name any column. Raises ValueError for an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"no rows of kind {kind!r}, only {', '.join(KINDS)}")
        wanted = list(LEDGER_SCHEMA.names if columns is None else columns)
        read = LEDGER_SCHEMA.names if filter is not None else wanted
        found = self.tables({kind: read}, pipeline=pipeline, filter=filter)
        return found[kind].select(wanted)

    def tables(
        self,
        wanted: Mapping[str, Sequence[str]],
        *,
        pipeline: str | None = None,
        filter: pc.Expression | None = None,
    ) -> dict[str, pa.Table]:
        """Kind -> rows with the columns asked for, all of the newest version, which is one."""
        with self._lock:
            self._table.refresh()
            return self._table.read(wanted, pipeline=pipeline, filter=filter)

    def dataset(self) -> ds.Dataset:
        """The newest version as a dataset for DuckDB."""
        with self._lock:
            self._table.refresh()
            return self._table.dataset()

    # -- writing -----------------------------------------------------------------------------

    def commit(
        self,
        pipeline: str,
        entries: Sequence[Entry],
        *,
        run: str,
        planned_seq: int,
        facts: Mapping[str, StreamFacts],
        run_row: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Make the entries visible, all at once but for those that must give way.

        planned_seq: `seq` before the plan. facts: by stream. run_row: job, host, job_json of the
        run's `started` row, which goes out with its first cells and only once.
        Dropped are entries any of whose cells (or another version of one of whose places) another
        run committed after `planned_seq`, and those whose shards are so old that vacuum may have
        taken them. Calling again with the same entries after an error is safe.
        Raises ValueError where a result does not add up (G1), StoreUnavailable, StoreError.
        """
        for entry in entries:
            _check(entry, pipeline, facts)
        with self._lock:
            now = self.access.now()
            fresh, stale = _by_age(entries, now)
            commit_id = uuid.uuid4().hex
            at = datetime.fromtimestamp(now, UTC)
            races = _Races(self._table, pipeline)
            while True:
                rivals = self._learn(pipeline, run, planned_seq)
                split = rivals.split(fresh, planned_seq)
                if not split.live:
                    return _outcome(split, (), stale, rivals.seq)
                describe = _undescribed(split.live, facts, rivals.described)
                starts = run_row is not None and "started" not in rivals.states
                rows = commit_rows(
                    Stamp(
                        pipeline=pipeline,
                        seq=rivals.seq + 1,
                        commit_id=commit_id,
                        run=run,
                        at=at,
                    ),
                    split.live,
                    facts=facts,
                    describe=describe,
                    run_row={"state": "started", **run_row} if starts and run_row else None,
                )
                if races.append(rows, rivals.seq + 1, commit_id):
                    break
            rivals.seq += 1
            rivals.learn_own(split.live, rivals.seq)
            rivals.described |= {tokenizer_key(tokenizer_row(each)) for each in describe}
            if starts:
                rivals.states.add("started")
            return _outcome(split, split.live, stale, rivals.seq)

    def finish_run(self, pipeline: str, run: str, state: str, summary: Mapping[str, Any]) -> None:
        """Record how a run ended, if it wrote its `started` row: a run that committed nothing
        leaves no trace (G3). Raises StoreUnavailable."""
        with self._lock:
            now = datetime.fromtimestamp(self.access.now(), UTC)
            commit_id = uuid.uuid4().hex
            races = _Races(self._table, pipeline)
            while True:
                rivals = self._learn(pipeline, run, None)
                if "started" not in rivals.states or state in rivals.states:
                    return
                stamp = Stamp(
                    pipeline=pipeline, seq=rivals.seq + 1, commit_id=commit_id, run=run, at=now
                )
                row = {"state": state, "summary": json.dumps(dict(summary), sort_keys=True)}
                if races.append(
                    commit_rows(stamp, (), facts={}, run_row=row), rivals.seq + 1, commit_id
                ):
                    break
            rivals.seq += 1
            rivals.states.add(state)

    def forget(
        self, pipeline: str, rows: Sequence[Mapping[str, Any]], *, run: str, seq: int
    ) -> bool:
        """Record forgotten rows, if the pipeline still stands at commit `seq`: what was committed
        after it has not been looked at. False: look again, then try again.

        Entries that were planned before it and hold samples of the same places must give way.
        Raises StoreUnavailable, StoreError.
        """
        with self._lock:
            self._table.refresh()
            if self._table.seq(_app(pipeline)) != seq:
                return False
            stamp = Stamp(
                pipeline=pipeline,
                seq=seq + 1,
                commit_id=uuid.uuid4().hex,
                run=run,
                at=datetime.fromtimestamp(self.access.now(), UTC),
            )
            races = _Races(self._table, pipeline)
            return races.append(forgotten_rows(stamp, rows), seq + 1, stamp.commit_id)

    def amend(
        self, pipeline: str, commits: Sequence[str], change: Callable[[pa.Table], pa.Table | None]
    ) -> bool:
        """Replace the unit rows of these commits by what `change` makes of them, all columns; it
        may be called again when a race is lost. None: there is nothing to do any more (False).

        For shard files that were rewritten: the rows keep seq and commit, so that nothing that was
        hidden is seen again. Raises StoreUnavailable, StoreError.
        """
        for commit in commits:
            if not _COMMIT.fullmatch(commit):  # out of the ledger, and it goes into a predicate
                raise CorruptStore(
                    f"the ledger has a commit called {commit!r}",
                    where=self.access.uri,
                    remedy="do not write to this store: tokenmill did not make it",
                )
        with self._lock:
            races = _Races(self._table, pipeline)
            columns = {"unit": LEDGER_SCHEMA.names}
            chosen = pc.field("commit_id").isin(pa.array(commits, pa.string()))
            while True:
                self._table.refresh()
                seq = self._table.seq(_app(pipeline))
                found = self._table.read(columns, pipeline=pipeline, filter=chosen)["unit"]
                rows = change(found)
                if rows is None:
                    return False
                if races.replace(rows, commits, seq + 1, uuid.uuid4().hex):
                    return True

    def compact(self) -> dict[str, Any]:
        """Merge small files and write a checkpoint; commits go on meanwhile."""
        with self._lock:
            for _ in range(COMPACTION_TRIES):
                self._table.refresh()
                try:
                    return self._table.compact()
                except CommitFailedError as error:
                    lost = error
            raise StoreUnavailable(
                "the ledger is too busy to compact",
                where=self.access.full("ledger"),
                why=first_line(lost),
                remedy="run maintain again when fewer runs are at work",
            ) from lost

    def clean(self, hours: int, *, dry_run: bool) -> list[str]:
        """Parquet files of the table that compactions or dead writers left, older than `hours`."""
        with self._lock:
            self._table.refresh()
            return self._table.vacuum(hours, dry_run=dry_run)

    def _learn(self, pipeline: str, run: str, planned_seq: int | None) -> Rivals:
        """Steps 1 to 3: what the run must know, read incrementally."""
        self._table.refresh()
        current = self._table.seq(_app(pipeline))
        rivals = self._rivals.get((pipeline, run))
        if rivals is None or (planned_seq is not None and planned_seq < rivals.base):
            base = current if planned_seq is None else min(planned_seq, current)
            rivals = Rivals(run=run, base=base, seq=base)
            rivals.learn_pipeline(self._table.read(_PIPELINE_COLUMNS, pipeline=pipeline))
            self._rivals[pipeline, run] = rivals
        if current < rivals.seq:
            raise CorruptStore(
                f"the ledger lost commits of {pipeline} while we ran",
                where=self.access.uri,
                why=f"it was at commit {rivals.seq} and is now at {current}",
                remedy="was the store replaced or restored? run again",
            )
        if current > rivals.seq:
            news = {**_RIVAL_COLUMNS, **_PIPELINE_COLUMNS}
            rivals.learn(self._table.read(news, pipeline=pipeline, after=rivals.seq))
        # a read that met a compaction has moved on: the seq belongs to what was read
        rivals.seq = self._table.seq(_app(pipeline))
        return rivals


class _Races:
    """Counts the tries of one append and waits between them."""

    def __init__(self, table: DeltaLedger, pipeline: str) -> None:
        self._table = table
        self._pipeline = pipeline
        self._lost = 0
        self._unanswered = 0

    def append(self, rows: pa.Table, seq: int, commit_id: str) -> bool:
        """Whether the rows are in. False: learn anew and try again."""
        app = _app(self._pipeline)
        return self._try(lambda: self._table.append(rows, app=app, seq=seq, commit_id=commit_id))

    def replace(self, rows: pa.Table, commits: Sequence[str], seq: int, commit_id: str) -> bool:
        """As `append`, for the unit rows of some commits."""
        app = _app(self._pipeline)
        return self._try(
            lambda: self._table.replace(
                rows, commits=commits, app=app, seq=seq, commit_id=commit_id
            )
        )

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except CommitFailedError as error:
            self._lost += 1
            self._wait(self._lost, RACES, "the ledger is too busy to commit to", error)
        except SchemaMismatchError:
            raise
        except (DeltaError, OSError) as error:
            if refused(error):
                raise StoreError(
                    "the ledger may not be written",
                    where=self._table.uri,
                    why=first_line(error),
                    remedy="check the permissions or credentials",
                ) from error
            self._unanswered += 1
            self._wait(self._unanswered, LOST_ANSWERS, "the ledger does not take commits", error)
            self._table.reload()
        else:
            return True
        return False

    def _wait(self, count: int, most: int, what: str, error: Exception) -> None:
        if count >= most:
            raise StoreUnavailable(
                what,
                where=self._table.uri,
                why=f"{count} tries; the last: {first_line(error)}",
                remedy="check the store and its credentials, then run again: nothing is lost",
            ) from error
        time.sleep(random.uniform(0.0, min(1.0, 0.01 * 2**count)))


def _app(pipeline: str) -> str:
    return f"tokenmill/{pipeline}"


def _check(entry: Entry, pipeline: str, facts: Mapping[str, StreamFacts]) -> None:
    """What only a fault of ours can break."""
    result = entry.result
    check_entry(entry)
    identity = facts[result.stream].identity
    if entry.unit.pipeline != pipeline:
        raise ValueError(f"a unit of {entry.unit.pipeline} in a commit of {pipeline}")
    if (result.recipe, result.space) != (identity.recipe, identity.space):
        raise ValueError(f"stream {result.stream}: the result's recipe is not the one of the facts")
    for shard in result.shards:
        if not shard.path or relative(shard.path) != shard.path:
            raise ValueError(f"not a normalised path: {shard.path!r}")


def _by_age(entries: Sequence[Entry], now: float) -> tuple[list[Entry], dict[Name, str]]:
    fresh: list[Entry] = []
    stale: dict[Name, str] = {}
    for entry in entries:
        oldest = min((shard.written_at for shard in entry.result.shards), default=now)
        if now - oldest > GRACE_SECONDS / 2:
            days = (now - oldest) / 86_400
            stale[entry.name] = f"its shard was written {days:.1f} days ago: vacuum may take it"
        else:
            fresh.append(entry)
    return fresh, stale


def _undescribed(
    entries: Sequence[Entry], facts: Mapping[str, StreamFacts], described: set[str]
) -> list[StreamFacts]:
    streams = dict.fromkeys(entry.result.stream for entry in entries)
    rows = [(facts[stream], tokenizer_row(facts[stream])) for stream in streams]
    return [each for each, row in rows if tokenizer_key(row) not in described]


def _outcome(
    split: Split, committed: Sequence[Entry], stale: Mapping[Name, str], seq: int
) -> Outcome:
    entries = (*committed, *split.done)
    reasons = {**stale, **split.dropped}
    return Outcome(
        committed=tuple(entry.name for entry in entries),
        dropped=tuple(reasons),
        seq=seq,
        tokens=sum(entry.result.tokens for entry in entries),
        reasons=reasons,
    )
