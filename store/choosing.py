"""Which snapshot a reader gets: the current one, one named by its hash, or one kept by a tag."""

from __future__ import annotations

import hashlib

from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.store.access import Access
from tokenmill.store.ledger import Ledger
from tokenmill.store.snapshot import (
    FOLDER,
    Snapshot,
    snapshot_bytes,
    snapshot_table,
    tagged,
    take_snapshot,
)

HASH_DIGITS = 64


def choose_snapshot(
    access: Access, tag: str | None, snapshot: str | None, *, pin: bool
) -> Snapshot:
    """pin: write the current snapshot into the store, so that vacuum spares what it names.

    Raises JobError for two names at once, StoreError where there is no such snapshot or store.
    """
    if tag is not None and snapshot is not None:
        raise JobError("give either a tag or a snapshot, not both", where=access.uri)
    if tag is not None:
        return Snapshot.load(access, tagged(access, tag))
    if snapshot is not None:
        return Snapshot.load(access, full_hash(access, snapshot))
    ledger = Ledger.open(access)
    if pin:
        return take_snapshot(access, ledger)
    table = snapshot_table(ledger)
    return Snapshot(hash=hashlib.sha256(snapshot_bytes(table)).hexdigest(), table=table)


def full_hash(access: Access, beginning: str) -> str:
    """The snapshot whose hash begins so: people copy twelve digits. Raises StoreError."""
    if len(beginning) >= HASH_DIGITS:
        return beginning
    names = [listed.path.rpartition("/")[2] for listed in access.list(FOLDER)]
    found = [n.removesuffix(".arrow") for n in names if n.endswith(".arrow")]
    matching = [name for name in found if beginning and name.startswith(beginning)]
    if len(matching) != 1:
        raise StoreError(
            f"{len(matching) or 'no'} snapshots begin with {beginning!r}",
            where=access.full(FOLDER),
            remedy="give more digits of its hash, or open the store without naming a snapshot",
        )
    return matching[0]
