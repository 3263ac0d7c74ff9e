"""Objects of one stem are one sample: `a.jpg` and `a.txt` are the fields `jpg` and `txt` of `a`.

The stem is the path without its *last* extension (`a.seg.png` is the field `png` of `a.seg`; the
webdataset format cuts at the first dot instead). Fields are lower-case; an object without an
extension is the field "" of its own stem. Values are bytes. The stems of a listing are held in
memory to be grouped: here a sample is an input, and planning holds inputs anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.samples import SampleBatch
from tokenmill.schemas.work import Input, Part, Span
from tokenmill.workers.sources import listing
from tokenmill.workers.sources.base import FormatSource, clean_key
from tokenmill.workers.sources.objects import Opened, content_hash


class FilesSource(FormatSource):
    """`format: files`. Sample locator: "", since the URI is the stem."""

    def list(self) -> Iterator[Input]:
        # versions first: a content hash is taken per object below
        config = self.config.model_copy(update={"identity": "version"})
        stems = sorted(
            ((*_split(found.uri), found) for found in listing.list_inputs(config)),
            key=lambda item: item[:2],
        )
        for stem, group in groupby(stems, key=lambda item: item[0]):
            objects = [(suffix, found) for _, suffix, found in group]
            yield self._identified(_grouped(stem, objects), objects)

    def _identified(self, input_: Input, objects: Sequence[tuple[str, Input]]) -> Input:
        if self.config.identity == "version":
            return input_
        if self.config.identity == "path":
            return replace(input_, identity="")
        hashes = {s: content_hash(f.uri, f.version, f.root) for s, f in objects}
        return replace(input_, identity=_digest(hashes.items()))

    def fields(self, input_: Input) -> Sequence[str]:
        return [part.suffix.lower() for part in input_.parts]

    def _samples(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        input_ = span.input
        values = {name: self._value(input_, name) for name in fields}
        yield SampleBatch(
            span=index,
            ids=[sample_ids(input_.uri)("")],
            keys=[clean_key(input_.key)],
            fields={name: [value] for name, value in values.items()},
            bytes_read=sum(len(v) for v in values.values() if isinstance(v, bytes)),
        )

    def _value(self, input_: Input, name: str) -> bytes | SampleError | None:
        parts = [part for part in input_.parts if part.suffix.lower() == name.lower()]
        if not parts:
            return None
        uri = part_uri(input_, parts[0])
        if len(parts) > 1:
            names = ", ".join(part.suffix for part in parts)
            return SampleError(
                "ambiguous-field", f"several objects for the field {name!r}: {names}", where=uri
            )
        fits = parts[0].size <= self.config.max_sample_bytes
        with Opened(uri, parts[0].version, root=input_.root, at_once=fits) as raw:
            if not fits:
                return self._too_large(parts[0].size, uri)
            return raw.read()


def part_uri(input_: Input, part: Part) -> str:
    """The object of one part; one without an extension is its own stem."""
    return f"{input_.uri}.{part.suffix}" if part.suffix else input_.uri


def _split(uri: str) -> tuple[str, str]:
    folder, _, name = uri.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem or not suffix:
        return uri, ""
    return f"{folder}/{stem}", suffix


def _grouped(stem: str, objects: Sequence[tuple[str, Input]]) -> Input:
    parts = tuple(
        Part(suffix=suffix, version=found.version, size=found.size) for suffix, found in objects
    )
    return Input(
        uri=stem,
        version=_digest((part.suffix, part.version) for part in parts),
        size=sum(part.size for part in parts),
        root=objects[0][1].root,
        parts=parts,
    )


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for suffix, version in pairs:
        digest.update(f"{len(suffix)}:{suffix}={len(version)}:{version};".encode())
    return digest.hexdigest()
