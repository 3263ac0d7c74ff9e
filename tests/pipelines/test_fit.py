"""`tokenmill fit`: any plug-in, any field, from a job's source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.workers.toy import Bytes
from tokenmill.pipelines.cli import app
from tokenmill.pipelines.fit import fit
from tokenmill.schemas.errors import JobError, TokenizerError
from tokenmill.schemas.tokenizer import Fields

HERE = "tests.pipelines.test_fit"


class Learner(Bytes):
    """Writes what it was given."""

    roles = ("text", "title")

    @classmethod
    def fit(
        cls, samples: Iterator[Fields], out: str, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        seen = [dict(fields) for fields in samples]
        Path(out).write_text(json.dumps(seen))
        return {"seen": len(seen), **config}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    rows = [{"body": "a", "head": "A"}, {"body": "b"}, {"body": "c", "head": "C"}, {"body": 7}]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: t\nstore: s\npipelines:\n"
        "  other: {source: {uri: nowhere, format: jsonl}, streams: {x: {tokenizer: bpe}}}\n"
        "  docs:\n    source: {uri: in, format: jsonl}\n    streams:\n"
        f"      x: {{tokenizer: '{HERE}:Learner', fields: {{text: body, title: head}}}}\n"
    )
    return path


def test_fields_and_source_are_those_of_the_stream_of_this_tokenizer(
    job: Path, tmp_path: Path
) -> None:
    """Samples that lack a field, or whose value is no text, are passed over."""
    out = tmp_path / "new" / "artefact.json"
    lineage = fit(f"{HERE}:Learner", str(job), str(out), {"size": 3})
    assert lineage == {"seen": 2, "size": 3}
    assert json.loads(out.read_text()) == [
        {"text": "a", "title": "A"},
        {"text": "c", "title": "C"},
    ]


@pytest.mark.parametrize("verb", [["fit"], ["tokenizers", "fit"]])
def test_the_verb_takes_fields_by_role_and_prints_the_lineage(
    job: Path, tmp_path: Path, verb: list[str]
) -> None:
    out = tmp_path / "artefact.json"
    done = CliRunner().invoke(
        app,
        [*verb, f"{HERE}:Learner", "--job", str(job), "--out", str(out), "--set", "n=[1, 2]",
         "--field", "title=body"],
        catch_exceptions=False,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"seen": 3, "n": [1, 2]}
    assert [row["title"] for row in json.loads(out.read_text())] == ["a", "b", "c"]


def test_what_cannot_be_done_is_said(job: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "x")
    with pytest.raises(TokenizerError, match="cannot be fitted"):
        fit("tests.workers.toy:Flat", str(job), out, {})
    with pytest.raises(JobError, match=r"no field 'titel'.*did you mean 'title'"):
        fit(f"{HERE}:Learner", str(job), out, {}, fields={"titel": "body"})
    with pytest.raises(JobError, match="no field ''"):
        fit(f"{HERE}:Learner", str(job), out, {}, fields={"": "body"})
    with pytest.raises(JobError, match="no pipeline 'doc'"):
        fit(f"{HERE}:Learner", str(job), out, {}, pipeline="doc")
