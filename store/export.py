"""Snapshots as Parquet files or webdataset tars, for tools that know no shards of ours.

An export is whole or visibly unfinished: its files are written first, under names that depend on
content order alone, and `_SUCCESS` (JSON: what it is an export of, and its files) last.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.store.access import Access
from tokenmill.store.dataset import Dataset
from tokenmill.store.export_parquet import write_parquet
from tokenmill.store.export_webdataset import write_webdataset
from tokenmill.store.placing import Written

DONE = "_SUCCESS"
FILE_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote. `notes`: what could not be done as asked, and what was done instead."""

    uri: str
    format: str
    snapshot: str
    files: tuple[str, ...]
    rows: int
    tokens: int
    bytes: int
    notes: tuple[str, ...] = ()


def export(
    dataset: Dataset,
    to: str,
    out: str,
    *,
    force: bool = False,
    file_bytes: int = FILE_BYTES,
    scratch: Path | None = None,
) -> Exported:
    """Write the samples of `dataset` under the folder or prefix `out`.

    Memory: a row group or one sample at a time; scratch disk: one file of about `file_bytes`.
    force: go on where `out` is not empty; files of an earlier export there are removed, other
    people's are left alone. Raises JobError for an unknown format or a target that is not empty,
    SpaceMismatch, StoreError.
    """
    writers = {"parquet": write_parquet, "webdataset": write_webdataset}
    if to not in writers:
        raise JobError(f"no export format {to!r}", remedy=f"one of {', '.join(sorted(writers))}")
    target = Access(out)
    dataset.check_spaces()  # refuses mixed spaces before anything of the target is touched
    _clear(target, force)
    files: list[dict[str, Any]] = []

    def place(path: Path, name: str, held: Written) -> None:
        size = path.stat().st_size
        target.put(path, name)
        path.unlink(missing_ok=True)
        files.append({"path": name, "rows": held[0], "tokens": held[1], "bytes": size})

    with _scratch(scratch) as folder:
        notes = writers[to](dataset, folder, place, file_bytes)
    report = _report(dataset, to, target, files, notes)
    _finish(target, report, files)
    return report


def _report(
    dataset: Dataset, to: str, target: Access, files: list[dict[str, Any]], notes: tuple[str, ...]
) -> Exported:
    return Exported(
        uri=target.uri,
        format=to,
        snapshot=dataset.snapshot,
        files=tuple(f["path"] for f in files),
        rows=sum(f["rows"] for f in files),
        tokens=sum(f["tokens"] for f in files),
        bytes=sum(f["bytes"] for f in files),
        notes=notes,
    )


def _finish(target: Access, report: Exported, files: list[dict[str, Any]]) -> None:
    manifest = {
        "tokenmill_export": 1,
        "format": report.format,
        "snapshot": report.snapshot,
        "rows": report.rows,
        "tokens": report.tokens,
        "files": files,
        "notes": report.notes,
    }
    if not target.create(DONE, json.dumps(manifest, indent=1, sort_keys=True).encode()):
        raise StoreError(
            "another export finished in the same place meanwhile",
            where=target.full(DONE),
            remedy="give each export a target of its own",
        )


def _clear(target: Access, force: bool) -> None:
    found = next(iter(target.list("")), None)
    if found is None:
        return
    if not force:
        raise JobError(
            "the target of an export must be empty",
            where=target.uri,
            why=f"found {found.path}",
            remedy="choose another target, or --force: an earlier export there is replaced and "
            "other files stay",
        )
    try:
        earlier = json.loads(target.read(DONE))
    except FileNotFoundError:
        return
    except ValueError:
        earlier = {}
    target.delete([DONE])  # first: a half-replaced export must not look whole
    if isinstance(earlier, Mapping) and earlier.get("tokenmill_export") == 1:
        target.delete([f["path"] for f in earlier["files"]])


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tokenmill-export-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
