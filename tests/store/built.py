"""Stores built through the real writer and the real ledger, for tests of reading."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.shard import ShardMeta, TokenRows, Verdict
from tokenmill.schemas.tokenizer import Descriptor, OutputSpec, TokenizerIdentity
from tokenmill.schemas.work import Cell, Input, Quarantine, Span, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.ledger import Entry, Ledger, Outcome, StreamFacts
from tokenmill.store.shards import ShardWriter

# One sample's outcome in a stream: ids, None (absent), or a reason (quarantined).
Made = Sequence[int] | np.ndarray | None | str


@dataclass(frozen=True, kw_only=True)
class Doc:
    key: str
    streams: Mapping[str, Made]
    shape: tuple[int, ...] | None = None  # of every stream but `text`


def doc(key: str, shape: tuple[int, ...] | None = None, **streams: Made) -> Doc:
    return Doc(key=key, streams=streams, shape=shape)


def input_(name: str, version: str = "v1", size: int = 100) -> Input:
    return Input(uri=f"/raw/{name}", version=version, size=size, root="/raw/")


def space_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def facts(stream: str, *, space: str = "one", revision: int = 1) -> StreamFacts:
    axes = ("T",) if stream.startswith("text") else ("H", "W")
    return StreamFacts(
        stream=stream,
        modality="text" if stream.startswith("text") else "image",
        identity=TokenizerIdentity(
            name="bpe" if stream.startswith("text") else "grid",
            space=space_of(space),
            parts={"ids_revision": revision},
            provenance={"package": "1.0"},
        ),
        descriptor=Descriptor(
            name="bpe",
            modality="text",
            ids_revision=revision,
            fields=("text",),
            outputs=(OutputSpec(axes=axes, codebook_sizes=(60_000,)),),
        ),
        checkpoint="/weights/tokenizer.json",
        checkpoint_sha256="ab" * 32,
        config={"bos": True},
    )


@dataclass
class Builder:
    """A store at `uri`; `encode` writes and commits one stream of one unit."""

    uri: str
    access: Access = field(init=False)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.access = Access(self.uri)
        self.ledger = Ledger.open(self.access, create=True)
        self._attempts = itertools.count()

    def encode(
        self,
        pipeline: str,
        stream: str,
        content: Mapping[Input, Sequence[Doc]],
        *,
        space: str = "one",
        revision: int = 1,
        run: str = "run-1",
        replaces: bool = False,
        encoding: str = "plain",
        roll_bytes: int = 1 << 30,
        faults: Sequence[Quarantine] = (),
        order: bytes | None = None,
    ) -> Outcome:
        unit = WorkUnit(
            pipeline=pipeline,
            spans=tuple(Span(input=i, start=0, end=i.extent) for i in content),
        )
        known = facts(stream, space=space, revision=revision)
        writer = ShardWriter(
            self.access,
            meta=_meta(unit, stream, known),
            folder=f"shards/{pipeline}/{stream}",
            attempt=f"{next(self._attempts):04d}",
            encoding=encoding,
            roll_bytes=roll_bytes,
        )
        cells, quarantined, rows = [], [], 0
        for span, docs in zip(unit.spans, content.values(), strict=True):
            if docs:
                writer.append(_token_rows(span.input, stream, docs))
            quarantined += _quarantined(span.input, stream, docs, rows)
            cells.append(Cell(span=span, first_row=rows, rows=len(docs)))
            rows += len(docs)
        shards = writer.close()
        made = [d.streams[stream] for docs in content.values() for d in docs]
        result = TaskResult(
            unit=unit.id,
            stream=stream,
            attempt=0,
            recipe=known.identity.recipe,
            space=known.identity.space,
            shards=shards,
            cells=tuple(cells),
            enumerated=rows,
            with_tokens=sum(s.samples for s in shards),
            absent=sum(m is None for m in made),
            tokens=sum(s.tokens for s in shards),
            quarantined=tuple(quarantined),
            input_faults=tuple(faults),
            order_hash=(writer.order_hash or bytes(16)) if order is None else order,
        )
        return self.ledger.commit(
            pipeline,
            [Entry(unit=unit, result=result, replaces=replaces)],
            run=run,
            planned_seq=self.ledger.seq(pipeline),
            facts={stream: known},
            run_row={"job": "nightly", "host": "here", "job_json": "{}"},
        )


def _meta(unit: WorkUnit, stream: str, known: StreamFacts) -> ShardMeta:
    output = known.descriptor.outputs[0]
    return ShardMeta(
        pipeline=unit.pipeline,
        stream=stream,
        unit=unit.id.hex(),
        modality=known.modality,
        tokenizer=known.identity.name,
        output="ids",
        space=known.identity.space,
        recipe=known.identity.recipe,
        dtype="uint16",
        axes=output.axes,
        codebook_sizes=output.codebook_sizes,
    )


def _token_rows(source: Input, stream: str, docs: Sequence[Doc]) -> TokenRows:
    made = [d.streams[stream] for d in docs]
    has = [not (m is None or isinstance(m, str)) for m in made]
    ids = [np.asarray(m, np.uint16) for m, h in zip(made, has, strict=True) if h]
    identify = sample_ids(source.uri)
    shapes = None
    if not stream.startswith("text"):
        shapes = np.array([d.shape or (0, 0) for d in docs], np.int32)
    return TokenRows(
        ids=b"".join(identify(d.key) for d in docs),
        keys=[d.key for d in docs],
        sources=[source.uri] * len(docs),
        verdicts=np.array([_verdict(m) for m in made], np.uint8),
        values=np.concatenate(ids) if ids else np.zeros(0, np.uint16),
        lengths=np.array([len(m) if h else 0 for m, h in zip(made, has, strict=True)], np.int64),
        shapes=shapes,
    )


def _verdict(made: Made) -> Verdict:
    if made is None:
        return Verdict.ABSENT
    return Verdict.QUARANTINED if isinstance(made, str) else Verdict.TOKENS


def _quarantined(source: Input, stream: str, docs: Sequence[Doc], first: int) -> list[Quarantine]:
    identify = sample_ids(source.uri)
    return [
        Quarantine(
            sample=identify(d.key),
            key=d.key,
            source=source.uri,
            row=first + i,
            reason=str(d.streams[stream]),
            message=f"{d.key} was refused",
            stage="read",
            error=SampleError.__name__,
        )
        for i, d in enumerate(docs)
        if isinstance(d.streams[stream], str)
    ]
