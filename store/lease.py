"""A run lease: who is at work on a pipeline. It saves GPU hours; correctness never rests on it.

One small object per pipeline, made by create-if-absent, renewed and given back by If-Match (never
deleted, so that no two holders can meet around a deletion), free when released or when the store's
clock says that it was not renewed for `ttl` seconds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenmill.schemas.errors import InputChanged, LeaseHeld, StoreError
from tokenmill.store.access import Access, Listed

TTL_SECONDS = 60.0
# Three renewals may fail before the lease can be taken from us.
RENEWALS_PER_TTL = 4
_TRIES = 5


class Lease:
    """Held from `acquire` until `release`. As a context manager it renews itself in a thread.

    `lost`: somebody else holds it now, or may: stop taking new work. What is already done may
    still be committed.
    """

    def __init__(
        self, access: Access, path: str, record: Mapping[str, Any], version: str, ttl: float
    ) -> None:
        self._access = access
        self._path = path
        self._record = dict(record)
        self._version = version
        self._ttl = ttl
        self._renewed = time.monotonic()
        self._lost = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        access: Access,
        pipeline: str,
        holder: Mapping[str, Any],
        *,
        ttl: float = TTL_SECONDS,
    ) -> Lease:
        """holder: host, pid, run, started (JSON values): what a second run is told.

        Raises LeaseHeld, StoreUnavailable, StoreError.
        """
        path = f"leases/{pipeline}.json"
        record = {**holder, "token": uuid.uuid4().hex, "released": False, "renewals": 0}
        data = _encode(record)
        for _ in range(_TRIES):
            if not access.create(path, data):
                version = _free(access, path, pipeline, ttl)
                if version is None:
                    continue
                access.replace(path, data, version)
            # ask what is there now, whatever the answer was: answers can be lost
            mine = _version_held(access, path, record)
            if mine is not None:
                return cls(access, path, record, mine, ttl)
        raise LeaseHeld(
            f"other runs of {pipeline} are fighting for its lease",
            where=access.full(path),
            remedy="run again in a minute",
        )

    @property
    def lost(self) -> bool:
        return self._lost.is_set() or time.monotonic() - self._renewed > self._ttl

    def tell(self, facts: Mapping[str, Any]) -> None:
        """What the next renewal says beside the holder: JSON values, for people who watch."""
        # replaced, not changed: the renewing thread may be writing it out
        self._record = {**self._record, "progress": dict(facts)}

    def renew(self) -> bool:
        """Whether we still hold it. Raises StoreUnavailable when nobody answers."""
        with self._lock:
            if self._lost.is_set():
                return False
            asked = time.monotonic()
            self._record["renewals"] += 1
            version = self._access.replace(self._path, _encode(self._record), self._version)
            # after a lost answer our own renewal looks like somebody else's
            version = version or _version_held(self._access, self._path, self._record)
            if version is None:
                self._lost.set()
                return False
            self._version, self._renewed = version, asked
            return True

    def release(self) -> None:
        """Give it back; harmless when it is lost already. Raises StoreUnavailable."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            if not self._lost.is_set():
                free = {**self._record, "released": True}
                self._access.replace(self._path, _encode(free), self._version)
                self._lost.set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name="tokenmill-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except StoreError:
            # it lapses by itself; an error here must not hide how the run ended
            return

    def _keep(self) -> None:
        while not self._done.wait(self._ttl / RENEWALS_PER_TTL):
            try:
                if not self.renew():
                    return
            except StoreError:
                continue  # `lost` tells when it has been too long


def _version_held(access: Access, path: str, record: Mapping[str, Any]) -> str | None:
    """The version of the lease if it carries our token."""
    try:
        found = access.stat(path)
        there = _decode(access.read(path, version=found.version))
    except (FileNotFoundError, InputChanged):
        return None
    return found.version if there.get("token") == record["token"] else None


def _free(access: Access, path: str, pipeline: str, ttl: float) -> str | None:
    """The version to replace when the lease is free; None: look again. Raises LeaseHeld."""
    try:
        found = access.stat(path)
        record = _decode(access.read(path, version=found.version))
    except (FileNotFoundError, InputChanged):
        return None
    age = access.now() - found.modified
    if record.get("released") is True or age > ttl or _gone(record):
        return found.version
    raise _held(access, path, pipeline, record, found, age, ttl)


def this_process() -> dict[str, Any]:
    """What a lease must say of its holder so that a later run on the same machine can tell, at
    once and without doubt, that the holder is dead: machine and pid namespace, pid, birth."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "place": _place(), "born": _born(pid)}


def _gone(record: Mapping[str, Any]) -> bool:
    """The holder ran here and runs no more: killed, its lease need not lapse first."""
    place, pid, born = (record.get(name) for name in ("place", "pid", "born"))
    if not place or not born or not isinstance(pid, int) or place != _place():
        return False
    return bool(_born(pid) != born)


def _place() -> str:
    """This boot of this kernel and this pid namespace; "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When the process began, in clock ticks since boot; "" when there is none (or a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name may hold spaces
    return "" if fields[0] in "ZX" else fields[19]


def _held(
    access: Access,
    path: str,
    pipeline: str,
    record: Mapping[str, Any],
    found: Listed,
    age: float,
    ttl: float,
) -> LeaseHeld:
    who = ", ".join(f"{name} {record[name]}" for name in ("host", "pid", "run") if name in record)
    since = f", started {record['started']}" if "started" in record else ""
    return LeaseHeld(
        f"another run of {pipeline} is at work: {who or 'it does not say who'}{since}",
        where=access.full(path),
        why=f"it last renewed its lease {max(age, 0):.0f} s ago",
        remedy=f"wait for it; if it is dead, its lease lapses {ttl:.0f} s after its last renewal; "
        "or run beside it with --no-lease (no cell is committed twice, but work may be done twice)",
    )


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def _decode(data: bytes) -> dict[str, Any]:
    """A lease that is not readable counts as one that says nothing: it lapses."""
    try:
        record = json.loads(data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
