"""Identities: inputs, samples, cells, recipes. Pure hashing, no I/O.

All ids are 16 bytes (BLAKE2b with a person string per kind, so that ids of different kinds never
collide by construction); content and recipe hashes are SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ID_BYTES = 16


def _id(person: bytes, *parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=ID_BYTES, person=person)
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))  # length-prefixed: ("a","bc") != ("ab","c")
        digest.update(raw)
    return digest.digest()


def canonical_uri(uri: str) -> str:
    """`uri` without query, fragment and user-info, its path normalised.

    Local paths stay plain absolute paths; `file://` is dropped. Secrets (signed queries,
    user:password@) never reach a shard, a ledger or a log by this road.
    """
    if "://" not in uri:
        return posixpath.normpath(uri)
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return posixpath.normpath(parts.path)
    host = parts.netloc.rpartition("@")[2]
    path = posixpath.normpath(parts.path) if parts.path else ""
    return urlunsplit((parts.scheme, host, path, "", ""))


def source_id(uri: str) -> bytes:
    """Identity of a place, whatever version lies there: 16 bytes of the canonical URI."""
    return _id(b"tm-source", uri)


def input_id(uri: str, version: str) -> bytes:
    """Identity of one version of one listed object (`version` is "" under `identity: path`)."""
    return _id(b"tm-input", uri, version)


def sample_ids(uri: str) -> Callable[[str], bytes]:
    """A function from a locator (member, row or time span) to the 16-byte sample id.

    The URI is hashed once: ids are made per sample on the hot path.
    """
    prefix = hashlib.blake2b(digest_size=ID_BYTES, person=b"tm-sample")
    raw = uri.encode("utf-8", "surrogateescape")
    prefix.update(len(raw).to_bytes(8, "little"))
    prefix.update(raw)

    def sample_id(locator: str) -> bytes:
        digest = prefix.copy()
        digest.update(locator.encode("utf-8", "surrogateescape"))
        return digest.digest()

    return sample_id


def clip_id(sample: bytes, span: str) -> bytes:
    """Identity of a clip or segment ("start/end") of the sample with the 16-byte id `sample`."""
    return _id(b"tm-clip", sample, span)


def unit_id(pipeline: str, cells: Iterable[tuple[bytes, int, int]]) -> bytes:
    """Identity of a cut: the pipeline and the ordered (input id, span start, span end)."""
    digest = hashlib.blake2b(digest_size=ID_BYTES, person=b"tm-unit")
    digest.update(pipeline.encode())
    for input_, start, end in cells:
        digest.update(input_ + start.to_bytes(8, "little") + end.to_bytes(8, "little"))
    return digest.digest()


def canonical_json(value: Any) -> bytes:
    """One byte string for one JSON value: sorted keys, no spaces, no NaN, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def json_hash(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def recipe_hash(space: str, parts: Mapping[str, Any]) -> str:
    """The recipe: the space and everything that may change an id (see `TokenizerIdentity`)."""
    return json_hash({"space": space, **parts})
