"""What the asking verbs do, without a terminal: plain arguments in, tables and facts out.

query, ls, info, quarantine read; verify looks at every byte; tag, vacuum, maintain and export act.
All raise the errors of schemas.errors and print nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.identity import canonical_uri
from tokenmill.schemas.job import nearest
from tokenmill.store import questions, upkeep
from tokenmill.store.access import Access
from tokenmill.store.choosing import full_hash
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.export import FILE_BYTES, Exported
from tokenmill.store.export import export as export_samples
from tokenmill.store.forget import Receipt
from tokenmill.store.forget import forget as forget_samples
from tokenmill.store.ledger import GRACE_SECONDS, Ledger
from tokenmill.store.shards import ShardReader, content_hash
from tokenmill.store.snapshot import tags as tags_of
from tokenmill.store.snapshot import take_snapshot
from tokenmill.store.upkeep import MaintainReport, VacuumReport
from tokenmill.store.verify import VerifyReport
from tokenmill.store.verify import verify as verify_store

SHARD_SUFFIX = ".arrow"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_STREAMS = """
with s as (
    select pipeline, stream, sum(samples) as samples, sum(tokens) as tokens, sum(bytes) as bytes,
        count(*) as shards, sum(superseded_rows) as superseded_rows,
        string_agg(distinct tokenizer, ', ' order by tokenizer) as tokenizer,
        list(distinct space order by space) as spaces,
        list(distinct recipe order by recipe) as recipes
    from shards group by all
), i as (
    select pipeline, stream, count(distinct uri) as inputs, sum(rows)::bigint as rows,
        max(committed_at) as last_commit
    from inputs group by all
), q as (
    select pipeline, stream, count(sample) as quarantined,
        count(*) filter (where sample is null) as damaged_inputs
    from quarantine group by all
)
select pipeline, stream, i.inputs, coalesce(s.samples, 0) as samples,
    coalesce(s.tokens, 0) as tokens, coalesce(q.quarantined, 0) as quarantined,
    coalesce(q.damaged_inputs, 0) as damaged_inputs, coalesce(s.bytes, 0) as bytes,
    coalesce(s.shards, 0) as shards, coalesce(s.superseded_rows, 0) as superseded_rows,
    coalesce(s.tokenizer, '') as tokenizer, coalesce(s.spaces, []) as spaces,
    coalesce(s.recipes, []) as recipes, i.last_commit
from i left join s using (pipeline, stream) left join q using (pipeline, stream)
order by pipeline, stream
"""

_TOTALS = """
select (select count(distinct uri) from inputs) as inputs,
    (select coalesce(sum(samples), 0) from shards) as samples,
    (select coalesce(sum(tokens), 0) from shards) as tokens,
    (select count(*) from quarantine) as quarantined,
    (select count(*) from shards) as shards,
    (select coalesce(sum(bytes), 0) from shards) as bytes,
    (select max(committed_at) from inputs) as last_commit
"""

_REASONS = """
select pipeline, stream, reason, stage, count(*) as samples, min(key) as example,
    any_value(message order by key) as message, max(committed_at) as last_commit
from quarantine where {where} group by pipeline, stream, reason, stage
order by samples desc, pipeline, stream, reason, stage
"""

_REFUSED = """
select pipeline, stream, key, uri, reason, message, stage, row, sample, unit, run, committed_at
from quarantine where {where} order by pipeline, stream, uri, row nulls first, key {limit}
"""


def query(store: str, sql: str, *, tag: str | None = None, snapshot: str | None = None) -> pa.Table:
    """The answer of one SELECT over the store's views (see Dataset.sql)."""
    return open_store(store, tag=tag, snapshot=snapshot, pin=False).sql(sql)


def ask(
    store: str,
    name: str,
    values: Mapping[str, str] | None = None,
    *,
    tag: str | None = None,
    snapshot: str | None = None,
) -> pa.Table:
    """The answer of a question by its name (see store/questions)."""
    return questions.ask(open_store(store, tag=tag, snapshot=snapshot, pin=False), name, values)


def list_questions() -> pa.Table:
    """question, answers, parameters: what `ask` knows."""
    known = questions.questions().values()
    return pa.table(
        {
            "question": [f"@{question.name}" for question in known],
            "answers": [question.what for question in known],
            "parameters": [", ".join(p.shown for p in q.parameters) for q in known],
        }
    )


def ls(store: str) -> pa.Table:
    """A row per pipeline and stream.

    samples, tokens, bytes are those of the visible shard files; `superseded_rows` of their rows no
    longer count. spaces and recipes are lists of 64 hex digits.
    """
    return open_store(store, pin=False).sql(_STREAMS)


def tags(store: str) -> pa.Table:
    """tag, snapshot: sorted by tag."""
    access = Access(store)
    Ledger.open(access)  # says where there is no store
    found = sorted(tags_of(access).items())
    return pa.table(
        {
            "tag": pa.array([name for name, _ in found], pa.string()),
            "snapshot": pa.array([hash for _, hash in found], pa.string()),
        }
    )


def info(target: str) -> dict[str, Any]:
    """Facts of a store, or of one shard file where `target` ends in `.arrow`."""
    if target.endswith(SHARD_SUFFIX):
        return _shard_info(target)
    dataset = open_store(target, pin=False)
    (totals,) = dataset.sql(_TOTALS).to_pylist()
    streams = ls(target).to_pylist()
    (runs,) = dataset.sql("select count(distinct run) as runs from runs").to_pylist()
    return {
        "store": dataset.uri,
        "pipelines": sorted({row["pipeline"] for row in streams}),
        "streams": sorted({row["stream"] for row in streams}),
        **totals,
        **runs,
        "snapshot": dataset.snapshot,
        "tags": tags_of(Access(target)),
        "tokenizers": sorted({row["tokenizer"] for row in streams if row["tokenizer"]}),
        "spaces": {stream: list(found) for stream, found in dataset.spaces.items()},
        "recipes": {stream: list(found) for stream, found in dataset.recipes.items()},
    }


def _shard_info(path: str) -> dict[str, Any]:
    folder, _, name = path.rpartition("/")
    access = Access(folder or ("." if "/" not in path else "/"))
    with ShardReader(access, name) as reader:
        meta, batch_rows, encoding = reader.meta, reader.batch_rows, reader.encoding
    counts, digest = content_hash(access, name)
    return {
        "shard": canonical_uri(path),
        "pipeline": meta.pipeline,
        "stream": meta.stream,
        "unit": meta.unit,
        "first_row": meta.first_row,
        "rows": counts.rows,
        "samples": counts.samples,
        "tokens": counts.tokens,
        "bytes": counts.size,
        "rows_per_batch": batch_rows,
        "encoding": encoding,
        "dtype": meta.dtype,
        "axes": list(meta.axes),
        "codebook_sizes": list(meta.codebook_sizes),
        "modality": meta.modality,
        "tokenizer": meta.tokenizer,
        "output": meta.output,
        "space": meta.space,
        "recipe": meta.recipe,
        "content_hash": digest.hex(),
    }


def quarantine(
    store: str,
    *,
    pipeline: str | None = None,
    stream: str | None = None,
    reason: str | None = None,
    rows: bool = False,
    limit: int | None = None,
) -> pa.Table:
    """Samples and inputs that have no tokens, grouped by reason, or one by one with `rows`.

    limit: at most so many rows. Raises JobError for a pipeline, stream or reason that is not there
    (a reason that is known from the past gives an empty answer).
    """
    dataset = open_store(store, pin=False)
    wanted = {"pipeline": pipeline, "stream": stream, "reason": reason}
    given = {name: value for name, value in wanted.items() if value is not None}
    for name, value in given.items():
        _check_known(dataset, name, value)
    where = " and ".join(f"{name} = ${name}" for name in given) or "true"
    if not rows:
        return dataset.sql(_REASONS.format(where=where), given)
    cut = "" if limit is None else f"limit {int(limit)}"
    return dataset.sql(_REFUSED.format(where=where, limit=cut), given)


def _check_known(dataset: Dataset, name: str, value: str) -> None:
    view = "quarantine_history" if name == "reason" else "inputs"
    known = dataset.sql(f"select distinct {name} from {view}")[name].to_pylist()
    if value not in known:
        raise JobError(f"the store has no {name} {value!r}{nearest(value, known)}",
                       where=dataset.uri)  # fmt: skip


def verify(
    store: str,
    *,
    share: float = 1.0,
    pipeline: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Whether ledger and bytes agree; problems are in the report, not raised."""
    if not 0 <= share <= 1:
        raise JobError(f"a share of {share} is not between 0 and 1")
    access = Access(store)
    ledger = Ledger.open(access)
    if pipeline is not None:
        _check_known(open_store(store, pin=False), "pipeline", pipeline)
    return verify_store(access, ledger, share=share, pipeline=pipeline, progress=progress)


def problems(report: VerifyReport) -> pa.Table:
    """The problems of a report: kind, where, what."""
    return pa.table(
        {
            name: pa.array([getattr(p, name) for p in report.problems], pa.string())
            for name in ("kind", "where", "what")
        }
    )


def vacuum(store: str, *, delete: bool = False, grace: str | float = GRACE_SECONDS) -> VacuumReport:
    """Find, and with `delete` remove, what nothing names. grace: seconds, or text like `7d`."""
    access = Access(store)
    seconds = duration(grace) if isinstance(grace, str) else float(grace)
    return upkeep.vacuum(access, Ledger.open(access), dry_run=not delete, grace=seconds)


def duration(text: str) -> float:
    """`90s`, `30m`, `12h`, `7d` in seconds. Raises JobError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if match is None:
        raise JobError(f"{text!r} is no length of time", remedy="write 90s, 30m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def maintain(store: str) -> MaintainReport:
    """Compact the ledger."""
    return upkeep.maintain(Ledger.open(Access(store)))


def forget(
    store: str,
    where: str | None,
    *,
    reason: str = "",
    rewrite: bool = False,
    apply: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Receipt:
    """Take samples out of every later snapshot (see store/forget.py); a dry run without `apply`."""
    access = Access(store)
    return forget_samples(
        access,
        Ledger.open(access),
        where,
        reason=reason,
        rewrite=rewrite,
        dry_run=not apply,
        progress=progress,
    )


def tag(store: str, name: str, *, snapshot: str | None = None, move: bool = False) -> str:
    """Keep a snapshot, by default the current one, for ever under a name; its hash."""
    access = Access(store)
    ledger = Ledger.open(access)
    hash = full_hash(access, snapshot) if snapshot else take_snapshot(access, ledger).hash
    upkeep.tag(access, name, hash, move=move)
    return hash


def untag(store: str, name: str) -> None:
    """Let a tag go."""
    access = Access(store)
    Ledger.open(access)
    upkeep.untag(access, name)


def export(
    store: str,
    to: str,
    out: str,
    *,
    tag: str | None = None,
    snapshot: str | None = None,
    pipeline: str | None = None,
    streams: Collection[str] | None = None,
    spaces: Mapping[str, str] | None = None,
    force: bool = False,
    file_bytes: int = FILE_BYTES,
) -> Exported:
    """Write samples in one of the formats of store/export.py."""
    dataset = open_store(store, tag=tag, snapshot=snapshot, pipeline=pipeline, spaces=spaces)
    if streams:
        dataset = dataset.select(streams=streams)
    return export_samples(dataset, to, out, force=force, file_bytes=file_bytes)
