"""What an export says of itself and of its samples, in every format alike."""

from __future__ import annotations

from typing import Any

from tokenmill.store.dataset import Dataset
from tokenmill.store.rows import Row


def lineage(dataset: Dataset) -> dict[str, Any]:
    """JSON values: the snapshot that was exported, and by stream the spaces and recipes of its
    ids."""
    return {
        "snapshot": dataset.snapshot,
        "spaces": {stream: list(found) for stream, found in dataset.spaces.items()},
        "recipes": {stream: list(found) for stream, found in dataset.recipes.items()},
    }


def sample_facts(row: Row, streams: list[str]) -> dict[str, Any]:
    """JSON values: where a sample came from, and which of `streams` it has (null: not yet)."""
    verdicts = {s: v.name.lower() if (v := row.verdict(s)) is not None else None for s in streams}
    return {
        "key": row.key,
        "source": row.source,
        "pipeline": row.pipeline,
        "verdicts": verdicts,
        **({"span": row.span} if row.span is not None else {}),
    }
