"""Snapshots in other people's formats, for tools that know no shards of ours.

An export is whole or visibly unfinished: `_UNFINISHED` is there first, then its files under names
that depend on content order alone (those that name the others come after them), then `_SUCCESS`
(JSON: what it is an export of, and its files), and `_UNFINISHED` goes.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.store.access import Access
from tokenmill.store.dataset import Dataset
from tokenmill.store.export_chunks import litdata_names, mds_names, write_litdata, write_mds
from tokenmill.store.export_facts import lineage
from tokenmill.store.export_hf import hf_names, write_hf
from tokenmill.store.export_megatron import megatron_names, write_megatron
from tokenmill.store.export_parquet import parquet_names, write_parquet
from tokenmill.store.export_webdataset import webdataset_names, write_webdataset
from tokenmill.store.placing import Place, Written

DONE = "_SUCCESS"
UNFINISHED = "_UNFINISHED"
FILE_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """write: (dataset, scratch folder, place, bytes of a file) -> notes. names: patterns (fnmatch)
    of every file that it may place, so that what a killed export left can be told."""

    write: Callable[[Dataset, Path, Place, int], tuple[str, ...]]
    names: Callable[[Dataset], tuple[str, ...]]


FORMATS: Mapping[str, _Format] = {
    "parquet": _Format(write=write_parquet, names=parquet_names),
    "webdataset": _Format(write=write_webdataset, names=webdataset_names),
    "hf": _Format(write=write_hf, names=hf_names),
    "mds": _Format(write=write_mds, names=mds_names),
    "litdata": _Format(write=write_litdata, names=litdata_names),
    "megatron": _Format(write=write_megatron, names=megatron_names),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote. rows: samples; for megatron documents, of all streams together.
    notes: what could not be done as asked, and what was done instead."""

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

    Memory: a row group, a chunk or one sample at a time; scratch disk: one file of about
    `file_bytes` (megatron: one per stream).
    force: go on where `out` is not empty; files of an earlier export there are removed, other
    people's are left alone. Raises JobError for an unknown format or a target that is not empty,
    SpaceMismatch, StoreError.
    """
    if to not in FORMATS:
        raise JobError(f"no export format {to!r}", remedy=f"one of {', '.join(FORMATS)}")
    target = Access(out)
    dataset.check_spaces()  # refuses mixed spaces before anything of the target is touched
    _clear(target, force)
    _begin(target, to, dataset)
    files: list[dict[str, Any]] = []

    def place(path: Path, name: str, held: Written) -> None:
        size = path.stat().st_size
        target.put(path, name, move=True)
        files.append({"path": name, "rows": held[0], "tokens": held[1], "bytes": size})

    with _scratch(scratch) as folder:
        notes = FORMATS[to].write(dataset, folder, place, file_bytes)
    report = _report(dataset, to, target, files, notes)
    _finish(target, report, lineage(dataset), files)
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


def _begin(target: Access, to: str, dataset: Dataset) -> None:
    about = {
        "tokenmill_export": 1,
        "format": to,
        "snapshot": dataset.snapshot,
        "names": FORMATS[to].names(dataset),
    }
    if not target.create(UNFINISHED, json.dumps(about, indent=1, sort_keys=True).encode()):
        raise _not_alone(target, UNFINISHED)


def _not_alone(target: Access, name: str) -> StoreError:
    return StoreError(
        "another export is at work in the same place",
        where=target.full(name),
        remedy="give each export a target of its own",
    )


def _finish(
    target: Access, report: Exported, facts: dict[str, Any], files: list[dict[str, Any]]
) -> None:
    manifest = {
        "tokenmill_export": 1,
        "format": report.format,
        **facts,
        "rows": report.rows,
        "tokens": report.tokens,
        "files": files,
        "notes": report.notes,
    }
    if not target.create(DONE, json.dumps(manifest, indent=1, sort_keys=True).encode()):
        raise _not_alone(target, DONE)
    target.delete([UNFINISHED])


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
    earlier, unfinished = _about(target, DONE), _about(target, UNFINISHED)
    target.delete([DONE])  # first: a half-replaced export must not look whole
    # then what names the other files: no library opens the rest without it
    target.delete([f["path"] for f in reversed(earlier.get("files", ()))])
    names = unfinished.get("names", ())
    left = [f.path for f in target.list("") if any(fnmatch.fnmatchcase(f.path, n) for n in names)]
    target.delete([path for path in left if "/" not in path])
    target.delete([UNFINISHED])


def _about(target: Access, name: str) -> Mapping[str, Any]:
    """What one of our markers says; {} where it is not there or not ours."""
    try:
        about = json.loads(target.read(name))
    except (FileNotFoundError, ValueError):
        return {}
    ours = isinstance(about, Mapping) and about.get("tokenmill_export") == 1
    return about if ours else {}


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tokenmill-export-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
