"""The main job, end to end through the command line: real processes, real Ray, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import tokenmill

CLI = [sys.executable, "-c", "from tokenmill.pipelines.cli import main; main()"]
ROOT = Path(__file__).resolve().parents[2]

LOCAL = ("--executor", "local", "--workers", "2")


def environment() -> dict[str, str]:
    """Today's, since fixtures set credentials."""
    ours = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **ours}


def cli(*arguments: object, expect: int = 0) -> str:
    done = subprocess.run(
        [*CLI, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=150
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    for name in ("words", "other"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(f"the {name} of a small corpus, a corpus\n" * 50)
        job = folder / f"{name}.yaml"
        job.write_text(job_text(source=f"{{uri: {name}, format: text}}", store="none"))
        cli("tokenizers", "fit", "bpe", "--job", job, "--out", folder / f"{name}.json",
            "--set", "vocab_size=300")  # fmt: skip
    return folder


def job_text(*, source: str, streams: str = "{text: {tokenizer: bpe, checkpoint: v.json}}",
             store: str = "store") -> str:  # fmt: skip
    return (
        f"name: test\nstore: {store}\npipelines:\n  docs:\n    source: {source}\n"
        f"    streams: {streams}\n"
    )


def make(folder: Path, vocabulary: Path, count: int = 6, lines: int = 50) -> Path:
    """A job over JSONL files; each small enough for a unit of its own."""
    (folder / "in").mkdir()
    for number in range(count):
        add(folder, number, lines)
    job = folder / "job.yaml"
    source = "{uri: in, format: jsonl, unit_inputs: 1}"
    checkpoint = vocabulary / "words.json"
    streams = f"{{text: {{tokenizer: bpe, checkpoint: {checkpoint}, field: text}}}}"
    job.write_text(job_text(source=source, streams=streams))
    return job


def add(folder: Path, number: int, lines: int = 50) -> None:
    rows = [{"text": f"the corpus {number} of {n} words", "other": f"{n}"} for n in range(lines)]
    (folder / "in" / f"{number:03d}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def ids(store: Path, stream: str = "text") -> dict[bytes, list[int]]:
    rows = list(tokenmill.open(str(store)))
    found = {row.id: row[stream].tolist() for row in rows}
    assert len(found) == len(rows), "a sample stands twice"
    return found


def commits(store: Path) -> int:
    return len(list((store / "ledger" / "_delta_log").glob("*.json")))


def test_the_same_job_again_commits_nothing_and_a_grown_source_only_the_difference(
    tmp_path: Path, vocabulary: Path
) -> None:
    """G3; and the ids are those of the reference engine."""
    job = make(tmp_path, vocabulary)
    cli("run", job, *LOCAL)
    store = tmp_path / "store"
    before = commits(store)
    assert "Nothing new" in cli("run", job, *LOCAL)
    assert commits(store) == before
    add(tmp_path, 99)
    cli("run", job, *LOCAL)
    table = tokenmill.open(str(store)).sql("select run, sum(samples) as n from shards group by run")
    assert sorted(table["n"].to_pylist()) == [50, 300]
    reference = Tokenizer.from_file(str(vocabulary / "words.json"))
    for row in tokenmill.open(str(store)):
        text = row.decode("text")
        assert row["text"].tolist() == reference.encode(text, add_special_tokens=False).ids
    cli("verify", store)


def test_killed_driver_loses_nothing_and_doubles_nothing(tmp_path: Path, vocabulary: Path) -> None:
    """G4: SIGKILL of the driver in the middle, then the same command again."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    calm = make(tmp_path / "a", vocabulary, count=12, lines=4000)
    cli("run", calm, *LOCAL)
    job = make(tmp_path / "b", vocabulary, count=12, lines=4000)
    process = subprocess.Popen([*CLI, "run", str(job), *LOCAL], env=environment())
    shards = tmp_path / "b" / "store" / "shards"
    deadline = time.monotonic() + 60
    while not list(shards.rglob("*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cli("run", job, *LOCAL)  # the very same command: a dead holder holds nothing
    one = [i for _, i in sorted(ids(tmp_path / "a" / "store").items())]
    two = [i for _, i in sorted(ids(tmp_path / "b" / "store").items())]
    assert sorted(one) == sorted(two) and len(two) == 48_000
    cli("verify", tmp_path / "b" / "store")


def test_two_runs_at_once_commit_every_cell_once(tmp_path: Path, vocabulary: Path) -> None:
    """G5, with the lease switched off."""
    job = make(tmp_path, vocabulary, count=10, lines=500)
    both = [
        subprocess.Popen([*CLI, "run", str(job), *LOCAL, "--no-lease"], env=environment())
        for _ in range(2)
    ]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    assert len(ids(tmp_path / "store")) == 5000
    cli("verify", tmp_path / "store")


def test_the_lease_names_its_holder(tmp_path: Path, vocabulary: Path) -> None:
    job = make(tmp_path, vocabulary, count=2)
    from tokenmill.store.access import Access  # noqa: PLC0415 - only here
    from tokenmill.store.lease import Lease  # noqa: PLC0415 - only here

    (tmp_path / "store").mkdir()
    holder = {"host": "node7", "pid": 4711, "run": "nightly", "started": "2026-01-01T00:00:00Z"}
    lease = Lease.acquire(Access(str(tmp_path / "store")), "docs", holder)
    said = cli("run", job, *LOCAL, expect=3)
    assert "node7" in said and "4711" in said
    lease.release()
    cli("run", job, *LOCAL)


def test_two_fields_are_two_aligned_streams_and_one_is_encoded_again_alone(
    tmp_path: Path, vocabulary: Path
) -> None:
    job = make(tmp_path, vocabulary, count=3)

    def write(second: str, config: str = "{}") -> None:
        checkpoint = vocabulary / "words.json"
        first = f"text: {{tokenizer: bpe, checkpoint: {checkpoint}, field: text}}"
        other = (
            f"other: {{tokenizer: bpe, checkpoint: {vocabulary / second}, field: other, "
            f"config: {config}}}"
        )
        source = "{uri: in, format: jsonl, unit_inputs: 1}"
        job.write_text(job_text(source=source, streams=f"{{{first}, {other}}}"))

    write("other.json")
    cli("run", job, *LOCAL)
    store = tmp_path / "store"
    for row in tokenmill.open(str(store)):
        number = row.decode("other")
        assert row.decode("text").endswith(f" of {number} words")
    write("words.json")
    said = cli("run", job, *LOCAL, expect=2)
    assert "recipe of stream 'other' has changed" in said and "--retokenize" in said
    cli("run", job, *LOCAL, "--retokenize")
    table = tokenmill.open(str(store)).sql(
        "select stream, count(distinct run) n from shards group by 1"
    )
    assert dict(zip(*table.to_pydict().values(), strict=True)) == {"text": 1, "other": 1}
    runs = tokenmill.open(str(store)).sql("select distinct stream, run from shards")
    assert len(set(runs["run"].to_pylist())) == 2, "only `other` was encoded again"
    for row in tokenmill.open(str(store)):
        assert row.decode("text").endswith(f" of {row.decode('other')} words")
    cli("verify", store)


def test_on_ray_the_same_ids_as_on_local_processes(tmp_path: Path, vocabulary: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    cli("run", make(tmp_path / "a", vocabulary), *LOCAL)
    cli("run", make(tmp_path / "b", vocabulary), "--executor", "ray")
    assert sorted(ids(tmp_path / "a" / "store").values()) == sorted(
        ids(tmp_path / "b" / "store").values()
    )


def test_a_users_mistakes_are_messages_with_exit_code_2(tmp_path: Path, vocabulary: Path) -> None:
    assert "init" in cli("run", tmp_path / "none.yaml", expect=2)
    job = make(tmp_path, vocabulary, count=1)
    good = job.read_text()
    job.write_text(good.replace("tokenizer: bpe", "tokenizer: bep"))
    assert "'bpe'" in cli("run", job, *LOCAL, expect=2)
    job.write_text(good.replace("field: text", "field: txet"))
    assert "did you mean 'text'" in cli("run", job, *LOCAL, expect=2)
    job.write_text(good.replace("format: jsonl", "fromat: jsonl"))
    assert "did you mean 'format'" in cli("run", job, *LOCAL, expect=2)
    job.write_text(good.replace("words.json", "gone.json"))
    assert "gone.json" in cli("run", job, *LOCAL, expect=2)
    job.write_text(good.replace("store: store", "store: taken"))
    (tmp_path / "taken").write_text("a file")
    assert "taken" in cli("run", job, *LOCAL, expect=3)


def test_too_much_in_quarantine_ends_with_1(tmp_path: Path, vocabulary: Path) -> None:
    job = make(tmp_path, vocabulary, count=1)
    (tmp_path / "in" / "bad.jsonl").write_text("not json\n" * 60)
    said = cli("run", job, *LOCAL, expect=1)
    assert "60 of 110 samples quarantined" in said
    assert "invalid-json" in cli("quarantine", tmp_path / "store")


def test_sources_on_s3_and_a_store_there_give_the_same_ids(s3, tmp_path, vocabulary) -> None:
    from tokenmill.store.access import Access  # noqa: PLC0415 - only here

    job = make(tmp_path, vocabulary, count=3)
    cli("run", job, *LOCAL)
    root = s3()
    bucket = Access(root)
    for file in sorted((tmp_path / "in").iterdir()):
        bucket.put(file, f"in/{file.name}")
    there = tmp_path / "there.yaml"
    text = job.read_text().replace("uri: in", f"uri: {root}/in")
    there.write_text(text.replace("store: store", f"store: {root}/store"))
    cli("run", there, *LOCAL)
    assert "Nothing new" in cli("run", there, *LOCAL)
    remote = sorted(row["text"].tolist() for row in tokenmill.open(f"{root}/store"))
    assert remote == sorted(ids(tmp_path / "store").values())
    cli("verify", f"{root}/store")
