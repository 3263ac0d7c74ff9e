"""Opening the very version of an object that was planned, local or on S3.

Local files are opened directly: version = size, mtime_ns and inode, compared at opening and again
after reading, by descriptor and by path, so that a file changed in place or replaced while it was
read is seen. S3 objects go through store.access, conditional on the ETag at every range read.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from typing import BinaryIO

from tokenmill.schemas.errors import InputChanged, SourceError, StoreError, StoreUnavailable
from tokenmill.schemas.work import Input
from tokenmill.store.access import Access
from tokenmill.workers.sources.bounded import Damaged

_HASH_BYTES = 1 << 20


@lru_cache(maxsize=16)
def access_to(root: str) -> Access:
    """One access per listed root and process: it holds connections."""
    return Access(root, any_names=True)


def local_version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def changed(uri: str, why: str) -> InputChanged:
    return InputChanged(
        f"{uri} is no longer the version that was planned",
        uri=uri,
        why=why,
        remedy="nothing to do: it is planned again",
    )


def os_error(uri: str, error: OSError) -> Exception:
    """What an operating system's refusal to open or read `uri` means here."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return changed(uri, "it is gone")
    if isinstance(error, PermissionError):
        return SourceError(
            f"{uri} may not be read",
            why=error.strerror,
            remedy="give read permission, or leave it out with source.exclude",
        )
    return StoreUnavailable(f"{uri} cannot be read", why=str(error), remedy="retried later")


class Opened:
    """Context manager: the bytes of one object in the planned version, as a seekable file.

    Raises InputChanged on entering, and on leaving where the body ended well or with Damaged
    (a file that is being rewritten looks damaged); SourceError, StoreUnavailable.
    """

    def __init__(
        self,
        uri: str,
        version: str,
        *,
        root: str = "",
        buffered: bool = False,
        at_once: bool = False,
    ) -> None:
        """buffered: small reads are cheap. at_once: all of it is wanted, and it is small."""
        self._uri = uri
        self._version = version
        self._root = root
        self._buffering = 1 << 17 if buffered else 0
        self._at_once = at_once
        self._local = "://" not in uri
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        self._file = self._open_local() if self._local else self._open_remote()
        return self._file

    def _open_local(self) -> BinaryIO:
        try:
            # O_NONBLOCK: a FIFO that took the file's place must not hang us
            fd = os.open(self._uri, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise os_error(self._uri, error) from None
        file: BinaryIO = os.fdopen(fd, "rb", buffering=self._buffering)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or local_version(status) != self._version:
            file.close()
            raise changed(self._uri, f"{local_version(status)} lies there, not {self._version}")
        return file

    def _open_remote(self) -> BinaryIO:
        root, path = split_root(self._uri, self._root)
        try:
            access = access_to(root)
            if self._at_once:  # one request instead of two
                return io.BytesIO(access.read(path, version=self._version))
            return access.open(path, version=self._version)
        except FileNotFoundError:
            raise changed(self._uri, "it is gone") from None
        except StoreUnavailable:
            raise
        except StoreError as error:
            raise as_source_error(self._uri, error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            if self._local and (kind is None or issubclass(kind, Damaged)):
                self._check_local(self._file.fileno())
        finally:
            self._file.close()
        if isinstance(error, FileNotFoundError) or (
            isinstance(error, OSError) and error.errno is not None
        ):
            raise os_error(self._uri, error) from None
        if isinstance(error, StoreError) and not isinstance(error, StoreUnavailable):
            raise as_source_error(self._uri, error) from error

    def _check_local(self, fd: int) -> None:
        try:
            versions = local_version(os.fstat(fd)), local_version(os.stat(self._uri))  # noqa: PTH116 - once per file of a hot path
        except OSError as error:
            raise os_error(self._uri, error) from None
        for version in versions:
            if version != self._version:
                raise changed(self._uri, f"while it was read: now {version}, not {self._version}")


def as_source_error(uri: str, error: StoreError) -> SourceError:
    return SourceError(
        error.what if uri in error.what else f"{uri}: {error.what}",
        where=error.where,
        why=error.why,
        remedy=error.remedy,
    )


def split_root(uri: str, root: str) -> tuple[str, str]:
    """`uri` as (root to access, path below it); the parent folder where `root` is not given."""
    root = root.rstrip("/")
    if root and uri.startswith(root + "/"):
        return root, uri[len(root) + 1 :]
    parent, _, name = uri.rpartition("/")
    return parent, name


def open_input(input_: Input, *, buffered: bool = False, at_once: bool = False) -> Opened:
    return Opened(input_.uri, input_.version, root=input_.root, buffered=buffered, at_once=at_once)


def content_hash(uri: str, version: str, root: str) -> str:
    """SHA-256 (hex) of the bytes, streamed."""
    digest = hashlib.sha256()
    with Opened(uri, version, root=root) as file:
        for block in blocks(file, _HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while block := file.read(size):
        yield block
