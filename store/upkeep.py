"""Upkeep of a store: vacuum, maintain, tag. Readers never do any of it.

Vacuum may run beside writers and readers. It lists files *first* and reads ledger and snapshots
after, so that what is committed in between is named; it spares what is younger than the grace
period by the store's clock, and a commit refuses shards older than half of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.compute as pc

from tokenmill.schemas.errors import StoreError
from tokenmill.store.access import Access, Listed
from tokenmill.store.ledger import GRACE_SECONDS, Ledger
from tokenmill.store.snapshot import (
    FOLDER,
    TAGS,
    parse_snapshot,
    snapshot_path,
    tag_path,
    tagged,
    tags,
)

SHARDS = "shards"
# an untagged snapshot lapses so long after its last renewal by a reader
SNAPSHOT_LIFE_SECONDS = 30 * 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class VacuumReport:
    """What vacuum found, and deleted unless `dry_run`. Paths are relative to the store.

    orphans: files under shards/ that nothing names. lapsed: snapshots nobody renewed.
    ledger_files: Parquet files that compactions and dead writers left in ledger/.
    kept: files under shards/ that are named. young: unnamed, but within the grace period.
    """

    dry_run: bool
    orphans: tuple[str, ...]
    orphan_bytes: int
    lapsed: tuple[str, ...]
    ledger_files: tuple[str, ...]
    kept: int
    young: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MaintainReport:
    """Files of the ledger before and after compaction."""

    files_before: int
    files_after: int
    version: int


def vacuum(
    access: Access,
    ledger: Ledger,
    *,
    dry_run: bool = True,
    grace: float = GRACE_SECONDS,
) -> VacuumReport:
    """Delete what neither ledger nor a living snapshot names and is older than `grace` seconds.

    A grace shorter than the default is for stores at which nothing is at work. Superseded shards
    are named by the ledger and stay. Raises StoreError, CorruptStore (a snapshot or tag that cannot
    be read: nothing is deleted), StoreUnavailable.
    """
    files = list(access.list(SHARDS, hidden=True))  # first: what is committed later is named later
    snapshots = list(access.list(FOLDER, hidden=True))
    now = access.now()
    lapsed = _lapsed(snapshots, set(tags(access).values()), now)
    named = _named(access, ledger, snapshots, lapsed)
    unnamed = [file for file in files if file.path not in named]
    orphans = [file for file in unnamed if now - file.modified > grace]
    gone = _leftovers(snapshots, lapsed, now, grace)
    if not dry_run:
        access.delete(file.path for file in orphans)
        # a tag or a renewal may have come since the listing
        still = _lapsed(list(access.list(FOLDER)), set(tags(access).values()), now)
        access.delete(path for path in gone if not _spared(path, lapsed - still))
    return VacuumReport(
        dry_run=dry_run,
        orphans=tuple(file.path for file in orphans),
        orphan_bytes=sum(file.size for file in orphans),
        lapsed=tuple(sorted(lapsed)),
        ledger_files=tuple(ledger.clean(max(int(grace // 3600), 0), dry_run=dry_run)),
        kept=len(files) - len(unnamed),
        young=len(unnamed) - len(orphans),
    )


def maintain(ledger: Ledger) -> MaintainReport:
    """Compact the ledger's small files and write a checkpoint; runs and readers go on meanwhile.

    Raises StoreUnavailable.
    """
    ledger.refresh()
    before = ledger.file_count
    ledger.compact()
    return MaintainReport(
        files_before=before, files_after=ledger.file_count, version=ledger.version
    )


def tag(access: Access, name: str, snapshot: str, *, move: bool = False) -> None:
    """Keep `snapshot` (64 hex digits) for ever under `name`.

    Raises StoreError where the name is no tag, the snapshot is not there, or the tag keeps another
    one and `move` is False.
    """
    path = tag_path(name)
    data = json.dumps({"snapshot": snapshot}).encode()
    _require(access, snapshot)
    if not access.create(path, data):
        held = tagged(access, name)
        if held == snapshot:
            return
        if not move:
            raise StoreError(
                f"the tag {name!r} keeps another snapshot",
                where=access.full(path),
                why=f"it keeps {held[:12]}…, not {snapshot[:12]}…",
                remedy="choose another name, or move the tag (--move)",
            )
        if access.replace(path, data, access.stat(path).version) is None:
            raise StoreError(
                f"somebody else moved the tag {name!r} meanwhile",
                where=access.full(path),
                remedy="look where it points now, then try again",
            )
    try:
        _require(access, snapshot)
    except StoreError:
        untag(access, name)  # a vacuum took the snapshot between our look and our tag
        raise


def untag(access: Access, name: str) -> None:
    """Let a tag go; its snapshot lapses like any other. Raises StoreError."""
    tagged(access, name)
    access.delete([tag_path(name)])


def _require(access: Access, snapshot: str) -> None:
    path = snapshot_path(snapshot)
    try:
        access.stat(path)
    except FileNotFoundError:
        raise StoreError(
            f"no snapshot {snapshot[:12]}… in this store",
            where=access.full(FOLDER),
            remedy="open the store to make the current one, then tag that",
        ) from None


def _lapsed(snapshots: Iterable[Listed], kept: set[str], now: float) -> set[str]:
    """Hashes of the untagged snapshots whose last renewal is too long ago."""
    used: dict[str, float] = {}
    stored: set[str] = set()
    for listed in snapshots:
        name, _, kind = listed.path.removeprefix(f"{FOLDER}/").partition(".")
        if kind in ("arrow", "touch"):
            used[name] = max(used.get(name, 0.0), listed.modified)
        if kind == "arrow":
            stored.add(name)
    return {name for name in stored - kept if now - used[name] > SNAPSHOT_LIFE_SECONDS}


def _leftovers(
    snapshots: Iterable[Listed], lapsed: set[str], now: float, grace: float
) -> list[str]:
    """Files under snapshots/ to delete: lapsed ones, markers of none, dead writers' rest."""
    snapshots = [s for s in snapshots if not s.path.startswith(f"{TAGS}/")]
    stored = {s.path for s in snapshots if s.path.endswith(".arrow")}
    gone = []
    for listed in snapshots:
        stem = listed.path.removeprefix(f"{FOLDER}/").partition(".")[0]
        orphaned = f"{FOLDER}/{stem}.arrow" not in stored and now - listed.modified > grace
        if stem in lapsed or orphaned:
            gone.append(listed.path)
    return gone


def _spared(path: str, renewed: set[str]) -> bool:
    return path.removeprefix(f"{FOLDER}/").partition(".")[0] in renewed


def _named(
    access: Access, ledger: Ledger, snapshots: Iterable[Listed], lapsed: set[str]
) -> set[str]:
    """Paths of the shard files that the ledger or a living snapshot names."""
    named = set(pc.unique(ledger.rows("unit", columns=["path"])["path"]).to_pylist())
    for listed in snapshots:
        hash, _, kind = listed.path.removeprefix(f"{FOLDER}/").partition(".")
        if kind == "arrow" and hash not in lapsed:
            try:
                data = access.read(listed.path)
            except FileNotFoundError:
                continue  # another vacuum's
            table = parse_snapshot(data, hash, where=access.full(listed.path)).table
            named |= set(table["path"].to_pylist())
    return named
