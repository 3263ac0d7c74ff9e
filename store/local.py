"""A folder as a store: atomic, durable writes with nothing but POSIX."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tokenmill.schemas.errors import InputChanged, StoreError, StoreUnavailable
from tokenmill.store.paths import HIDDEN, Listed

_FULL = {errno.ENOSPC, errno.EDQUOT}
_AWAY = {errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.EAGAIN, errno.EHOSTDOWN, errno.ENETDOWN}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class LocalFolder:
    """The operations of an Access on a local folder; paths are relative and already checked.

    Not retried: a local file system does not blink, and NFS retries by itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, path: str) -> Path:
        return self.root / path if path else self.root

    def read(self, path: str, version: str | None) -> bytes:
        with self._reading(path) as file:
            found = _version(os.fstat(file.fileno()))
            _same(version, found, self.path(path))
            data = file.read()
            # a file that is rewritten in place while it is read must not pass for either version
            if version is not None:
                _same(version, _version(os.fstat(file.fileno())), self.path(path))
            return data

    def open(self, path: str, version: str | None) -> BinaryIO:
        with read_errors(self.path(path)):
            file = self.path(path).open("rb")
        try:
            _same(version, _version(os.fstat(file.fileno())), self.path(path))
        except InputChanged:
            file.close()
            raise
        return file

    @contextmanager
    def _reading(self, path: str) -> Iterator[BinaryIO]:
        with read_errors(self.path(path)), self.path(path).open("rb") as file:
            yield file

    def stat(self, path: str) -> Listed:
        with read_errors(self.path(path)):
            found = self.path(path).stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a file", str(self.path(path)))
        return _listed(path, found)

    def create(self, path: str, data: bytes) -> bool:
        target = self.path(path)
        with write_errors(target):
            make_folder(target.parent)
            temporary = _write_temporary(target, data)
            try:
                return _publish_new(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def replace(self, path: str, data: bytes, version: str) -> str | None:
        target = self.path(path)
        with write_errors(target), _locked(target):
            try:
                current = target.stat()
            except FileNotFoundError:
                return None
            if _version(current) != version:
                return None
            temporary = _write_temporary(target, data)
            # Inodes are used again and clocks tick coarsely: only a time that never goes back
            # keeps two contents from having one version.
            written = temporary.stat()
            if written.st_mtime_ns <= current.st_mtime_ns:
                os.utime(temporary, ns=(written.st_atime_ns, current.st_mtime_ns + 1))
            new = _version(temporary.stat())
            temporary.replace(target)
            sync_folder(target.parent)
            return new

    def put(self, local: Path, path: str, move: bool) -> Listed:
        target = self.path(path)
        with write_errors(target):
            make_folder(target.parent)
            if move and local.stat().st_dev == target.parent.stat().st_dev:
                temporary = local
            else:
                temporary = _temporary(target)
                shutil.copyfile(local, temporary)
            os.utime(temporary)  # written when it becomes visible: vacuum goes by this time
            _sync_file(temporary)
            temporary.replace(target)
            sync_folder(target.parent)
            if move:
                local.unlink(missing_ok=True)
        return self.stat(path)

    def list(self, prefix: str, hidden: bool) -> Iterator[Listed]:
        top = self.path(prefix)
        if not top.is_dir():
            return
        with read_errors(top):
            yield from _walk(top, f"{prefix}/" if prefix else "", hidden, frozenset())

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with write_errors(self.path(path)):
                try:
                    self.path(path).unlink(missing_ok=True)
                except NotADirectoryError:
                    continue

    def now(self, path: str) -> float:
        clock = self.path(path)
        with write_errors(clock):
            make_folder(clock.parent)
            file = os.open(clock, os.O_CREAT | os.O_WRONLY, 0o644)
            try:
                os.utime(file)  # without times: a file server sets its own clock
                return os.fstat(file).st_mtime
            finally:
                os.close(file)


def _walk(folder: Path, prefix: str, hidden: bool, above: frozenset[str]) -> Iterator[Listed]:
    """Files below `folder` in the order of their full paths; links are followed, never upwards."""
    entries = [(e.name + "/" if e.is_dir() else e.name, e) for e in os.scandir(folder)]
    here = above | {str(folder.resolve())}
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        if name.startswith(HIDDEN) and not hidden:
            continue
        try:
            if name.endswith("/"):
                below = Path(entry.path)
                if not (entry.is_symlink() and str(below.resolve()) in here):
                    yield from _walk(below, prefix + name, hidden, here)
            elif entry.is_file():
                yield _listed(prefix + name, entry.stat())
        except FileNotFoundError:
            continue  # removed since the folder was read


def _listed(path: str, found: os.stat_result) -> Listed:
    return Listed(
        path=path, size=found.st_size, version=_version(found), modified=found.st_mtime_ns / 1e9
    )


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"


def _same(wanted: str | None, found: str, path: Path) -> None:
    if wanted is not None and wanted != found:
        raise InputChanged(
            "the file is no longer the version that was planned",
            uri=str(path),
            where=str(path),
            why=f"version {found}, planned {wanted}",
        )


def _temporary(target: Path) -> Path:
    return target.with_name(f"{HIDDEN}{uuid.uuid4().hex}")


def _write_temporary(target: Path, data: bytes) -> Path:
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _publish_new(temporary: Path, target: Path) -> bool:
    """Give a finished file its name unless somebody has it. A link is atomic and never partial."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _locked(target):  # a file system without hard links: we at least exclude ourselves
            if target.exists():
                return False
            temporary.replace(target)
    sync_folder(target.parent)
    return True


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    side = target.with_name(f"{HIDDEN}lock-{target.name}")
    try:
        file = side.open("ab")
    except FileNotFoundError:
        yield  # no folder, so no target either
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, durably."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    _sync_file(folder)


def _sync_file(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (NotADirectoryError, IsADirectoryError) as error:
        # an object store has no folders: there, too, nothing lies under such a name
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused(error, path, "read") from error


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(error, path, "write") from error


def _refused(error: OSError, path: Path, doing: str) -> StoreError:
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return StoreUnavailable(
            "no space left", where=str(path), why=why, remedy="free some space; the run goes on"
        )
    if error.errno in _AWAY:
        return StoreUnavailable(f"cannot {doing}", where=str(path), why=why)
    if error.errno in _CLOSED:
        return StoreError(
            f"not allowed to {doing}",
            where=str(path),
            why=why,
            remedy="give this user the permission, or name another folder",
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StoreError(
            "a file is in the way of a folder",
            where=str(path),
            why=why,
            remedy="name a folder, or a path that does not exist yet",
        )
    return StoreError(f"cannot {doing}", where=str(path), why=why)
