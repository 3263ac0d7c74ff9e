"""SQL over a store: DuckDB in memory, locked down, fed with Arrow relations of ours.

A query reads the views of views.py and nothing else: no file, no environment, no network, no
extension, no setting. It is a single statement that reads. Verified against DuckDB 2.0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.store.views import CELLS_FOR, CELLS_SCHEMA, VIEWS

# A question must not take the machine down: what needs more memory than this is refused.
MEMORY_SHARE = 0.5
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

# PIVOT parses as MULTI (it first collects the values that become columns).
_READS = {"SELECT", "EXPLAIN", "MULTI"}

# Functions that take a table's name as text: which views they read is not known before.
_BY_NAME = re.compile(r"\bquery(_table)?\s*\(", re.IGNORECASE)

_SETTINGS = (
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET disabled_filesystems = 'LocalFileSystem'",
    "SET lock_configuration = true",  # the last: nothing can be set after it
)


_SAMPLES = pa.schema(
    [
        ("_row", pa.int64()),
        ("pipeline", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("_id", pa.binary()),
        ("span", pa.string()),
    ]
)


class Relations(Protocol):
    """What the views read (see views.py); each is asked for at most once per query."""

    def snapshot_table(self) -> pa.Table: ...

    def cells(self) -> pa.Table:
        """CELLS_SCHEMA. Costs a pass over the ledger: asked for only where a view needs it."""
        ...

    def ledger_rows(self) -> pads.Dataset: ...


def run_sql(
    relations: Relations,
    text: str,
    parameters: Mapping[str, str | None] | None = None,
    *,
    tables: Mapping[str, pa.Table | pa.RecordBatchReader] | None = None,
) -> pa.Table:
    """The result of one reading statement over the views, as an Arrow table.

    `parameters` fill `$name` in the text: values never become SQL. `tables`: further relations
    by name; a reader can be read once. Whole numbers that DuckDB
    widens to 38 digits come back as int64 where they fit. Raises JobError, with DuckDB's own
    message, where the statement is wrong, reads anything but the views, or needs too much memory;
    StoreError where the ledger's files cannot be read.
    """
    with _connection() as connection, _explained():
        _check_reads(connection, text)
        for name, table in (tables or {}).items():
            connection.register(name, table)
        _register(connection, relations, _views_named(connection, text))
        relation = connection.sql(text, params=dict(parameters) if parameters else None)
        if relation is None:
            return pa.table({})
        return _narrowed(relation.to_arrow_table())


class SamplePredicate:
    """An SQL predicate over samples: pipeline, key, source, id (32 hexadecimal digits), span.

    As locked down as `run_sql`. A context manager. Raises JobError where it is no predicate, when
    entered.
    """

    def __init__(self, where: str) -> None:
        # on a line of its own: a comment at its end must not swallow the bracket
        self._sql = f"""
            select _row from (
                select _row, pipeline, key, source, lower(hex(_id)) as id, span from _samples
            ) samples where (
            {where}
            ) order by _row"""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            self._connection = self._stack.enter_context(_connection())
            for setting in _SETTINGS:
                self._connection.execute(setting)
            with _explained():
                _check_reads(self._connection, self._sql)
                self._connection.register("_samples", _SAMPLES.empty_table())
                self._connection.sql(self._sql).fetchall()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, pipeline: str, batch: pa.RecordBatch) -> list[int]:
        """Rows of a shard's record batch that it names."""
        n = batch.num_rows
        columns = {
            "_row": pa.array(range(n), pa.int64()),
            "pipeline": pa.repeat(pa.scalar(pipeline), n),
            "key": batch.column("key"),
            "source": batch.column("source").cast(pa.string()),
            "_id": batch.column("id").cast(pa.binary()),
            "span": batch.column("span") if "span" in batch.schema.names else None,
        }
        span = columns["span"] if columns["span"] is not None else pa.nulls(n, pa.string())
        table = pa.table(list({**columns, "span": span}.values()), schema=_SAMPLES)
        with _explained():
            self._connection.register("_samples", table)
            return [row for (row,) in self._connection.sql(self._sql).fetchall()]


def memory_limit() -> int:
    """Bytes that one query may take: a share of the machine's, or of the container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        total = min(total, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or its limit is "max"
        pass
    return int(total * MEMORY_SHARE)


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(
        ":memory:",
        config={
            # or a Python variable of the caller could be read by its name
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "temp_directory": "",  # DuckDB would make a folder .tmp where the user stands
            "memory_limit": f"{memory_limit() // (1 << 20)}MiB",
        },
    )
    try:
        yield connection
    finally:
        connection.close()


def _check_reads(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    statements = connection.extract_statements(text)
    if len(statements) != 1:
        raise JobError(
            f"one statement at a time, not {len(statements)}",
            where=_shown(text),
            remedy="give a single SELECT",
        )
    kind = statements[0].type.name
    if kind not in _READS:
        raise JobError(
            f"a query only reads: {kind} is refused",
            where=_shown(text),
            why="the store changes through runs alone",
            remedy=f"SELECT from the views {', '.join(VIEWS)}",
        )


def _views_named(connection: duckdb.DuckDBPyConnection, text: str) -> frozenset[str]:
    if _BY_NAME.search(text):
        return frozenset(VIEWS)
    try:
        return frozenset(name.lower() for name in connection.get_table_names(text))
    except duckdb.Error:  # PIVOT has no list of tables: fill them all
        return frozenset(VIEWS)


def _register(
    connection: duckdb.DuckDBPyConnection, relations: Relations, named: frozenset[str]
) -> None:
    cells = relations.cells() if named & CELLS_FOR else CELLS_SCHEMA.empty_table()
    connection.register("_snapshot", relations.snapshot_table())
    connection.register("_cells", cells)
    connection.register("_ledger", relations.ledger_rows())
    for name, text in VIEWS.items():
        connection.execute(f"create view {name} as {text}")
    for setting in _SETTINGS:
        connection.execute(setting)


@contextmanager
def _explained() -> Iterator[None]:
    """DuckDB's errors as ours; its internal ones, and any fault of ours, pass as they are."""
    try:
        yield
    except duckdb.InternalException:
        raise
    except duckdb.OutOfMemoryException as error:
        raise JobError(
            "the query needs more memory than it may take",
            why=f"the limit is {memory_limit() // (1 << 20)} MiB; {_first_line(error)}",
            remedy="select fewer columns, aggregate, or add a LIMIT",
        ) from None
    except duckdb.PermissionException as error:
        raise JobError(
            "a query reads the store's views and nothing else",
            why=_first_line(error),
            remedy=f"the views are {', '.join(VIEWS)}",
        ) from None
    except (duckdb.IOException, duckdb.ConnectionException) as error:
        raise StoreError("the ledger could not be read", why=str(error)) from None
    except duckdb.Error as error:
        raise JobError(
            "the query is not one that DuckDB can answer",
            why=str(error).strip(),
            remedy=f"the views are {', '.join(VIEWS)}; `describe shards` lists the columns of one",
        ) from None


def _narrowed(table: pa.Table) -> pa.Table:
    """decimal(38, 0), DuckDB's sum of integers, as int64 where every value fits."""
    for index, field in enumerate(table.schema):
        if not (pa.types.is_decimal(field.type) and field.type.scale == 0):
            continue
        try:
            column = pc.cast(table.column(index), pa.int64())
        except pa.ArrowInvalid:  # it does not fit: stays exact
            continue
        table = table.set_column(index, pa.field(field.name, pa.int64()), column)
    return table


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _shown(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 80 else one_line[:77] + "..."
