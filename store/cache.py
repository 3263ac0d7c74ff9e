"""Whole objects on the local disk: bounded, one download per node, nothing half-written."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from tokenmill.schemas.errors import CorruptStore
from tokenmill.store.access import Access
from tokenmill.store.local import read_errors, write_errors
from tokenmill.store.paths import HIDDEN

DEFAULT_BYTES = 20 << 30
CHUNK = 8 << 20


class LocalCache:
    """A folder of whole objects, shared by the processes of a node; the least used go first.

    root: default the environment's TOKENMILL_CACHE, or the platform's cache folder.
    max_bytes: what `fetch` keeps at most, beside the file that it returns.
    """

    def __init__(self, root: Path | None = None, *, max_bytes: int = DEFAULT_BYTES) -> None:
        configured = os.environ.get("TOKENMILL_CACHE")
        default = Path(configured) if configured else platformdirs.user_cache_path("tokenmill")
        self.root = (root or default) / "objects"
        self.max_bytes = max_bytes

    def fetch(
        self, access: Access, path: str, *, version: str | None = None, sha256: str | None = None
    ) -> Path:
        """A local file with the object's bytes; a local store's own file.

        version: the object must have it; without one the current version is looked up.
        sha256: 64 hex digits that a download must have. A file may be evicted while somebody
        has it open or mapped: the bytes stay readable until it is closed.
        Raises FileNotFoundError, InputChanged, CorruptStore (hash), StoreUnavailable (no space).
        """
        local = access.local_path(path)
        if local is not None:
            with read_errors(local):
                if sha256 is not None:
                    _check(_digest(local), sha256, str(local))
                local.stat()
            return local
        version = version or access.stat(path).version
        target = self.root / self._name(access, path, version)
        with self._one_at_a_time(target):
            if not target.exists():
                self._download(access, path, version, sha256, target)
            with write_errors(target):
                os.utime(target)  # used now: evicted last
        self.evict(keep=target)
        return target

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file `name`, which says all that its bytes depend on; `make` writes it into the path
        that it is given, once per node. Raises what `make` raises, StoreUnavailable (no space).
        """
        target = self.root / name
        with self._one_at_a_time(target):
            if not target.exists():
                temporary = target.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
                try:
                    with write_errors(target):
                        make(temporary)
                        temporary.replace(target)
                finally:
                    temporary.unlink(missing_ok=True)
            with write_errors(target):
                os.utime(target)  # used now: evicted last
        self.evict(keep=target)
        return target

    def _name(self, access: Access, path: str, version: str) -> str:
        # a version names its bytes, so a replaced object is another file
        digest = hashlib.sha256(f"{access.full(path)}\n{version}".encode()).hexdigest()
        return digest[:40] + Path(path).suffix

    @contextmanager
    def _one_at_a_time(self, target: Path) -> Iterator[None]:
        with write_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f"{HIDDEN}lock-{target.name[:2]}").open("ab")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _download(
        self, access: Access, path: str, version: str, sha256: str | None, target: Path
    ) -> None:
        temporary = target.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
        digest = hashlib.sha256()
        try:
            with (
                access.open(path, version=version) as remote,
                write_errors(target),
                temporary.open("xb") as file,
            ):
                while chunk := remote.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
            if sha256 is not None:
                _check(digest.hexdigest(), sha256, access.full(path))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def evict(self, keep: Path | None = None) -> None:
        """Remove the files used longest ago until `max_bytes` hold; never `keep`."""
        found = sorted(self._others(keep))
        total = sum(size for _, size, _ in found)
        for _, size, file in found:
            if total <= self.max_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _others(self, keep: Path | None) -> Iterator[tuple[int, int, Path]]:
        """(last use, size, file) of every finished file but `keep`."""
        for file in self.root.iterdir():
            if file == keep or file.name.startswith(HIDDEN):
                continue
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue  # another process evicted it
            yield stat.st_mtime_ns, stat.st_size, file


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check(found: str, wanted: str, where: str) -> None:
    if found != wanted.lower():
        raise CorruptStore(
            "the file is not what its hash says",
            where=where,
            why=f"SHA-256 {found}, expected {wanted}",
            remedy="fetch or restore the file, or correct the hash",
        )
