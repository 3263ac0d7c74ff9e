"""Rules for the two kinds of names: the URI of a root, and a path relative to it.

Pure text, no I/O. Paths that are found inside ledgers, snapshots and shards pass through
`relative` before they reach a disk or a bucket, so nothing written by a stranger can escape.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tokenmill.schemas.errors import StoreError

# Files that are not finished yet, and lock files: never listed as content.
HIDDEN = ".tm-"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SUPPORTED = "a folder, file://…, or s3://bucket/prefix"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One object. `path` is relative to the root of its Access; `size` in bytes.

    version: ETag without quotes, or "{size}-{mtime_ns}-{inode}" of a local file.
    modified: Unix seconds by the store's clock.
    """

    path: str
    size: int
    version: str
    modified: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """A parsed root: a bucket with a key prefix ("" or without outer slashes), or a folder."""

    uri: str  # canonical: no user-info, no query
    bucket: str | None
    prefix: str

    @property
    def local(self) -> bool:
        return self.bucket is None


def parse_root(uri: str) -> Root:
    """The root that `uri` names. Raises StoreError for a scheme that is not supported."""
    found = _SCHEME.match(uri)
    scheme = found.group()[:-3].lower() if found else "file"
    if scheme == "file":
        folder = unquote(urlsplit(uri).path) if found else uri
        return _local_root(uri, folder)
    if scheme not in ("s3", "s3a"):
        raise StoreError(
            f"{scheme}:// is not a place that tokenmill can read or write",
            where=without_secrets(uri),
            remedy=f"use {_SUPPORTED}",
        )
    parts = urlsplit(uri)
    bucket = parts.netloc.rpartition("@")[2]
    prefix = posixpath.normpath(parts.path).strip("/") if parts.path.strip("/") else ""
    if not bucket or ".." in parts.path.split("/"):
        raise StoreError(
            "not an S3 address", where=without_secrets(uri), remedy="write s3://bucket/prefix"
        )
    return Root(
        uri=f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}", bucket=bucket, prefix=prefix
    )


def _local_root(uri: str, folder: str) -> Root:
    if not folder or "\0" in folder:
        raise StoreError("not a folder's name", where=repr(uri), remedy=f"use {_SUPPORTED}")
    # links are kept: two names of one folder are the user's affair
    absolute = posixpath.normpath(Path(folder).expanduser().absolute())
    return Root(uri=absolute, bucket=None, prefix=absolute)


def relative(path: str) -> str:
    """`path` normalised ("" is the root itself).

    Raises StoreError where it could leave the root or mean different things in different stores:
    "..", a scheme, a backslash, a leading slash, a NUL.
    """
    parts = path.split("/")
    if ".." in parts or path.startswith("/") or "\\" in path or "\0" in path:
        raise _unsafe(path)
    if _SCHEME.match(path):
        raise _unsafe(path)
    return "/".join(part for part in parts if part not in ("", "."))


def verbatim(path: str) -> str:
    """`path` as a listing gave it: other people's names may hold backslashes or "//".

    Raises StoreError for what could leave the root all the same.
    """
    if ".." in path.split("/") or path.startswith("/") or "\0" in path:
        raise _unsafe(path)
    return path


def _unsafe(path: str) -> StoreError:
    return StoreError(
        "a path that could leave its store is refused",
        where=repr(path),
        why="paths are relative, without '..', schemes, backslashes or a leading slash",
        remedy="if a ledger or snapshot holds this path, it was not written by tokenmill",
    )


def without_secrets(text: str) -> str:
    """`text` without the user-info and the query of any URI in it: for messages and logs."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", re.sub(r"(://[^\s?\"']*)\?[^\s\"']*", r"\1", text))
