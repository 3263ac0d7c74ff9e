"""The job files under examples/ and the template of `init` are valid, and what they name exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.pipelines.session import load_job
from tokenmill.pipelines.template import JOB_TEMPLATE
from tokenmill.schemas.job import Job, parse_job
from tokenmill.workers import registry
from tokenmill.workers.sources import open_source

JOBS = sorted((Path(__file__).parents[2] / "examples" / "jobs").glob("*.yaml"))


def check(job: Job) -> None:
    for pipeline in job.pipelines.values():
        open_source(pipeline.source)
        for stream in pipeline.streams.values():
            descriptor = registry.tokenizer_class(stream.tokenizer).describe(stream.config)
            descriptor.output(stream.output)


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_an_example_is_a_valid_job_with_known_tokenizers(path: Path) -> None:
    job = load_job(str(path))
    check(job)
    assert job.store.endswith("tokens")


def test_the_template_is_a_valid_job() -> None:
    check(parse_job(JOB_TEMPLATE, name="template", folder="/corpus"))
