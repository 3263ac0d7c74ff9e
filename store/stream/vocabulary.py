"""A joint vocabulary: where the local ids of every stream and codebook lie in one id space.

Shards keep local ids for ever; a vocabulary is data beside them, applied when a batch is made. It
names the space of every stream, so ids of other weights are refused (G7). `extended` only appends:
what a model has learnt keeps its ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.schemas.errors import CorruptStore, JobError
from tokenmill.schemas.identity import canonical_json, json_hash
from tokenmill.schemas.job import nearest

VOCABULARY_FORMAT = 1
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
# A trainer's embedding has one row per id: more than this is a mistake in a codebook size.
LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSpec:
    """What a vocabulary must know of a stream: space (64 hex digits), modality, sizes per
    codebook, axes."""

    stream: str
    space: str
    modality: str
    codebook_sizes: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyStream:
    """One stream's place. offsets: per codebook, what is added to its ids."""

    space: str
    modality: str
    codebook_sizes: tuple[int, ...]
    axes: tuple[str, ...]
    offsets: tuple[int, ...]
    begin: str  # names of the special tokens around a span
    end: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """size: ids are 0 … size - 1. specials: name -> id. Made by `of` and `extended`."""

    size: int
    specials: Mapping[str, int]
    streams: Mapping[str, VocabularyStream]

    @classmethod
    def of(cls, streams: Sequence[StreamSpec], specials: Sequence[str] = ()) -> Vocabulary:
        """Special tokens first (pad, bos, eos, then `specials`), then each stream's own begin and
        end token and its codebooks, in the order given. Raises JobError."""
        names = dict.fromkeys((PAD, BOS, EOS, *specials))
        empty = cls(size=len(names), specials={n: i for i, n in enumerate(names)}, streams={})
        return empty.extended(streams)

    def extended(self, streams: Sequence[StreamSpec], specials: Sequence[str] = ()) -> Vocabulary:
        """This vocabulary with more streams behind; every id it had stays. Raises JobError for a
        stream that it has under another space or size, or without codebook sizes."""
        size, names, placed = self.size, dict(self.specials), dict(self.streams)
        for name in specials:
            if name not in names:
                names[name], size = size, size + 1
        for spec in streams:
            if spec.stream in placed:
                _check_same(spec, placed[spec.stream])
                continue
            placed[spec.stream], size = _placed(spec, size, names)
        if size > LARGEST:
            raise JobError(f"a vocabulary of {size:,} ids", why="ids must fit into 31 bits")
        return Vocabulary(size=size, specials=names, streams=placed)

    @property
    def hash(self) -> str:
        """64 hex digits over everything in it."""
        return json_hash(self.as_json())

    @property
    def pad(self) -> int:
        return self.specials[PAD]

    def stream(self, name: str) -> VocabularyStream:
        """Raises JobError for a stream that it does not have."""
        if name not in self.streams:
            raise JobError(
                f"the vocabulary has no stream {name!r}{nearest(name, self.streams)}",
                remedy="extend it: vocabulary.extended(…)",
            )
        return self.streams[name]

    def special(self, name: str) -> int:
        """The id of a special token. Raises JobError."""
        if name not in self.specials:
            raise JobError(
                f"the vocabulary has no special token {name!r}{nearest(name, self.specials)}"
            )
        return self.specials[name]

    def local(self, id: int) -> tuple[str, int, int] | str:
        """(stream, codebook, local id) of an id, or the name of a special token.

        Raises KeyError for what it does not hold."""
        for name, special in self.specials.items():
            if special == id:
                return name
        for stream, place in self.streams.items():
            for codebook, (offset, size) in enumerate(
                zip(place.offsets, place.codebook_sizes, strict=True)
            ):
                if offset <= id < offset + size:
                    return stream, codebook, id - offset
        raise KeyError(id)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": VOCABULARY_FORMAT,
            "size": self.size,
            "specials": dict(self.specials),
            "streams": {
                name: {
                    "space": s.space,
                    "modality": s.modality,
                    "codebook_sizes": list(s.codebook_sizes),
                    "axes": list(s.axes),
                    "offsets": list(s.offsets),
                    "begin": s.begin,
                    "end": s.end,
                }
                for name, s in self.streams.items()
            },
        }

    def to_bytes(self) -> bytes:
        return canonical_json(self.as_json())

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Vocabulary:
        """Bytes that anybody may have written. Raises CorruptStore."""
        try:
            found = json.loads(data)
            if int(found["format"]) > VOCABULARY_FORMAT:
                raise CorruptStore(
                    f"the vocabulary has format {found['format']}, newer than "
                    f"{VOCABULARY_FORMAT}, the newest that this tokenmill reads",
                    where=where,
                    remedy="upgrade tokenmill",
                )
            return cls(
                size=int(found["size"]),
                specials={str(k): int(v) for k, v in found["specials"].items()},
                streams={
                    str(name): VocabularyStream(
                        space=str(s["space"]),
                        modality=str(s["modality"]),
                        codebook_sizes=tuple(int(n) for n in s["codebook_sizes"]),
                        axes=tuple(str(a) for a in s["axes"]),
                        offsets=tuple(int(n) for n in s["offsets"]),
                        begin=str(s["begin"]),
                        end=str(s["end"]),
                    )
                    for name, s in found["streams"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptStore(
                "a vocabulary cannot be read", where=where, why=str(error)
            ) from error


def _placed(spec: StreamSpec, size: int, names: dict[str, int]) -> tuple[VocabularyStream, int]:
    if not spec.codebook_sizes or any(n < 1 for n in spec.codebook_sizes):
        raise JobError(
            f"stream {spec.stream!r} cannot be part of a vocabulary",
            why=f"its codebook sizes are {list(spec.codebook_sizes)} (continuous latents?)",
        )
    begin, end = f"<|{spec.stream}|>", f"<|/{spec.stream}|>"
    for name in (begin, end):
        if name not in names:
            names[name], size = size, size + 1
    offsets = []
    for codebook in spec.codebook_sizes:
        offsets.append(size)
        size += codebook
    place = VocabularyStream(
        space=spec.space,
        modality=spec.modality,
        codebook_sizes=spec.codebook_sizes,
        axes=spec.axes,
        offsets=tuple(offsets),
        begin=begin,
        end=end,
    )
    return place, size


def _check_same(spec: StreamSpec, place: VocabularyStream) -> None:
    if (spec.space, spec.codebook_sizes) != (place.space, place.codebook_sizes):
        raise JobError(
            f"the vocabulary has stream {spec.stream!r} already, of another space",
            why=f"it holds {place.space[:12]} {list(place.codebook_sizes)}, not "
            f"{spec.space[:12]} {list(spec.codebook_sizes)}",
            remedy="the new ids mean something else: give the stream another name",
        )
