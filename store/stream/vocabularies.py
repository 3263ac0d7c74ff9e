"""Vocabularies kept in a store: `vocabularies/<hash>.json`, written once, never changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping

import numpy as np

from tokenmill.schemas.errors import CorruptStore, SpaceMismatch, StoreError
from tokenmill.schemas.identity import canonical_json
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.store.stream.vocabulary import StreamSpec, Vocabulary

FOLDER = "vocabularies"
_HASH = re.compile(r"[0-9a-f]{64}\Z")


def save_vocabulary(access: Access, vocabulary: Vocabulary) -> str:
    """Its hash; the file is there afterwards. Raises StoreError where it may not be written."""
    access.create(f"{FOLDER}/{vocabulary.hash}.json", vocabulary.to_bytes())
    return vocabulary.hash


def load_vocabulary(access: Access, hash: str) -> Vocabulary:
    """Raises StoreError where there is none of this hash, CorruptStore."""
    path = f"{FOLDER}/{hash}.json"
    if not _HASH.match(hash):
        raise StoreError(f"{hash!r} is not the hash of a vocabulary", remedy="give 64 hex digits")
    try:
        data = access.read(path)
    except FileNotFoundError:
        raise StoreError(
            f"no vocabulary {hash[:12]}… in this store",
            where=access.full(FOLDER),
            remedy="pass the Vocabulary itself, or copy its file there",
        ) from None
    if hashlib.sha256(data).hexdigest() != hash:
        raise CorruptStore("a vocabulary is not what its name says", where=access.full(path))
    vocabulary = Vocabulary.from_bytes(data, where=access.full(path))
    if canonical_json(vocabulary.as_json()) != data:
        raise CorruptStore("a vocabulary holds more than we know", where=access.full(path))
    return vocabulary


def stream_specs(
    access: Access, first_paths: Mapping[tuple[str, str], str]
) -> dict[str, tuple[StreamSpec, np.dtype[np.generic]]]:
    """By stream: its spec and the dtype of its ids, from one shard of each (stream, recipe).

    Raises CorruptStore, SpaceMismatch where two recipes of a stream disagree about the codebooks.
    """
    found: dict[str, tuple[StreamSpec, np.dtype[np.generic]]] = {}
    for (stream, _), path in sorted(first_paths.items()):
        with ShardReader(access, path) as reader:
            meta = reader.meta
        dtype: np.dtype[np.generic] = np.dtype(meta.dtype)
        spec = StreamSpec(
            stream=stream,
            space=meta.space,
            modality=meta.modality,
            codebook_sizes=meta.codebook_sizes,
            axes=meta.axes,
        )
        if stream in found:
            if found[stream][0] != spec:
                raise SpaceMismatch(
                    f"the recipes of stream {stream!r} make different codebooks or axes",
                    where=access.full(path),
                    remedy="load one pipeline, or a snapshot with one of them",
                )
            dtype = np.promote_types(dtype, found[stream][1])
        found[stream] = (spec, dtype)
    return found


def check_spaces(
    vocabulary: Vocabulary, specs: Mapping[str, StreamSpec], streams: Collection[str], where: str
) -> None:
    """Raises SpaceMismatch where the store's ids are not those that the vocabulary places (G7)."""
    for name in streams:
        place, spec = vocabulary.stream(name), specs[name]
        if (place.space, place.codebook_sizes) != (spec.space, spec.codebook_sizes):
            raise SpaceMismatch(
                f"stream {name!r} holds tokens of another space than the vocabulary",
                where=where,
                why=f"the vocabulary places {place.space[:12]} {list(place.codebook_sizes)}, "
                f"the store holds {spec.space[:12]} {list(spec.codebook_sizes)}",
                remedy="make a vocabulary for this store, or open the snapshot it was made for",
            )
