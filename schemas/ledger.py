"""The ledger's one table: a row per committed fact, six kinds. Rows are only appended, but for
`forget --rewrite`, which replaces the unit rows of a commit (store/forget.py).

For one (pipeline, stream, input, span) the row committed last is valid; of the versions of one
place (`source_id`) the one committed last is. Delta has no unsigned integers: ids and hashes are
binary. `seq` counts the commits of a pipeline and orders them.
"""

from __future__ import annotations

import pyarrow as pa

LEDGER_FORMAT = 1
KINDS = ("unit", "input", "quarantine", "run", "tokenizer", "forgotten")

# Reason of the quarantine row that a forgotten sample gets wherever it is met again.
FORGOTTEN = "forgotten"

_BINARY, _TEXT, _INT = pa.binary(), pa.string(), pa.int64()

# Every kind has these.
COMMON = [
    ("kind", _TEXT),
    ("pipeline", _TEXT),
    ("seq", _INT),
    ("commit_id", _TEXT),
    ("run", _TEXT),
    ("committed_at", pa.timestamp("us", tz="UTC")),
    ("stream", _TEXT),
]

# unit: one per shard file of a (unit, stream); a unit-stream without rows has one with no path.
UNIT = [
    ("unit", _BINARY),
    ("path", _TEXT),
    ("first_row", _INT),
    ("rows", _INT),
    ("samples", _INT),  # rows with tokens
    ("tokens", _INT),
    ("bytes", _INT),
    ("content_hash", _BINARY),
    ("encoding", _TEXT),
    ("order_hash", _BINARY),
    ("enumerated", _INT),  # of the whole unit-stream, as the next three
    ("with_tokens", _INT),
    ("quarantined", _INT),
    ("absent", _INT),
    ("tokenizer", _TEXT),
    ("space", _TEXT),
    ("recipe", _TEXT),
    ("modality", _TEXT),
    ("stats", _TEXT),  # JSON: TaskStats and notes
]

# input: one per cell; also carries the commit's enumeration for one input of a unit.
INPUT = [
    ("input", _BINARY),
    ("source_id", _BINARY),
    ("uri", _TEXT),
    ("version", _TEXT),
    ("size", _INT),
    ("span_start", _INT),
    ("span_end", _INT),
    ("root", _TEXT),
    ("identity", _TEXT),
    ("parts", _TEXT),  # JSON list of {suffix, version, size}, or null
    ("ordinal", _INT),  # place of the span in its unit: a unit keeps its cut
    # shared with UNIT: unit, first_row, rows, recipe
]

QUARANTINE = [
    ("sample", _BINARY),  # null: the input itself
    ("key", _TEXT),
    ("row", _INT),
    ("reason", _TEXT),
    ("message", _TEXT),
    ("stage", _TEXT),
    ("error", _TEXT),
    # shared: unit, input, uri, recipe
]

RUN = [
    ("job", _TEXT),  # name of the job file's job
    ("state", _TEXT),  # started | finished | stopped | failed
    ("host", _TEXT),
    ("summary", _TEXT),  # JSON
    # the job as data, without secrets: retry and forget need no job file to explain themselves
    ("job_json", _TEXT),
]

TOKENIZER = [
    ("descriptor", _TEXT),  # JSON
    ("parts", _TEXT),  # JSON: the recipe's parts
    ("provenance", _TEXT),  # JSON
    ("checkpoint", _TEXT),
    ("checkpoint_sha256", _TEXT),
    ("config", _TEXT),  # JSON
    # shared: tokenizer, space, recipe, modality
]


# forgotten: one per row of a unit that no later snapshot may show. All columns are shared: unit,
# order_hash, row (of the unit, in every stream of that order), sample, source_id, uri, reason
# (what the person gave). Attempts committed before it are masked; later ones get the sample
# condemned by the driver, and a quarantine row of the reason FORGOTTEN.


def _schema() -> pa.Schema:
    fields: dict[str, pa.DataType] = {}
    for name, kind in COMMON + UNIT + INPUT + QUARANTINE + RUN + TOKENIZER:
        fields.setdefault(name, kind)
    return pa.schema(list(fields.items()))


LEDGER_SCHEMA = _schema()
