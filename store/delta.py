"""The Delta table under `ledger/`: the one module that touches deltalake.

Reads go through `Access` and Parquet, never `to_pyarrow_table` (3 of 27 processes aborted at exit).
Files are pruned by kind, pipeline and `seq` from the log's statistics, so that reading what is
new costs what is new.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from tokenmill.schemas.errors import CorruptStore, StoreError
from tokenmill.schemas.ledger import LEDGER_FORMAT, LEDGER_SCHEMA
from tokenmill.store.access import Access
from tokenmill.store.delta_errors import delta_errors
from tokenmill.store.paths import relative

LEDGER = "ledger"
_FORMAT_KEY = "tokenmill.format"
_CONFIGURATION = {
    _FORMAT_KEY: str(LEDGER_FORMAT),
    # loading reads every entry since the last checkpoint
    "delta.checkpointInterval": "25",
    # statistics of two columns only: the log stays small and still prunes what we ask for
    "delta.dataSkippingStatsColumns": "pipeline,seq",
}
READ_TRIES = 3
_READ_THREADS = 8
_WHOLE_READ = 8 << 20  # smaller files are read in one request


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFile:
    """One live Parquet file of the table and what the log says of it (None: not said)."""

    path: str  # relative to the table
    size: int
    kind: str
    pipelines: tuple[str, str] | None
    last_seq: int | None

    def may_hold(self, kinds: Sequence[str], pipeline: str | None, after: int) -> bool:
        if self.kind not in kinds or (self.last_seq is not None and self.last_seq <= after):
            return False
        if pipeline is None or self.pipelines is None:
            return True
        low, high = self.pipelines
        # statistics of long strings may be cut: compare what the bound has
        return low <= pipeline and pipeline[: len(high)] <= high


class DeltaLedger:
    """A loaded version of the table. `refresh` moves it to the newest; nothing else does."""

    def __init__(self, access: Access, table: DeltaTable) -> None:
        self._access = access
        self._table = table
        self._check_format()

    @classmethod
    def open(cls, access: Access, *, create: bool) -> DeltaLedger:
        """Raises StoreError (no store here), CorruptStore (newer format), StoreUnavailable."""
        uri, options = access.delta(LEDGER)
        with delta_errors(access.full(LEDGER)):
            try:
                return cls(access, DeltaTable(uri, storage_options=options))
            except TableNotFoundError:
                if not create:
                    raise StoreError(
                        "no tokenmill store here",
                        where=access.uri,
                        why="there is no ledger/ with a Delta log in it",
                        remedy="check the path, or make a store: tokenmill run JOB.yaml",
                    ) from None
        return cls(access, _create(access))

    @property
    def version(self) -> int:
        return int(self._table.version())

    @property
    def uri(self) -> str:
        return self._access.full(LEDGER)

    @property
    def table(self) -> DeltaTable:
        return self._table

    def refresh(self) -> None:
        """Move to the newest version. Raises StoreUnavailable, CorruptStore."""
        with delta_errors(self.uri):
            self._table.update_incremental()
        self._check_format()

    def reload(self) -> None:
        """As `refresh`, trusting nothing that was read before."""
        uri, options = self._access.delta(LEDGER)
        with delta_errors(self.uri):
            self._table = DeltaTable(uri, storage_options=options)
        self._check_format()

    def seq(self, app: str) -> int:
        with delta_errors(self.uri):  # it may read the log
            return int(self._table.transaction_version(app) or 0)

    def files(self) -> list[LogFile]:
        with delta_errors(self.uri):
            actions = pa.table(self._table.get_add_actions(flatten=True))
        columns = {name: actions[name].to_pylist() for name in actions.column_names}
        nothing: list[Any] = [None] * actions.num_rows
        lows, highs, seqs = (
            columns.get(name, nothing) for name in ("min.pipeline", "max.pipeline", "max.seq")
        )
        rows = zip(
            columns.get("path", []),
            columns.get("size_bytes", nothing),
            columns.get("partition.kind", nothing),
            lows,
            highs,
            seqs,
            strict=True,
        )
        return [
            LogFile(
                path=_checked(path, self._access),
                size=size or 0,
                kind=kind or "",
                pipelines=None if low is None or high is None else (low, high),
                last_seq=seq,
            )
            for path, size, kind, low, high, seq in rows
        ]

    def read(
        self,
        wanted: Mapping[str, Sequence[str]],
        *,
        pipeline: str | None = None,
        after: int = 0,
        filter: pc.Expression | None = None,
    ) -> dict[str, pa.Table]:
        """Kind -> its rows with seq > `after`, in no particular order, with exactly the columns
        asked for, all of one version of the table.

        A file that a compaction took away while we read is no error: the newest version is read.
        `filter` may name only columns that are asked for. Raises CorruptStore, StoreUnavailable.
        """
        for _ in range(READ_TRIES):
            files = [f for f in self.files() if f.may_hold(tuple(wanted), pipeline, after)]
            try:
                return self._read_files(files, wanted, pipeline, after, filter)
            except FileNotFoundError as gone:
                missing = gone
                self.refresh()
        raise CorruptStore(
            "the ledger names a file that is not there",
            where=self._access.full(LEDGER),
            why=str(missing),
            remedy="restore ledger/ from a backup: its log and its files belong together",
        )

    def _read_files(
        self,
        files: Sequence[LogFile],
        wanted: Mapping[str, Sequence[str]],
        pipeline: str | None,
        after: int,
        filter: pc.Expression | None,
    ) -> dict[str, pa.Table]:
        condition = filter
        if pipeline is not None:
            condition = _both(condition, pc.field("pipeline") == pipeline)
        if after > 0:
            condition = _both(condition, pc.field("seq") > after)

        def one(file: LogFile) -> pa.Table:
            columns = list(wanted[file.kind])
            table = self._read_file(file, list(dict.fromkeys([*columns, "pipeline", "seq"])))
            return (table if condition is None else table.filter(condition)).select(columns)

        if self._access.local or len(files) < 2:
            tables = list(map(one, files))
        else:
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                tables = list(pool.map(one, files))
        found: dict[str, list[pa.Table]] = {
            kind: [LEDGER_SCHEMA.empty_table().select(list(columns))]
            for kind, columns in wanted.items()
        }
        for file, table in zip(files, tables, strict=True):
            found[file.kind].append(table)
        return {kind: pa.concat_tables(parts) for kind, parts in found.items()}

    def _read_file(self, file: LogFile, columns: Sequence[str]) -> pa.Table:
        path = f"{LEDGER}/{file.path}"
        try:
            with self._open(path, file.size) as stream, pq.ParquetFile(stream) as parquet:
                present = set(parquet.schema_arrow.names)
                table = parquet.read(columns=[c for c in columns if c in present])
            return _shaped(table, file.kind, columns)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorruptStore(
                "a file of the ledger is not readable as Parquet",
                where=self._access.full(path),
                why=str(error).splitlines()[0],
                remedy="restore ledger/ from a backup",
            ) from error

    def _open(self, path: str, size: int) -> IO[bytes]:
        local = self._access.local_path(path)
        if local is not None:
            return local.open("rb")
        if size <= _WHOLE_READ:
            return io.BytesIO(self._access.read(path))
        return self._access.open(path)

    def append(self, rows: pa.Table, *, app: str, seq: int, commit_id: str) -> None:
        """Append on *this* version: raises CommitFailedError when `app` has moved on meanwhile,
        DeltaError or OSError when the outcome is unknown."""
        write_deltalake(
            self._table,
            rows,
            mode="append",
            partition_by=["kind"],
            commit_properties=CommitProperties(
                app_transactions=[Transaction(app, seq)],
                custom_metadata={"commit_id": commit_id},
            ),
        )
        self._make_durable()

    def replace(
        self, rows: pa.Table, *, commits: Sequence[str], app: str, seq: int, commit_id: str
    ) -> None:
        """Put `rows` in place of all unit rows of these commits (hexadecimal ids), which they
        carry on. Atomic, on *this* version; raises as `append`, also where anybody appended."""
        names = ", ".join(f"'{commit}'" for commit in commits)
        write_deltalake(
            self._table,
            rows,
            mode="overwrite",
            predicate=f"kind = 'unit' AND commit_id IN ({names})",
            partition_by=["kind"],
            commit_properties=CommitProperties(
                app_transactions=[Transaction(app, seq)],
                custom_metadata={"commit_id": commit_id},
            ),
        )
        self._make_durable()

    def _make_durable(self) -> None:
        """deltalake does not fsync: without this a power cut takes back what we called done."""
        folder = self._access.local_path(f"{LEDGER}/_delta_log")
        if folder is None:
            return
        entry = folder / f"{self.version:020d}.json"
        if entry.exists():
            _fsync(entry)
            for added in re.findall(r'"add":\{"path":"([^"]+)"', entry.read_text()):
                parquet = folder.parent / added
                if parquet.exists():
                    _fsync(parquet)
                    _fsync(parquet.parent)
        _fsync(folder)

    def dataset(self) -> ds.Dataset:
        """The whole table for DuckDB. Paths are checked before anything is opened."""
        self.files()
        with delta_errors(self.uri):
            return self._table.to_pyarrow_dataset()

    def compact(self) -> dict[str, Any]:
        """Merge small files within each kind and write a checkpoint. Raises CommitFailedError."""
        with delta_errors(self.uri, commits=True):
            metrics: dict[str, Any] = self._table.optimize.compact()
            self._table.update_incremental()
            self._table.create_checkpoint()
        return metrics

    def vacuum(self, hours: int, *, dry_run: bool) -> list[str]:
        """Files of the table that no version of the last `hours` names; relative to the table."""
        with delta_errors(self.uri):
            return list(
                self._table.vacuum(
                    retention_hours=hours,
                    dry_run=dry_run,
                    enforce_retention_duration=False,
                    full=True,  # what dead writers left too
                )
            )

    def _check_format(self) -> None:
        found = self._table.metadata().configuration.get(_FORMAT_KEY)
        if found is None or not found.isdigit():
            raise CorruptStore(
                "no tokenmill store here: ledger/ is a Delta table, but not one of ours",
                where=self._access.full(LEDGER),
                remedy="choose another folder for the store",
            )
        if int(found) > LEDGER_FORMAT:
            raise CorruptStore(
                f"the ledger has format {found}, this tokenmill reads up to {LEDGER_FORMAT}",
                where=self._access.full(LEDGER),
                remedy="upgrade tokenmill",
            )


def _create(access: Access) -> DeltaTable:
    uri, options = access.delta(LEDGER)
    with delta_errors(access.full(LEDGER)):
        try:
            return DeltaTable.create(
                uri,
                schema=LEDGER_SCHEMA,
                partition_by=["kind"],
                mode="error",
                name="tokenmill ledger",
                configuration=_CONFIGURATION,
                storage_options=options,
                raise_if_key_not_exists=False,  # ours is not one of Delta's own keys
            )
        except DeltaError as lost:
            try:  # somebody else made it first
                return DeltaTable(uri, storage_options=options)
            except TableNotFoundError:
                raise lost from None


def _both(one: pc.Expression | None, other: pc.Expression) -> pc.Expression:
    return other if one is None else one & other


def _shaped(table: pa.Table, kind: str, columns: Sequence[str]) -> pa.Table:
    """`table` with exactly `columns`, typed as the schema says; what it lacks is null."""
    n = table.num_rows
    arrays: list[Any] = []
    for name in columns:
        field = LEDGER_SCHEMA.field(name)
        if name == "kind":
            arrays.append(pa.repeat(pa.scalar(kind, field.type), n))
        elif name in table.column_names:
            arrays.append(table[name].cast(field.type))
        else:
            arrays.append(pa.nulls(n, field.type))
    return pa.table(arrays, schema=pa.schema([LEDGER_SCHEMA.field(c) for c in columns]))


def _checked(path: str, access: Access) -> str:
    """A path out of the log is data: it must lie inside the table."""
    if "://" in path or not path or relative(path) != path:
        raise CorruptStore(
            "the ledger's log names a file outside its table",
            where=access.full(LEDGER),
            why=f"path {path!r}",
            remedy="do not read this store: it was not written by tokenmill",
        )
    return path


def _fsync(path: os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
