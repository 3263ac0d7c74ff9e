"""What `tokenmill watch` shows: who is at work on a store, and how it grows. Reads the store alone,
so that it works wherever a run was started: submitted, scheduled, or in the next terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.store.access import Access
from tokenmill.store.dataset import open_store
from tokenmill.store.lease import TTL_SECONDS

_COMMITTED = """
select pipeline, stream, sum(samples) as samples, sum(tokens) as tokens,
    coalesce(sum(tokens) filter (where committed_at > now() - interval 5 minute), 0) as recent,
    max(committed_at) as last_commit
from shards group by pipeline, stream order by pipeline, stream
"""
_REASONS = """
select pipeline, reason, count(*) as n from quarantine
where committed_at > now() - interval 1 day group by pipeline, reason order by n desc limit 8
"""
_RECENT_SECONDS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class AtWork:
    """A lease that is held. progress: what the run said at its last renewal (every 15 s)."""

    pipeline: str
    host: str
    pid: int | None
    run: str
    started: str
    silent: float  # seconds since its last renewal
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lapsed(self) -> bool:
        return self.silent > TTL_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamState:
    pipeline: str
    stream: str
    samples: int
    tokens: int
    tokens_per_second: float  # over the last five minutes
    last_commit: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreState:
    store: str
    at_work: Sequence[AtWork]
    streams: Sequence[StreamState]
    reasons: Mapping[tuple[str, str], int]  # (pipeline, reason) -> quarantined in the last day


def look(store: str) -> StoreState:
    """The store as it is now. Raises StoreError where there is none."""
    access = Access(store)
    dataset = open_store(store, pin=False)
    streams = [
        StreamState(
            pipeline=row["pipeline"],
            stream=row["stream"],
            samples=row["samples"],
            tokens=row["tokens"],
            tokens_per_second=row["recent"] / _RECENT_SECONDS,
            last_commit=row["last_commit"],
        )
        for row in dataset.sql(_COMMITTED).to_pylist()
    ]
    reasons = {
        (row["pipeline"], row["reason"]): row["n"] for row in dataset.sql(_REASONS).to_pylist()
    }
    return StoreState(
        store=dataset.uri, at_work=list(_leases(access)), streams=streams, reasons=reasons
    )


def _leases(access: Access) -> list[AtWork]:
    found = []
    now = access.now()
    for listed in access.list("leases"):
        try:
            record = json.loads(access.read(listed.path))
        except (FileNotFoundError, ValueError):
            continue
        if not isinstance(record, dict) or record.get("released"):
            continue
        progress = record.get("progress")
        found.append(
            AtWork(
                pipeline=listed.path.rpartition("/")[2].removesuffix(".json"),
                host=str(record.get("host", "")),
                pid=record.get("pid") if isinstance(record.get("pid"), int) else None,
                run=str(record.get("run", "")),
                started=str(record.get("started", "")),
                silent=max(0.0, now - listed.modified),
                progress=progress if isinstance(progress, dict) else {},
            )
        )
    return sorted(found, key=lambda each: each.pipeline)
