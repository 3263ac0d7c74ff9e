"""Little jobs over JSONL for the worker tests: real source, real store, toy tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Span, Task, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.workers.sources import open_source
from tokenmill.workers.worker import StreamWorker

TOY = "tests.workers.toy"


def make_job(folder: Path, *, tokenizer: str = "Flat", stream: dict[str, Any] | None = None) -> Job:
    return Job.model_validate(
        {
            "name": "toy",
            "store": str(folder / "store"),
            "pipelines": {
                "docs": {
                    "source": {"uri": str(folder / "in"), "format": "jsonl"},
                    "streams": {
                        "text": {
                            "field": "text",
                            "tokenizer": f"{TOY}:{tokenizer}",
                            **(stream or {}),
                        }
                    },
                }
            },
        }
    )


def write(folder: Path, *files: list[Any]) -> None:
    """One JSONL file per list; a str is the text of a sample, anything else the whole object."""
    (folder / "in").mkdir(exist_ok=True)
    for number, samples in enumerate(files):
        lines = [json.dumps({"text": s} if isinstance(s, str) else s) for s in samples]
        (folder / "in" / f"{number}.jsonl").write_text("".join(line + "\n" for line in lines))


def make_unit(job: Job) -> WorkUnit:
    """All inputs in one unit."""
    source = open_source(job.pipelines["docs"].source)
    spans = tuple(Span(input=i, start=0, end=i.extent) for i in source.list())
    return WorkUnit(pipeline="docs", spans=spans)


def make_task(job: Job, recipe: str, **changes: Any) -> Task:
    return Task(
        **{"unit": make_unit(job), "stream": "text", "recipe": recipe, "attempt": 0, "run": "r1"}
        | changes
    )


def run(job: Job, worker: StreamWorker | None = None, **changes: Any) -> Any:
    mine = worker or StreamWorker(job, "docs", "text")
    try:
        recipe = changes.pop("recipe", mine.facts().identity.recipe)
        return mine.run(make_task(job, recipe, **changes))
    finally:
        if worker is None:
            mine.close()


def sample_ids(job: Job) -> list[bytes]:
    source = open_source(job.pipelines["docs"].source)
    events = source.read(make_unit(job).spans, ("text",))
    return [i for event in events if hasattr(event, "ids") for i in event.ids]


def rows(job: Job, result: TaskResult) -> list[bytes | None]:
    """Per row the tokens as bytes, None where there are none."""
    found: list[bytes | None] = []
    for shard in result.shards:
        with ShardReader(Access(job.store), shard.path) as reader:
            for row in range(reader.rows):
                ids = reader.ids(row)
                found.append(None if ids is None else ids.astype("uint8").tobytes())
    return found
