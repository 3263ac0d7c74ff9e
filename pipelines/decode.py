"""Tokens of one sample back to media, and the original that they were made of."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from tokenmill.pipelines.door import load_recorded
from tokenmill.pipelines.door import open as open_dataset
from tokenmill.schemas.errors import JobError, SampleError, SourceError
from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.job import nearest
from tokenmill.schemas.samples import SampleBatch, alternatives, values_of
from tokenmill.schemas.tokenizer import Tokenizer, Window
from tokenmill.schemas.work import Input, Span
from tokenmill.store.access import Access
from tokenmill.store.dataset import Dataset
from tokenmill.store.decoding import StreamTokenizer
from tokenmill.store.ledger import Ledger
from tokenmill.store.ledger_rows import parts_from_json
from tokenmill.store.rows import Row
from tokenmill.workers.child import ChildLimits, ForkServer
from tokenmill.workers.children import ChildPool
from tokenmill.workers.rendering import modalities_of, renderer
from tokenmill.workers.sources import open_source
from tokenmill.workers.windows import content_seed

Fields = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which sample of a store, and which of its streams. `key` is for people: the first that has
    it; `id` (32 hex digits) is exact."""

    store: str
    key: str | None = None
    id: str | None = None
    stream: str | None = None
    pipeline: str | None = None
    tag: str | None = None
    snapshot: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """media: of the stream's modality. shape: of its tokens."""

    stream: str
    modality: str
    key: str
    shape: tuple[int, ...]
    media: Any


def decode_sample(wanted: Wanted, *, suffix: str | None, compare: bool = False) -> list[Decoded]:
    """The streams of one sample as media.

    suffix: of the file to be written, which chooses the stream by its modality; None for text.
    compare: each with its original beside it, read again from its source. Raises JobError for a
    sample or stream that is not there, TokenizerError where nothing can decode it, SourceError
    where the original is gone or changed.
    """
    dataset = open_dataset(
        wanted.store, tag=wanted.tag, snapshot=wanted.snapshot, pipeline=wanted.pipeline
    )
    row = _find(dataset, wanted)
    chosen = _streams(dataset, row, wanted.stream, suffix)
    made = []
    for stream, facts in chosen:
        media = row.decode(stream)
        if compare:
            shown = renderer(facts.descriptor["modality"])
            media = shown.beside(_original(dataset, row, _of_media(facts)), media)
        made.append(
            Decoded(
                stream=stream,
                modality=facts.descriptor["modality"],
                key=row.key,
                shape=row.shape(stream) or (),
                media=media,
            )
        )
    return made


def _of_media(facts: StreamTokenizer) -> StreamTokenizer:
    """The stream that read the media, where this one reads another's tokens."""
    return facts if facts.parent is None else _of_media(facts.parent)


def write(decoded: Decoded, path: Path) -> None:
    """All or nothing. Raises JobError where the file cannot be written."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix, prefix=".decode-")
        os.close(handle)
        temporary = Path(name)
        try:
            renderer(decoded.modality).write(decoded.media, temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise JobError(f"{path} cannot be written", why=str(error)) from None


def _find(dataset: Dataset, wanted: Wanted) -> Row:
    streams = None if wanted.stream is None else [wanted.stream]
    seen: dict[str, None] = {}
    for batch in dataset.batches(streams):
        for row in batch.rows():
            if row.id.hex() == wanted.id if wanted.id is not None else row.key == wanted.key:
                return row
            if len(seen) < 10_000:
                seen[row.key] = None
    name = wanted.id or wanted.key or ""
    raise JobError(
        f"the store has no sample {name!r}{nearest(name, list(seen)[:2000]) if wanted.key else ''}",
        where=dataset.uri,
        why="it may be quarantined as an input, of another snapshot, or not yet tokenized",
    )


def _streams(
    dataset: Dataset, row: Row, stream: str | None, suffix: str | None
) -> list[tuple[str, StreamTokenizer]]:
    """What to decode: the named stream, or those whose modality the file's suffix asks for."""
    found = {}
    for name in [stream] if stream else row.streams:
        recipe = row.recipe(name)
        if recipe is None:
            raise JobError(
                f"the sample {row.key!r} has no tokens in stream {name!r}",
                where=dataset.uri,
                remedy="`tokenmill quarantine STORE --rows` says why",
            )
        found[name] = dataset.tokenizer(row.pipeline, name, recipe)
    wanted = ["text"] if suffix is None else modalities_of(suffix)
    fitting = [(n, f) for n, f in found.items() if f.descriptor["modality"] in wanted]
    if not fitting or (suffix is not None and len(fitting) > 1):
        known = ", ".join(f"{n} ({f.descriptor['modality']})" for n, f in found.items()) or "none"
        what = f"a {suffix} file" if suffix else "text on the screen"
        raise JobError(
            f"{len(fitting)} streams of {row.key!r} can be {what}",
            where=dataset.uri,
            why=f"streams with tokens: {known}",
            remedy="choose one with --stream, and a file with -o (.png for images, .txt for text)",
        )
    return fitting


def _original(dataset: Dataset, row: Row, facts: StreamTokenizer) -> Any:
    """The media that the encoder saw: read again from the source and prepared as it was then."""
    tokenizer = load_recorded(facts)
    ledger = Ledger.open(Access(dataset.uri))
    source, names = _recorded(ledger, row, facts.stream, tokenizer)
    fields = _read_again(source, names, _spans(ledger, row, facts), row)
    return renderer(facts.descriptor["modality"]).original(fields, _windows(tokenizer, fields))


def _recorded(
    ledger: Ledger, row: Row, stream: str, tokenizer: Tokenizer
) -> tuple[SourceConfig, dict[str, str]]:
    """The source of the newest job that made this stream, and role -> field of the source."""
    runs = ledger.rows("run", pipeline=row.pipeline).sort_by("seq").to_pylist()
    for run in reversed(runs):
        pipeline = json.loads(run["job_json"] or "{}").get("pipelines", {}).get(row.pipeline)
        if pipeline is None or stream not in pipeline["streams"]:
            continue
        config = pipeline["streams"][stream]
        roles = (*tokenizer.descriptor.fields, *tokenizer.descriptor.conditions)
        names = {role: config["fields"].get(role, config["field"] or role) for role in roles}
        return SourceConfig.model_validate(pipeline["source"]), names
    raise JobError(
        f"the ledger records no job of the stream {stream!r}",
        where=ledger.access.uri,
        remedy="leave --compare out",
    )


def _spans(ledger: Ledger, row: Row, facts: StreamTokenizer) -> Iterator[Span]:
    """The cells of the sample's input, the newest first."""
    cells = ledger.rows(
        "input", pipeline=row.pipeline, filter=pc.field("uri") == row.source
    ).sort_by([("seq", "descending"), ("span_start", "ascending")])
    for cell in cells.to_pylist():
        if cell["stream"] == facts.stream:
            input_ = Input(
                uri=cell["uri"],
                version=cell["version"],
                size=cell["size"],
                root=cell["root"],
                parts=parts_from_json(cell["parts"]),
                identity=cell["identity"],
            )
            yield Span(input=input_, start=cell["span_start"], end=cell["span_end"])


def _read_again(
    config: SourceConfig, names: Mapping[str, str], spans: Iterator[Span], row: Row
) -> Fields:
    """The sample's fields. Raises SourceError where it is gone or its input has changed."""
    source = open_source(config)
    for span in spans:
        wanted = {name for field in names.values() for name in alternatives(field)}
        for batch in source.read([span], sorted(wanted)):
            if isinstance(batch, SampleBatch) and row.id in batch.ids:
                at = list(batch.ids).index(row.id)
                found = {role: values_of(batch, field)[at] for role, field in names.items()}
                for value in found.values():
                    if isinstance(value, SampleError):
                        raise value
                return found
    raise SourceError(f"the original of {row.key!r} is not in its source", where=row.source)


def _windows(tokenizer: Tokenizer, fields: Fields) -> Sequence[Window]:
    """What `prepare` makes of a sample, in a killable child where the plug-in asks for one."""
    preparer = tokenizer.preparer()
    seed = content_seed(tokenizer.identity().recipe.encode(), fields)
    if tokenizer.descriptor.prepare_in == "worker":
        return list(preparer.prepare(fields, np.random.default_rng(seed)))
    server = ForkServer((type(preparer).__module__,))
    pool: ChildPool[None] = ChildPool(server, preparer, count=1, limits=ChildLimits())
    try:
        return list(_unless_fault(pool, fields, seed))
    finally:
        pool.close()
        server.close()


def _unless_fault(pool: ChildPool[None], fields: Fields, seed: int) -> Iterator[Window]:
    for _, event in pool.windows(iter([(None, fields, seed)])):
        if isinstance(event, Window):
            yield event
        elif event is not None:
            raise SampleError(event.reason, event.message)
