"""A store in memory: files behind the real Access, and a table that stands in for the Delta table
under the real Ledger. tests/store/test_ledger_contract.py holds it to what the real one does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError

from tokenmill.schemas.errors import InputChanged
from tokenmill.schemas.ledger import LEDGER_SCHEMA
from tokenmill.store.access import Access
from tokenmill.store.paths import HIDDEN, Listed

Clock = Callable[[], float]
_EMPTY = LEDGER_SCHEMA.empty_table()
# Called before an operation, by name: it may raise, and it may let others do something first.
Before = Callable[[str], None]


def _nothing(_operation: str) -> None:
    return


@dataclass
class Folder:
    """What lies in the store: path -> (bytes, modified, version). Shared by all handles."""

    clock: Clock
    files: dict[str, tuple[bytes, float, int]] = field(default_factory=dict)
    versions: int = 0

    def put(self, path: str, data: bytes) -> Listed:
        self.versions += 1
        self.files[path] = (data, self.clock(), self.versions)
        return self.listed(path)

    def listed(self, path: str) -> Listed:
        data, modified, version = self.files[path]
        return Listed(path=path, size=len(data), version=str(version), modified=modified)


class MemoryBackend:
    """One actor's handle: the operations of store/access.py:Backend."""

    def __init__(self, folder: Folder, before: Before = _nothing) -> None:
        self.folder = folder
        self._before = before

    def read(self, path: str, version: str | None) -> bytes:
        self._before("read")
        if path not in self.folder.files:
            raise FileNotFoundError(path)
        data, _, found = self.folder.files[path]
        if version is not None and version != str(found):
            raise InputChanged("changed", uri=path)
        return data

    def open(self, path: str, version: str | None) -> BinaryIO:
        return io.BytesIO(self.read(path, version))

    def stat(self, path: str) -> Listed:
        self._before("stat")
        if path not in self.folder.files:
            raise FileNotFoundError(path)
        return self.folder.listed(path)

    def create(self, path: str, data: bytes) -> bool:
        self._before("create")
        if path in self.folder.files:
            return self.folder.files[path][0] == data
        self.folder.put(path, data)
        return True

    def replace(self, path: str, data: bytes, version: str) -> str | None:
        self._before("replace")
        if path not in self.folder.files or self.folder.listed(path).version != version:
            return None
        return self.folder.put(path, data).version

    def put(self, local: Path, path: str, move: bool) -> Listed:
        self._before("put")
        return self.folder.put(path, local.read_bytes())

    def list(self, prefix: str, hidden: bool) -> Iterator[Listed]:
        self._before("list")
        paths = sorted(p for p in self.folder.files if p.startswith(f"{prefix}/") or not prefix)
        found = [self.folder.listed(p) for p in paths if hidden or f"/{HIDDEN}" not in f"/{p}"]
        return iter(found)

    def delete(self, paths: Iterable[str]) -> None:
        self._before("delete")
        for path in paths:
            self.folder.files.pop(path, None)

    def now(self, path: str) -> float:
        self._before("now")
        return self.folder.clock()


class MemoryAccess(Access):
    """The real Access over a folder in memory."""

    def __init__(self, folder: Folder, before: Before = _nothing) -> None:
        self.uri = "memory"
        self.local = False
        self._any_names = False
        self._backend = MemoryBackend(folder, before)


@dataclass
class Log:
    """The table's history. commits: each one's rows by kind. seqs: its sequence number. apps: by
    version, what sequence every application had reached."""

    commits: list[dict[str, pa.Table]] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    apps: list[dict[str, int]] = field(default_factory=lambda: [{}])
    _whole: dict[str, tuple[int, pa.Table]] = field(default_factory=dict)

    def add(self, rows: pa.Table, app: str, seq: int) -> None:
        kinds = rows["kind"].to_pylist()
        order = sorted(range(len(kinds)), key=kinds.__getitem__)
        rows = rows.take(pa.array(order))  # once, then slices: that is half the time of a commit
        parts, at = {}, 0
        for kind in sorted(set(kinds)):
            parts[kind] = rows.slice(at, kinds.count(kind))
            at += kinds.count(kind)
        self.commits.append(parts)
        self.seqs.append(seq)
        self.apps.append({**self.apps[-1], app: seq})

    def rows(self, kind: str, version: int, after: int) -> pa.Table:
        """Those of the first `version` commits with a sequence number above `after`, in order."""
        known, whole = self._whole.get(kind, (0, _EMPTY))
        if after or known > version:
            numbers = range(version)
            return self._joined(_EMPTY, kind, [n for n in numbers if self.seqs[n] > after])
        if known < version:
            whole = self._joined(whole, kind, range(known, version))
            self._whole[kind] = (version, whole)
        return whole

    def _joined(self, first: pa.Table, kind: str, numbers: Iterable[int]) -> pa.Table:
        parts = [self.commits[n][kind] for n in numbers if kind in self.commits[n]]
        return pa.concat_tables([first, *parts]).combine_chunks() if parts else first


class MemoryTable:
    """A loaded version of the table, as store/delta.py:DeltaLedger: `refresh` moves it to the
    newest, an append succeeds only if the application has not moved on since."""

    uri = "memory/ledger"

    def __init__(self, log: Log, before: Before = _nothing) -> None:
        self._log = log
        self._before = before
        self.version = len(log.commits)

    def refresh(self) -> None:
        self._before("refresh")
        self.version = len(self._log.commits)

    def reload(self) -> None:
        self.refresh()

    def seq(self, app: str) -> int:
        return self._log.apps[self.version].get(app, 0)

    def files(self) -> list[pa.Table]:
        """One file per commit and kind: nothing is ever compacted."""
        return [part for commit in self._log.commits[: self.version] for part in commit.values()]

    def read(
        self,
        wanted: Mapping[str, Sequence[str]],
        *,
        pipeline: str | None = None,
        after: int = 0,
        filter: pc.Expression | None = None,
    ) -> dict[str, pa.Table]:
        self._before("read")
        condition = filter
        if pipeline is not None and len(self._log.apps[self.version]) > 1:
            condition = _both(condition, pc.field("pipeline") == pipeline)
        found = {}
        for kind, columns in wanted.items():
            rows = self._log.rows(kind, self.version, after)
            if condition is not None:
                rows = rows.filter(condition)
            found[kind] = rows.select(list(columns))
        return found

    def append(self, rows: pa.Table, *, app: str, seq: int, commit_id: str) -> None:
        self._before("append")
        if self._log.apps[-1].get(app, 0) != self._log.apps[self.version].get(app, 0):
            raise CommitFailedError(f"a concurrent transaction of {app}")
        self._log.add(rows, app, seq)
        self.version = len(self._log.commits)

    def vacuum(self, hours: int, *, dry_run: bool) -> list[str]:
        return []


def _both(one: pc.Expression | None, other: pc.Expression) -> pc.Expression:
    return other if one is None else one & other
