"""The one door to bytes at rest: a folder or an S3 prefix behind the same few operations.

Credentials, retry, conditional create and replace live here (and in local.py, s3.py below it) and
nowhere else. Errors are those of schemas.errors, and FileNotFoundError where nothing lies under a
name. What may pass by itself (time-outs, 5xx, resets, expired credentials) is tried again with
jittered back-off and then raised as StoreUnavailable; a full disk is StoreUnavailable at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

from tokenmill.schemas.errors import StoreError
from tokenmill.store.local import LocalFolder
from tokenmill.store.paths import Listed, parse_root, relative, verbatim

__all__ = ["Access", "Listed"]

CLOCK = "leases/clock"
# Look-alikes that check before they write let a second writer in only when both come at once.
PROBE_WRITERS = 4


class Backend(Protocol):
    """What a kind of store can do; see Access for what each means."""

    def read(self, path: str, version: str | None) -> bytes: ...
    def open(self, path: str, version: str | None) -> BinaryIO: ...
    def stat(self, path: str) -> Listed: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def replace(self, path: str, data: bytes, version: str) -> str | None: ...
    def put(self, local: Path, path: str, move: bool) -> Listed: ...
    def list(self, prefix: str, hidden: bool) -> Iterator[Listed]: ...
    def delete(self, paths: Iterable[str]) -> None: ...
    def now(self, path: str) -> float: ...


class Access:
    """A root, which may not exist yet. Picklable; usable from several threads and after a fork.

    uri: a folder, file://… or s3://bucket/prefix; `self.uri` is canonical and holds no secrets.
    any_names: take paths as a listing of other people's files gave them (backslashes, "//");
        only what could leave the root is refused then. For sources, never for a store.
    Raises StoreError for a scheme that is not supported.
    """

    def __init__(self, uri: str, *, any_names: bool = False) -> None:
        root = parse_root(str(uri))
        self.uri: str = root.uri
        self.local: bool = root.local
        self._any_names = any_names
        self._backend: Backend = (
            LocalFolder(Path(root.prefix))
            if root.bucket is None
            else _s3_prefix(root.bucket, root.prefix)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def _path(self, path: str) -> str:
        return verbatim(path) if self._any_names else relative(path)

    def _file(self, path: str) -> str:
        """A path that may be written: never the root itself."""
        checked = self._path(path)
        if not checked:
            raise StoreError("the root itself is not a file", where=self.uri)
        return checked

    def full(self, path: str = "") -> str:
        """The canonical URI of a relative path ("" is the root)."""
        checked = self._path(path)
        return f"{self.uri.rstrip('/')}/{checked}" if checked else self.uri

    def read(self, path: str, *, version: str | None = None) -> bytes:
        """All bytes. Raises FileNotFoundError, or InputChanged where `version` is given and the
        object has another one."""
        return self._backend.read(self._path(path), version)

    def open(self, path: str, *, version: str | None = None) -> BinaryIO:
        """A seekable buffered reader.

        S3: range requests with read-ahead, all conditional on `version`, or else on the version
        found at the opening, so a replaced object raises InputChanged in the middle of a read. A
        local file's version is checked at the opening only. Raises as `read` does.
        """
        return self._backend.open(self._path(path), version)

    def stat(self, path: str) -> Listed:
        """Size, version and time of one object. Raises FileNotFoundError."""
        return self._backend.stat(self._path(path))

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` if nothing is there yet: atomic, durable, False when somebody was first.

        After an answer that was lost, an object with our very bytes counts as ours: put something
        unique into `data` where two writers must not both believe that they won.
        """
        return self._backend.create(self._file(path), data)

    def replace(self, path: str, data: bytes, version: str) -> str | None:
        """Write `data` over exactly `version`; the new version, or None when it lost."""
        return self._backend.replace(self._file(path), data, version)

    def put(self, local: Path, path: str, *, move: bool = False) -> Listed:
        """Make the file `local` the object `path`, durably, whatever was there.

        `move`: `local` is no longer needed (on one file system that saves the copy).
        """
        return self._backend.put(Path(local), self._file(path), move)

    def list(self, prefix: str = "", *, hidden: bool = False) -> Iterator[Listed]:
        """All files below the folder `prefix`, sorted by path; nothing when it does not exist.

        `hidden`: also temporary files that a killed writer left behind, for vacuum.
        """
        return self._backend.list(self._path(prefix).strip("/"), hidden)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are missing are fine."""
        self._backend.delete(self._file(path) for path in paths)

    def now(self) -> float:
        """The store's clock, Unix seconds (S3: whole seconds). Writes `leases/clock`."""
        return self._backend.now(CLOCK)

    def delta(self, path: str) -> tuple[str, dict[str, str]]:
        """(table URI, storage_options) for deltalake; the options may hold secrets."""
        return self.full(relative(path)), {} if self.local else _delta_options()

    def local_path(self, path: str) -> Path | None:
        """Where the file lies in the local file system; None for S3."""
        return Path(self.full(path)) if self.local else None

    def check(self) -> None:
        """Probe that this root can be created and written, and that a second writer is refused.

        Raises StoreError with a remedy; StoreUnavailable where nobody answers.
        """
        probe = f"leases/probe-{uuid.uuid4().hex}"
        try:
            self._check_create(probe)
            self._check_replace(probe)
        finally:
            self.delete([probe])

    def _check_create(self, probe: str) -> None:
        bids = [f"{probe} {n}".encode() for n in range(PROBE_WRITERS)]
        with ThreadPoolExecutor(PROBE_WRITERS) as pool:
            won = list(pool.map(lambda bid: self.create(probe, bid), bids))
        late = self.create(probe, b"late")
        if sum(won) != 1 or late or self.read(probe) != bids[won.index(True)]:
            raise self._unsafe("conditional create", f"{sum(won) + late} writers of one new object")

    def _check_replace(self, probe: str) -> None:
        first = self.stat(probe).version
        second = self.replace(probe, b"second", first)
        third = self.replace(probe, b"third", first)
        if second is None or third is not None or self.read(probe) != b"second":
            raise self._unsafe("conditional replace", "a writer with a stale version")

    def _unsafe(self, what: str, who: str) -> StoreError:
        return StoreError(
            f"this store does not honour {what}: two runs would lose each other's commits",
            where=self.uri,
            why=f"the probe let through {who}",
            remedy="use S3, or a server that honours If-None-Match and If-Match (SeaweedFS 4, "
            "MinIO, Ceph), or a folder",
        )


def _s3_prefix(bucket: str, prefix: str) -> Backend:
    # botocore is a sixth of the start of a run that has no S3
    from tokenmill.store.s3 import S3Prefix  # noqa: PLC0415 - see above

    return S3Prefix(bucket, prefix)


def _delta_options() -> dict[str, str]:
    from tokenmill.store import s3client  # noqa: PLC0415 - as above

    options = dict(s3client.credentials())
    options["AWS_REGION"] = s3client.region_name()
    # the only way to commit without a lock service; `Access.check` has shown that it works
    options["aws_conditional_put"] = "etag"
    url = s3client.endpoint()
    if url:
        options["AWS_ENDPOINT_URL"] = url
        options["AWS_ALLOW_HTTP"] = str(url.startswith("http://")).lower()
    return options
