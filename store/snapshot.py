"""Snapshots: self-contained, content-hashed lists of what a reader may see.

`snapshots/<sha256 of its bytes>.arrow` names every visible shard file and says all that a reader
needs of it; it outlives ledger versions and compactions. The same ledger state gives the same
bytes: rows sorted, no clocks. `snapshots/<sha256>.touch` is renewed by readers, at most daily;
`snapshots/tags/<name>` keeps one for ever; others lapse (store/upkeep.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.schemas.errors import CorruptStore, StoreError, StoreUnavailable
from tokenmill.schemas.ledger import FORGOTTEN
from tokenmill.store.access import Access
from tokenmill.store.forgotten import (
    FORGOTTEN_COLUMNS,
    REFUSED_COLUMNS,
    masked_rows,
    with_masked,
)
from tokenmill.store.ledger import Ledger
from tokenmill.store.paths import relative
from tokenmill.store.validity import (
    ATTEMPT,
    CELL_COLUMNS,
    Ranges,
    VisibleUnits,
    valid_cells,
    visible_units,
)

SNAPSHOT_FORMAT = 1
META_FORMAT = b"tokenmill.snapshot_format"
FOLDER = "snapshots"
TAGS = f"{FOLDER}/tags"
RENEW_SECONDS = 86_400.0
_BATCH_ROWS = 65_536
_HASH = re.compile(r"[0-9a-f]{64}\Z")
# Paths that our writers make need no second look; of a million, each would cost microseconds.
_PLAIN_PATH = r"^[\w=+-][\w=+.-]*(/[\w=+-][\w=+.-]*)*$"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")

_RANGE = pa.struct([pa.field("start", pa.int64(), False), pa.field("end", pa.int64(), False)])
SNAPSHOT_SCHEMA = pa.schema(
    [
        ("pipeline", pa.string()),
        ("stream", pa.string()),
        ("unit", pa.binary()),
        ("path", pa.string()),  # relative to the store's root
        ("first_row", pa.int64()),  # number of the file's first row within (unit, stream)
        ("rows", pa.int64()),  # of the file, excluded ones too; as the next three
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("content_hash", pa.binary()),
        ("encoding", pa.string()),
        ("order_hash", pa.binary()),  # of the whole (unit, stream)
        ("tokenizer", pa.string()),
        ("modality", pa.string()),
        ("space", pa.string()),
        ("recipe", pa.string()),
        # rows [start, end) of (unit, stream) within this file that are superseded or forgotten
        ("exclude", pa.list_(_RANGE)),
    ],
    metadata={META_FORMAT: str(SNAPSHOT_FORMAT).encode()},
)
_FROM_LEDGER = [name for name in SNAPSHOT_SCHEMA.names if name != "exclude"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """hash: 64 hex digits of the SHA-256 of the stored bytes. table: SNAPSHOT_SCHEMA, sorted by
    pipeline, stream, unit, first_row, path."""

    hash: str
    table: pa.Table

    @classmethod
    def load(cls, access: Access, hash: str) -> Snapshot:
        """Read and check a snapshot; renews it, best effort.

        Raises StoreError where there is none of this hash, CorruptStore where its bytes are not
        what the name says, its format is newer or a path in it could escape.
        """
        try:
            data = access.read(_path(hash))
        except FileNotFoundError:
            raise StoreError(
                f"no snapshot {hash[:12]}… in this store",
                where=access.full(FOLDER),
                why="it never was, or it lapsed: untagged and unused for 30 days",
                remedy="open the store without naming a snapshot; tag those that must stay",
            ) from None
        snapshot = parse_snapshot(data, hash, where=access.full(_path(hash)))
        renew(access, hash)
        return snapshot


def take_snapshot(access: Access, ledger: Ledger) -> Snapshot:
    """The snapshot of the ledger as it is now, stored unless it is there already.

    Where the store may not be written the snapshot is only held in memory, with a warning.
    Raises StoreUnavailable, CorruptStore.
    """
    data = snapshot_bytes(snapshot_table(ledger))
    digest = hashlib.sha256(data).hexdigest()
    # before it is stored: one that cannot be believed would stop every vacuum
    snapshot = parse_snapshot(data, digest, where=access.full(_path(digest)))
    try:
        made = access.create(_path(digest), data)
        # also where it seems new: after a lost answer, an old one with the same bytes passes for
        # ours (found by the simulator)
        if not made or time.time() - access.stat(_path(digest)).modified > RENEW_SECONDS:
            renew(access, digest)
    except StoreUnavailable:
        raise
    except StoreError as refused:
        warnings.warn(
            "this store may not be written: the snapshot is not kept in it, and vacuum does not "
            f"know that we read ({refused.what})",
            stacklevel=2,
        )
    return snapshot


def snapshot_table(ledger: Ledger) -> pa.Table:
    """The visible shard files of the newest version, SNAPSHOT_SCHEMA."""
    wanted = {
        "unit": tuple(dict.fromkeys((*_FROM_LEDGER, *ATTEMPT))),
        "input": CELL_COLUMNS,
        "forgotten": FORGOTTEN_COLUMNS,
    }
    read = ledger.tables(wanted)
    if read["forgotten"].num_rows:  # most stores have none: then quarantine is not read
        read = ledger.tables({**wanted, "quarantine": (*REFUSED_COLUMNS, "reason")})
    units, cells = read["unit"], read["input"]
    visible = visible_units(units, cells, valid_cells(cells))
    hidden = _hidden_rows(units, visible, read)
    shown = visible.mask & np.asarray(units["path"].is_valid())
    shown[_wholly_hidden(units, hidden)] = False
    indices = np.flatnonzero(shown)
    exclude = [
        [{"start": a, "end": b} for a, b in hidden.get(index, ())] for index in indices.tolist()
    ]
    table = units.select(_FROM_LEDGER).take(pa.array(indices))
    table = table.append_column(
        SNAPSHOT_SCHEMA.field("exclude"), pa.array(exclude, _exclude_type())
    )
    keys = ("pipeline", "stream", "unit", "first_row", "path")
    table = table.sort_by([(name, "ascending") for name in keys]).combine_chunks()
    return table.cast(SNAPSHOT_SCHEMA)


def _hidden_rows(
    units: pa.Table, visible: VisibleUnits, read: Mapping[str, pa.Table]
) -> dict[int, Ranges]:
    """Per unit row: the ranges that are superseded or forgotten."""
    hidden = dict(visible.exclude)
    if read["forgotten"].num_rows:
        refused = read["quarantine"]
        refused = refused.filter(pc.equal(refused["reason"], FORGOTTEN))
        for index, rows in masked_rows(units, read["forgotten"], refused).items():
            hidden[index] = with_masked(hidden.get(index, ()), rows)
    return hidden


def _wholly_hidden(units: pa.Table, hidden: Mapping[int, Ranges]) -> list[int]:
    """A file of which nothing is left to see is not named: nothing then keeps it alive."""
    rows = units["rows"].to_pylist() if hidden else []
    return [
        index for index, ranges in hidden.items() if sum(b - a for a, b in ranges) >= rows[index]
    ]


def snapshot_bytes(table: pa.Table) -> bytes:
    """Arrow IPC file with zstd, in batches of a fixed size: the same rows give the same bytes."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, SNAPSHOT_SCHEMA, options=options) as writer:
        writer.write_table(table, max_chunksize=_BATCH_ROWS)
    return sink.getvalue()


def parse_snapshot(data: bytes, hash: str, *, where: str) -> Snapshot:
    """Bytes of unknown origin to a snapshot. Raises CorruptStore."""
    found = hashlib.sha256(data).hexdigest()
    if found != hash:
        raise _corrupt("a snapshot is not what its name says", where, f"its hash is {found}")
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            _check_format(reader.schema, where)
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _corrupt("a snapshot is not readable", where, str(error)) from error
    plain = pc.match_substring_regex(table["path"], _PLAIN_PATH).fill_null(False)
    for path in table["path"].filter(pc.invert(plain)).to_pylist():
        if not path or _escapes(path):
            raise _corrupt("a snapshot names a file outside its store", where, f"path {path!r}")
    return Snapshot(hash=hash, table=table)


def renew(access: Access, hash: str) -> None:
    """Tell vacuum that the snapshot is in use; at most one write a day, best effort: a reader
    without write permission reads on."""
    touch = f"{FOLDER}/{hash}.touch"
    try:
        try:
            marker = access.stat(touch)
        except FileNotFoundError:
            access.create(touch, b"0")
            return
        if time.time() - marker.modified > RENEW_SECONDS:
            access.replace(touch, f"{time.time():.0f}".encode(), marker.version)
    except StoreError:
        return


# -- tags --------------------------------------------------------------------------------------


def tags(access: Access) -> dict[str, str]:
    """Tag -> snapshot hash. Raises CorruptStore for a tag that is not one."""
    names = [listed.path.rpartition("/")[2] for listed in access.list(TAGS)]
    return {name: tagged(access, name) for name in names}


def tagged(access: Access, name: str) -> str:
    """The snapshot that a tag keeps. Raises StoreError where there is no such tag."""
    path = tag_path(name)
    try:
        data = access.read(path)
    except FileNotFoundError:
        raise StoreError(
            f"no tag {name!r} in this store",
            where=access.full(TAGS),
            remedy="`tokenmill ls STORE` shows the tags",
        ) from None
    try:
        found = json.loads(data)["snapshot"]
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(
            f"the tag {name!r} is not readable", access.full(path), str(error)
        ) from error
    if not isinstance(found, str) or not _HASH.match(found):
        raise _corrupt(f"the tag {name!r} names no snapshot", access.full(path), repr(found))
    return found


def tag_path(name: str) -> str:
    """Raises StoreError for what cannot be a tag."""
    if not _TAG.match(name):
        raise StoreError(
            f"{name!r} cannot be a tag",
            why="a tag is letters, digits, '.', '_' and '-', at most 128, not beginning with a dot",
        )
    return f"{TAGS}/{name}"


def snapshot_path(hash: str) -> str:
    return _path(hash)


# -- parts -------------------------------------------------------------------------------------


def _path(hash: str) -> str:
    if not _HASH.match(hash):
        raise StoreError(
            f"{hash!r} is not the hash of a snapshot",
            why="a snapshot is named by 64 hexadecimal digits",
            remedy="for a tag, ask by tag",
        )
    return f"{FOLDER}/{hash}.arrow"


def _exclude_type() -> pa.DataType:
    return SNAPSHOT_SCHEMA.field("exclude").type


def _check_format(schema: pa.Schema, where: str) -> None:
    version = (schema.metadata or {}).get(META_FORMAT, b"").decode("ascii", "replace")
    if version.isdigit() and int(version) > SNAPSHOT_FORMAT:
        raise CorruptStore(
            f"the snapshot has format {version}, this tokenmill reads up to {SNAPSHOT_FORMAT}",
            where=where,
            remedy="upgrade tokenmill",
        )
    if version != str(SNAPSHOT_FORMAT) or not schema.equals(SNAPSHOT_SCHEMA):
        raise _corrupt("a snapshot has not the columns of one", where, str(schema.names))


def _escapes(path: str) -> bool:
    try:
        return relative(path) != path
    except StoreError:
        return True


def _corrupt(what: str, where: str, why: str) -> CorruptStore:
    return CorruptStore(
        what,
        where=where,
        why=why,
        remedy="take another snapshot: open the store without naming one",
    )
