"""The SQL of the views that people ask, over four private relations.

_snapshot   the shard files of one snapshot (snapshot.py documents the columns)
_cells      the valid cells of every pipeline (Ledger.coverage) with a `pipeline` column
_ledger     every row of the ledger, all kinds, as a dataset: filters reach its Parquet files
"""

from __future__ import annotations

import pyarrow as pa

# Private relation -> the public views that read it: a relation is filled only when one of its
# views stands in the query, since coverage costs a pass over the ledger.
CELLS_FOR = frozenset({"inputs", "quarantine"})

CELLS_SCHEMA = pa.schema(
    [
        ("pipeline", pa.string()),
        ("stream", pa.string()),
        ("recipe", pa.string()),
        ("unit", pa.binary()),
        ("input", pa.binary()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("size", pa.int64()),
        ("span_start", pa.int64()),
        ("span_end", pa.int64()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("seq", pa.int64()),
    ]
)

# One row per commit: `run` and `committed_at` are constant within (pipeline, seq).
_COMMITS = """
select pipeline, seq, any_value(run) as run, any_value(committed_at) as committed_at
from _ledger where kind = 'input' group by pipeline, seq
"""

# Rows of the file that a later commit superseded: the counts beside it are those of the file.
_SUPERSEDED = """
coalesce(list_sum(list_transform(s.exclude, lambda x: greatest(0,
    least(x."end", s.first_row + s.rows) - greatest(x.start, s.first_row)))), 0)::bigint
"""

_SHARDS = f"""
select s.pipeline, s.stream, s.path, s.samples, s.tokens, s.bytes, s.tokenizer, s.space, s.recipe,
    u.run, u.committed_at, s.modality, lower(hex(s.unit)) as unit, s.first_row, s.rows,
    {_SUPERSEDED} as superseded_rows, s.encoding, lower(hex(s.content_hash)) as content_hash
from _snapshot s left join (
    select path, arg_max(run, seq) as run, max(committed_at) as committed_at
    from _ledger where kind = 'unit' and path is not null group by path
) u on u.path = s.path
"""

_INPUTS = f"""
select c.pipeline, c.stream, c.uri, c.version, c.size, c.span_start, c.span_end, c.rows,
    lower(hex(c.unit)) as unit, c.recipe, k.run, k.committed_at
from _cells c left join ({_COMMITS}) k on k.pipeline = c.pipeline and k.seq = c.seq
"""

_QUARANTINE_COLUMNS = """
q.pipeline, q.stream, q.key, q.uri, q.reason, q.message, q.stage, q.row,
lower(hex(q.sample)) as sample, lower(hex(q.unit)) as unit, q.run, q.committed_at, q.error
"""

# A quarantine row counts only while the cell that its own commit wrote is the valid one.
_QUARANTINE = f"""
select {_QUARANTINE_COLUMNS} from _ledger q semi join _cells c
on c.pipeline = q.pipeline and c.stream = q.stream and c.unit = q.unit
    and c.input = q.input and c.seq = q.seq
    and (q.row is null or (q.row >= c.first_row and q.row < c.first_row + c.rows))
where q.kind = 'quarantine'
"""

_QUARANTINE_HISTORY = f"""
select {_QUARANTINE_COLUMNS} from _ledger q where q.kind = 'quarantine'
"""

# A run has a row when it starts and one when it ends: people see one run.
_RUNS = """
select run, pipeline, any_value(job) as job, arg_max(state, seq) as state,
    any_value(host) as host, min(committed_at) as started_at,
    max(committed_at) filter (where state <> 'started') as ended_at,
    arg_max(summary, seq) filter (where summary is not null) as summary,
    any_value(job_json) as job_json
from _ledger where kind = 'run' group by run, pipeline
"""

_TOKENIZERS = """
select pipeline, stream, tokenizer, modality, space, recipe, checkpoint, checkpoint_sha256,
    config, descriptor, parts, provenance, run, committed_at
from _ledger where kind = 'tokenizer'
"""

# What `tokenmill forget` took out: a row per place of a sample in a unit.
_FORGOTTEN = """
select pipeline, lower(hex(sample)) as sample, uri, lower(hex(unit)) as unit, row, reason, run,
    committed_at
from _ledger where kind = 'forgotten'
"""

VIEWS = {
    "shards": _SHARDS,
    "inputs": _INPUTS,
    "quarantine": _QUARANTINE,
    "quarantine_history": _QUARANTINE_HISTORY,
    "runs": _RUNS,
    "tokenizers": _TOKENIZERS,
    "forgotten": _FORGOTTEN,
}
