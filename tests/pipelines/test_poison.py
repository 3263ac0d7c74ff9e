"""Samples that are out to stop a run, and what only looks like them (G1, G4, G9)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import LOCAL, cli

import tokenmill

# marker -> the reason it must end with; `enc-` ones reach the encoder's own process
POISON = {
    "<crash>": "process-died",
    "<hang>": "timeout",
    "<eat>": "out-of-memory",
    "<fill>": "prepare-failed",
    "<enc-crash>": "process-died",
    "<enc-hang>": "timeout",
    "<enc-eat>": "out-of-memory",
}
PATIENT = "sample_seconds: 8, encode_seconds: 3, sample_mib: 512"


def write_job(folder: Path, texts: list[str], *, policy: str, config: str = "", kind: str = "Bytes",
              store: str = "store") -> Path:  # fmt: skip
    (folder / "in").mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "in" / "0.jsonl").write_text(lines)
    job = folder / "job.yaml"
    job.write_text(
        f"name: poison\nstore: {store}\npolicy: {{{policy}}}\npipelines:\n  docs:\n"
        "    source: {uri: in, format: jsonl}\n    streams:\n"
        f"      text: {{field: text, tokenizer: 'tests.workers.toy:{kind}',\n"
        f"             config: {{{config}}}}}\n"
    )
    return job


def verdicts(store: Path) -> list[str | None]:
    """By sample, in order: its text, None without tokens."""
    rows = tokenmill.open(str(store)).rows()
    return [None if row["text"] is None else bytes(row["text"]).decode() for row in rows]


def refused(store: Path) -> list[dict]:
    sql = "select row, reason, message, stage from quarantine order by row"
    return tokenmill.open(str(store)).sql(sql).to_pylist()


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_each_poison_is_one_quarantine_row_with_a_true_reason(
    tmp_path: Path, executor: str
) -> None:
    """The rest of its unit is tokenized. What bounds the delay: docs/operations.md."""
    texts = [f"sample {n}" for n in range(40)]
    for number, marker in enumerate(POISON):
        texts.insert(3 + 5 * number, marker)
    job = write_job(tmp_path, texts, policy=f"quarantine_share: 1, {PATIENT}", config="child: true")
    cli("run", job, "--executor", executor, "--workers", "1")
    store = tmp_path / "store"
    assert verdicts(store) == [None if t in POISON else t for t in texts]
    found = {texts[row["row"]]: row for row in refused(store)}
    assert {text: row["reason"] for text, row in found.items()} == POISON
    assert "policy.encode_seconds (3 s)" in found["<enc-hang>"]["message"]
    assert all(row["stage"] == "encode" for text, row in found.items() if "enc" in text)
    cli("verify", store)


@pytest.mark.parametrize("kind", ["Bytes", "Flat"])
def test_poison_meets_no_child_where_the_worker_prepares(tmp_path: Path, kind: str) -> None:
    texts = ["a", "<hang>" if kind == "Bytes" else "<flat-hang>", "b", "<crash>", "c"]
    job = write_job(tmp_path, texts, policy=f"quarantine_share: 1, {PATIENT}", kind=kind)
    cli("run", job, *LOCAL)
    assert verdicts(tmp_path / "store") == ["a", None, "b", None, "c"]
    assert [row["reason"] for row in refused(tmp_path / "store")] == ["timeout", "process-died"]


def test_a_worker_that_fails_every_sample_stops_the_run_and_quarantines_nothing(
    tmp_path: Path,
) -> None:
    job = write_job(tmp_path, ["<raise>"] * 60, policy="quarantine_share: 1")
    said = cli("run", job, *LOCAL, expect=3)
    assert "no quarantine of it was committed" in said
    assert "go on: tokenmill run" in said
    assert refused(tmp_path / "store") == []


def test_a_storm_among_good_samples_is_the_samples_own(tmp_path: Path) -> None:
    texts = ["good"] * 10 + ["<raise>"] * 30
    job = write_job(tmp_path, texts, policy="quarantine_share: 1")
    cli("run", job, *LOCAL)
    assert len(refused(tmp_path / "store")) == 30


def test_what_counts_as_a_storm_is_the_jobs_to_say(tmp_path: Path) -> None:
    job = write_job(tmp_path, ["<raise>"] * 9, policy="quarantine_share: 1, systematic_row: 5")
    cli("run", job, *LOCAL, expect=3)
    job = write_job(tmp_path, ["<raise>"] * 9, policy="quarantine_share: 1, systematic_row: 500")
    cli("run", job, *LOCAL)
    assert len(refused(tmp_path / "store")) == 9


def test_a_fault_of_the_plug_in_stops_the_run_with_70(tmp_path: Path) -> None:
    job = write_job(tmp_path, ["a", "<enc-raise>"], policy="quarantine_share: 1")
    said = cli("run", job, *LOCAL, expect=70)
    assert "ZeroDivisionError" in said and "a fault of ours" in said


def test_retry_after_a_fix_clears_the_quarantine_and_keeps_its_history(tmp_path: Path) -> None:
    """G1: only the row of the later verdict counts. New inputs wait for the next run."""
    job = write_job(tmp_path, ["a", "<fault>", "b"], policy="quarantine_share: 1", kind="Flat")
    cli("run", job, *LOCAL)
    store = tmp_path / "store"
    first = {row.key: row["text"] for row in tokenmill.open(str(store))}
    assert [row["reason"] for row in refused(store)] == ["toy-fault"]
    assert "Nothing" in cli("retry", job, *LOCAL, "--where", "reason = 'timeout'")
    cli("retry", job, *LOCAL, "--where", "reason = 'toy-fault'")  # not mended yet
    assert [row["reason"] for row in refused(store)] == ["toy-fault"]
    (tmp_path / "in" / "1.jsonl").write_text('{"text": "new"}\n')
    job.write_text(job.read_text().replace("config: {}", "config: {mended: true}"))
    cli("retry", job, *LOCAL)
    assert refused(store) == [] and verdicts(store) == ["a", "<fault>", "b"]
    assert {row.key: row["text"] for row in tokenmill.open(str(store))}.keys() == first.keys()
    history = tokenmill.open(str(store)).sql("select reason, run from quarantine_history")
    assert history["reason"].to_pylist() == ["toy-fault"] * 2
    assert len(set(history["run"].to_pylist())) == 2
    cli("run", job, *LOCAL)
    assert sorted(verdicts(store)) == ["<fault>", "a", "b", "new"]
    cli("verify", store)
