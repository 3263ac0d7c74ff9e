"""A checkpoint as a local file: downloads are kept per node and checked before anybody parses."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.identity import canonical_uri
from tokenmill.schemas.tokenizer import Checkpoint
from tokenmill.store.access import Access
from tokenmill.store.cache import LocalCache


def fetch(checkpoint: Checkpoint) -> Path:
    """The local file of a checkpoint: the file itself, or the node's copy of an s3:// object.

    `sha256` is compared with the bytes at every call. Raises TokenizerError where nothing lies
    there or the hash differs; StoreUnavailable where the place does not answer.
    """
    where = canonical_uri(checkpoint.uri)
    path = Path(where).expanduser() if "://" not in where else _download(checkpoint, where)
    if not path.exists():
        raise _missing(where)
    if checkpoint.sha256 is not None:
        _check(path, where, checkpoint.sha256)
    return path


def _download(checkpoint: Checkpoint, where: str) -> Path:
    folder, _, name = where.rpartition("/")
    try:
        return LocalCache().fetch(Access(folder), name)
    except FileNotFoundError:
        raise _missing(where) from None


def _missing(where: str) -> TokenizerError:
    return TokenizerError(
        "the checkpoint does not exist",
        where=where,
        remedy="check `checkpoint` in the job file; every node must reach it by this name",
    )


def _check(path: Path, where: str, wanted: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TokenizerError(
            "the checkpoint cannot be read", where=where, why=error.strerror or str(error)
        ) from None
    if found != wanted.lower():
        raise TokenizerError(
            "the checkpoint is not the file that the job names",
            where=where,
            why=f"its SHA-256 is {found}, the job says {wanted}",
            remedy="fetch the right file, or correct `sha256`",
        )
