"""A schedule that uses everything, for the tests and for slim.py."""

from __future__ import annotations

from typing import Any

from tokenmill.pipelines.schedule.settings import Nodes, Schedule
from tokenmill.schemas.job import parse_job

JOB = """
name: Nightly_docs
store: s3://bucket/tokens
pipelines:
  docs:
    source: {uri: "s3://bucket/raw/*.jsonl", format: jsonl}
    streams:
      text: {tokenizer: bpe, checkpoint: "s3://bucket/v.json", field: text}
      image: {tokenizer: grid, field: image}
resources: {image: {gpus_per_worker: 1}}
"""


def schedule(nodes: dict[str, Any] | None = None, **changes: Any) -> Schedule:
    return Schedule(
        **{
            "job": parse_job(JOB, name="job.yaml", folder="/data"),
            "job_file": "/data/job.yaml",
            "job_text": JOB,
            "cron": "0 2 * * *",
            "timezone": "Europe/Zurich",
            "nodes": Nodes(**(nodes or {})),
        }
        | changes
    )


def full_schedule() -> Schedule:
    return schedule(
        {"secret": "aws", "spot": "cloud.google.com/gke-spot=true"},
        alert="https://hooks.example.org/x",
        arguments=("--workers", "4"),
    )
