"""Streams made from another stream's tokens, end to end: real worker processes, a real ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenmill
from tests.workers.toy_grids import CODES, text_of
from tokenmill.pipelines.fit_tokens import fit_from_files, fit_from_store
from tokenmill.pipelines.run import Report, run
from tokenmill.pipelines.session import Options
from tokenmill.schemas.errors import JobError, TokenizerError
from tokenmill.schemas.job import Job, Stream
from tokenmill.schemas.tokenizer import Encoded
from tokenmill.store.access import Access
from tokenmill.store.ledger import Ledger
from tokenmill.store.verify import verify
from tokenmill.workers import registry
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import read_table

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(2)


class Place:
    """A folder with a source of grids, merges learnt on some, and a job over both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "in").mkdir()
        self.log = folder / "log"
        self.log.touch()

    def write(self, number: int, count: int = 20, *more: Any) -> None:
        grids = [RNG.integers(0, 3, RNG.integers(1, 7, 2)) for _ in range(count)]
        lines = [{"text": text_of(g)} for g in grids] + list(more)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.folder / "in" / f"{number:03d}.jsonl").write_text(text)

    def merges(self, name: str = "m", **config: Any) -> str:
        grids = np.random.default_rng(1).integers(0, 3, (30, 6, 6))
        out = str(self.folder / f"{name}.safetensors")
        cls: Any = registry.tokenizer_class("bpe-image-merges")
        cls.fit(iter([{"vq": g} for g in grids]), out, {"vocab": CODES, "rules": 9, **config})
        return out

    def job(self, merges: str | None, **changes: Any) -> Job:
        vq: dict[str, Any] = {
            "tokenizer": "tests.workers.toy_grids:Grids",
            "field": "text",
            "config": {"log": str(self.log), **changes.pop("vq", {})},
        }
        streams: dict[str, Any] = {"vq": vq}
        if merges is not None:
            child = {"tokenizer": "bpe-image-merges", "parent": "vq", "checkpoint": merges}
            # named so that it sorts, and stands, before its parent
            streams = {"merged": {**child, **changes}, "vq": vq}
        source = {"uri": str(self.folder / "in"), "format": "jsonl", "unit_inputs": 1}
        return Job.model_validate(
            {
                "name": "children",
                "store": str(self.folder / "store"),
                "pipelines": {"p": {"source": source, "streams": streams}},
                "policy": {"quarantine_share": 1.0},
            }
        )

    def run(self, job: Job, **options: Any) -> Report:
        report = run(
            job,
            Options(executor="local", workers=1, **options),
            watch=lambda *_: None,
            say=lambda _: None,
        )
        assert report.exit_code == 0, report.why
        return report

    def learn_from_the_store(self) -> None:
        """The table knows whose codes it is about, and is the one that the grids alone give."""
        store, out = str(self.folder / "store"), str(self.folder / "s.safetensors")
        lineage = fit_from_store("bpe-image-merges", store, "vq", out, {"rules": 7})
        dataset = tokenmill.open(store)
        assert lineage["codes_space"] == dataset.spaces["vq"][0]
        assert (lineage["snapshot"], lineage["vocab"]) == (dataset.snapshot, CODES)
        assert lineage["grids"] == 40
        grids = [row["vq"].reshape(row.shape("vq")) for row in dataset]
        by_hand = str(self.folder / "h.safetensors")
        cls: Any = registry.tokenizer_class("bpe-image-merges")
        cls.fit(iter([{"vq": g} for g in grids]), by_hand, {"vocab": CODES, "rules": 7})
        one, two = (read_table(Path(p), where=p) for p in (out, by_hand))
        assert np.array_equal(one.rules, two.rules) and one.codes_space == lineage["codes_space"]
        with pytest.raises(JobError, match="vq"):
            fit_from_store("bpe-image-merges", store, "vqq", out, {})

    @property
    def encoded(self) -> int:
        """How often a picture went through the encoder."""
        return len(self.log.read_text().splitlines())

    def rows(self) -> list[Any]:
        return list(tokenmill.open(str(self.folder / "store")))

    def check(self, merges: str) -> int:
        """Every merged row decodes to its own vq row; how many have tokens."""
        tokenizer: Any = registry.load("bpe-image-merges", merges)
        tokens = 0
        for row in self.rows():
            assert row.verdict("merged") == row.verdict("vq")
            if row["vq"] is None:
                continue
            ids = row["merged"]
            grid = tokenizer.decode({"merged": Encoded(ids=ids, shape=ids.shape)})
            assert np.array_equal(grid, row["vq"].reshape(row.shape("vq")))
            tokens += 1
        access = Access(str(self.folder / "store"))
        report = verify(access, Ledger.open(access))
        assert report.ok, report
        return tokens

    def runs(self, stream: str) -> int:
        table = tokenmill.open(str(self.folder / "store")).sql(
            f"select count(distinct run) n from shards where stream = '{stream}'"
        )
        return int(table["n"][0].as_py())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_other_merges_are_made_without_encoding_a_picture_again(place: Place) -> None:
    """G1, G3, G8: one encoding of each picture, whatever is merged from it."""
    for number in range(2):
        place.write(number)
    one = place.merges("one")
    report = place.run(place.job(one))
    assert report.counts.committed == 4 and place.encoded == 40
    assert place.check(one) == 40
    two = place.merges("two", rules=4)
    with pytest.raises(JobError, match="recipe of stream 'merged' has changed: space"):
        place.run(place.job(two))
    report = place.run(place.job(two), retokenize=True)
    assert report.counts.committed == 2 and place.encoded == 40
    assert place.check(two) == 40
    assert place.runs("vq") == 1, "the parent was left alone"
    # another parent makes its child outdated, and both are made anew in one run
    place.learn_from_the_store()
    report = place.run(place.job(two, vq={"plus": 1}), retokenize=True)
    assert report.counts.committed == 4 and place.encoded == 80
    assert place.check(two) == 40
    assert any(row["vq"].max() == 3 for row in place.rows())
    assert place.run(place.job(two, vq={"plus": 1})).nothing_new


def test_children_of_parents_that_an_earlier_run_committed_are_finished(place: Place) -> None:
    """G4, G3: what is committed is read, what is new or changed is encoded, in one run."""
    place.write(0)
    place.write(1, 15, {"text": "<refuse>"})
    place.run(place.job(None))
    assert place.encoded == 35
    place.write(2, 7)
    merges = place.merges()
    report = place.run(place.job(merges))
    assert place.encoded == 42
    assert report.counts.committed == 4  # one of vq, three of merged
    assert place.check(merges) == 42
    place.write(1, 30)
    report = place.run(place.job(merges))
    assert report.counts.committed == 2 and place.encoded == 72
    assert place.check(merges) == 57
    assert place.run(place.job(merges)).nothing_new


def test_children_have_their_parents_verdicts_and_children_of_their_own(place: Place) -> None:
    """G1: no tokens there, none here, and the reason says where to look."""
    place.write(0, 3, {"text": "<refuse>"}, {"other": 1})
    place.write(1, 0, {"text": "<refuse>"})
    place.write(2, 0)
    merges = place.merges()
    job = place.job(merges)
    streams = job.pipelines["p"].streams
    twice = Stream(tokenizer="tests.workers.toy_children:Double", parent="vq")
    more = {
        "a": twice.model_copy(update={"parent": "twice"}),
        "must": streams["merged"].model_copy(update={"required": True}),
        "twice": twice,
    }
    pipeline = job.pipelines["p"].model_copy(update={"streams": {**more, **streams}})
    place.run(job.model_copy(update={"pipelines": {"p": pipeline}}))
    assert place.check(merges) == 3
    found = tokenmill.open(str(place.folder / "store")).sql(
        "select stream, reason, key from quarantine order by stream, reason, key"
    )
    reasons: dict[str, list[str]] = {}
    keys = {}
    for row in found.to_pylist():
        reasons.setdefault(row["stream"], []).append(row["reason"])
        keys.setdefault(row["stream"], []).append(row["key"])
    inherited = ["parent-quarantined"] * 2
    assert reasons == {
        "a": inherited,
        "merged": inherited,
        "must": ["missing-field", *inherited],
        "twice": inherited,
        "vq": ["toy-refused"] * 2,
    }
    assert keys["a"] == keys["merged"] == keys["twice"] == keys["vq"]
    for row in place.rows():
        if row["vq"] is not None:
            assert row["a"].tolist() == [4 * x for x in row["vq"].tolist()]


def test_merges_of_other_codes_are_refused_before_anything_runs(place: Place) -> None:
    """G7."""
    place.write(0)
    with pytest.raises(JobError, match="codebooks"):
        place.run(place.job(place.merges("small", vocab=5)))
    assert place.encoded == 0


def test_mistakes_about_parents_are_named(place: Place) -> None:
    place.write(0, 1)
    with pytest.raises(ValueError, match="did you mean 'vq'"):
        place.job(place.merges(), parent="vqq")
    with pytest.raises(ValueError, match="circle"):
        place.job(place.merges(), parent="merged")
    with pytest.raises(ValueError, match="either `parent` or a field"):
        place.job(place.merges(), field="text")
    with pytest.raises(TokenizerError, match="reads the tokens of another stream"):
        place.run(place.job(place.merges(), parent=None))
    with pytest.raises(TokenizerError, match="not the tokens of"):
        place.run(place.job(None).model_copy(update={"pipelines": _wrong(place)}))


def _wrong(place: Place) -> Any:
    job = place.job(place.merges())
    pipeline = job.pipelines["p"]
    vq = pipeline.streams["vq"]
    streams = {"vq": vq, "again": vq.model_copy(update={"field": None, "parent": "vq"})}
    return {"p": pipeline.model_copy(update={"streams": streams})}


def test_a_killed_driver_leaves_parents_whose_children_the_next_run_makes(place: Place) -> None:
    """G4: SIGKILL when the first shards lie there, then the same command."""
    for number in range(8):
        place.write(number, 100)
    merges = place.merges()
    job = place.folder / "job.json"
    job.write_text(place.job(merges).model_dump_json())
    command = [sys.executable, "-c", "from tokenmill.pipelines.cli import main; main()", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [str(job), "--executor", "local", "--workers", "1"]
    process = subprocess.Popen([*command, *arguments], env=environment, cwd=ROOT)
    shards = place.folder / "store" / "shards"
    deadline = time.monotonic() + 60
    while len(list(shards.rglob("*.arrow"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, *arguments], env=environment, cwd=ROOT, check=True, timeout=120)
    assert place.check(merges) == 800
    assert place.run(place.job(merges)).nothing_new
    store, out = str(place.folder / "store"), place.folder / "from-store.safetensors"
    fit = [*command[:-1], "fit", "bpe-image-merges", "--store", store, "--stream", "vq"]
    arguments = ["--out", str(out), "--set", "rules=5", "--set", "workers=2"]
    done = subprocess.run(
        [*fit, *arguments], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["grids"] == 800 and out.exists()
    wrong = [*command[:-1], "fit", "bpe-image-merges", "--store", store, "--out", str(out)]
    assert subprocess.run(wrong, env=environment, cwd=ROOT, check=False).returncode == 2


def test_merges_are_learnt_from_files_of_grids(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    grids = rng.integers(0, 5, (12, 6, 7)).astype(np.uint16)
    np.save(tmp_path / "many.npy", grids[:11])
    np.save(tmp_path / "one.npy", grids[11])
    files = [str(tmp_path / "many.npy"), str(tmp_path / "one.npy")]
    out = tmp_path / "new" / "m.safetensors"
    lineage = fit_from_files("bpe-image-merges", files, str(out), {"rules": 6})
    assert (lineage["grids"], lineage["files"]) == (12, ["many.npy", "one.npy"])
    cls: Any = registry.tokenizer_class("bpe-image-merges")
    cls.fit(iter([{"vq": g} for g in grids]), str(tmp_path / "m"), {"rules": 6})
    assert np.array_equal(
        read_table(out, where="").rules, read_table(tmp_path / "m", where="").rules
    )
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "floats.npy", np.zeros((2, 2)))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects", "floats", "text", "gone"):
        with pytest.raises(JobError, match="file of grids"):
            fit_from_files("bpe-image-merges", [str(tmp_path / f"{name}.npy")], str(out), {})
    with pytest.raises(TokenizerError, match="does not learn from tokens"):
        fit_from_files("bpe", files, str(out), {})
