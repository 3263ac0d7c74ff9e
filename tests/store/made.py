"""Made-up inputs, units and results for the ledger's tests: the arithmetic is right, and the
shard files exist only where `write` makes them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence

import numpy as np

from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.shard import ShardMeta, TokenRows, Verdict, order_hash
from tokenmill.schemas.tokenizer import Descriptor, OutputSpec, TokenizerIdentity
from tokenmill.schemas.work import (
    Cell,
    Input,
    Quarantine,
    ShardFile,
    Span,
    TaskResult,
    WorkUnit,
)
from tokenmill.store.access import Access
from tokenmill.store.ledger import Entry, StreamFacts
from tokenmill.store.shards import ShardWriter

PIPELINE = "clips"
CODEBOOK = 1000


def facts(stream: str = "text", *, revision: int = 1) -> StreamFacts:
    return StreamFacts(
        stream=stream,
        modality="text",
        identity=TokenizerIdentity(
            name="bpe",
            space="ab" * 32,
            parts={"ids_revision": revision},
            provenance={"tokenizers": "0.21"},
        ),
        descriptor=Descriptor(
            name="bpe",
            modality="text",
            ids_revision=revision,
            fields=("text",),
            outputs=(OutputSpec(dtype="uint16", codebook_sizes=(CODEBOOK,)),),
        ),
        checkpoint="tokenizer.json",
        checkpoint_sha256="cd" * 32,
        config={"bos": False},
    )


FACTS = {stream: facts(stream) for stream in ("text", "audio")}


def an_input(name: str, version: str = "v1", size: int = 100) -> Input:
    return Input(uri=f"/data/{name}", version=version, size=size, root="/data")


def unit(*spans: Input | tuple[Input, int, int], pipeline: str = PIPELINE) -> WorkUnit:
    """Whole inputs, or (input, start, end)."""
    made = [
        Span(input=s, start=0, end=s.extent)
        if isinstance(s, Input)
        else Span(input=s[0], start=s[1], end=s[2])
        for s in spans
    ]
    return WorkUnit(pipeline=pipeline, spans=tuple(made))


def entry(
    work: WorkUnit,
    *,
    stream: str = "text",
    attempt: str = "a",
    rows: int = 3,
    refused: Sequence[int] = (),
    using: StreamFacts | None = None,
    replaces: bool = False,
    written_at: float | None = None,
    access: Access | None = None,
    faults: Sequence[Quarantine] = (),
    encoding: str = "auto",
) -> Entry:
    """A result of `rows` samples per span, those numbered in `refused` (of the unit)
    quarantined; with `access` its shard is really written."""
    using = using or FACTS[stream]
    cells = tuple(Cell(span=s, first_row=i * rows, rows=rows) for i, s in enumerate(work.spans))
    token_rows = _rows(cells, refused)
    shards, order = (
        _write(access, work, using, token_rows, attempt, encoding)
        if access is not None
        else (_pretend(work, using, token_rows, attempt, written_at), order_hash([token_rows.ids]))
    )
    return Entry(
        unit=work,
        result=TaskResult(
            unit=work.id,
            stream=stream,
            attempt=1,
            recipe=using.identity.recipe,
            space=using.identity.space,
            shards=shards,
            cells=cells,
            enumerated=token_rows.n,
            with_tokens=token_rows.n - len(refused),
            absent=0,
            tokens=len(token_rows.values),
            quarantined=tuple(_refusal(token_rows, row) for row in refused),
            input_faults=tuple(faults),
            order_hash=order,
        ),
        replaces=replaces,
    )


def _rows(cells: Iterable[Cell], refused: Sequence[int]) -> TokenRows:
    ids, keys, sources = [], [], []
    for cell in cells:
        identify = sample_ids(cell.span.input.uri)
        for n in range(cell.rows):
            ids.append(identify(f"{cell.span.start}:{n}"))
            keys.append(f"{cell.span.input.key}:{cell.span.start}:{n}")
            sources.append(cell.span.input.uri)
    verdicts = np.zeros(len(ids), np.uint8)
    verdicts[list(refused)] = Verdict.QUARANTINED
    lengths = np.where(verdicts == Verdict.TOKENS, 4, 0).astype(np.int64)
    seed = int.from_bytes(hashlib.sha256(b"".join(ids)).digest()[:4], "big")
    values = np.random.default_rng(seed).integers(0, CODEBOOK, int(lengths.sum()))
    return TokenRows(
        ids=b"".join(ids),
        keys=keys,
        sources=sources,
        verdicts=verdicts,
        values=values.astype(np.uint16),
        lengths=lengths,
    )


def _refusal(rows: TokenRows, row: int) -> Quarantine:
    return Quarantine(
        sample=rows.ids[row * 16 : row * 16 + 16],
        key=rows.keys[row],
        source=rows.sources[row],
        row=row,
        reason="invalid-utf8",
        message="byte 0xff",
        stage="prepare",
    )


def _pretend(
    work: WorkUnit, using: StreamFacts, rows: TokenRows, attempt: str, at: float | None
) -> tuple[ShardFile, ...]:
    if rows.n == 0:
        return ()
    return (
        ShardFile(
            path=f"shards/{PIPELINE}/{using.stream}/{work.id.hex()}-{attempt}-000.arrow",
            first_row=0,
            rows=rows.n,
            samples=int((rows.verdicts == Verdict.TOKENS).sum()),
            tokens=len(rows.values),
            size=1000,
            content_hash=hashlib.sha256(rows.ids).digest(),
            encoding="plain",
            written_at=time.time() if at is None else at,
        ),
    )


def _write(
    access: Access,
    work: WorkUnit,
    using: StreamFacts,
    rows: TokenRows,
    attempt: str,
    encoding: str,
) -> tuple[tuple[ShardFile, ...], bytes]:
    output = using.descriptor.outputs[0]
    meta = ShardMeta(
        pipeline=work.pipeline,
        stream=using.stream,
        unit=work.id.hex(),
        modality=using.modality,
        tokenizer=using.identity.name,
        output=output.name,
        space=using.identity.space,
        recipe=using.identity.recipe,
        dtype=output.dtype,
        axes=output.axes,
        codebook_sizes=output.codebook_sizes,
    )
    folder = f"shards/{work.pipeline}/{using.stream}"
    writer = ShardWriter(access, meta=meta, folder=folder, attempt=attempt, encoding=encoding)
    writer.append(rows)
    shards = writer.close()
    return shards, writer.order_hash
