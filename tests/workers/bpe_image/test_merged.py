"""Merged ids straight from pictures, and the same ones by way of a committed vq stream."""

from __future__ import annotations

import numpy as np
import pytest

import tokenmill
from tests.workers.bpe_image.vectors import DATA, weights
from tokenmill.pipelines.decode import Wanted, decode_sample
from tokenmill.pipelines.run import run
from tokenmill.pipelines.session import Options
from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import Job, parse_job
from tokenmill.schemas.tokenizer import Checkpoint
from tokenmill.workers import conformance, registry
from tokenmill.workers.conformance_subject import encode_one
from tokenmill.workers.tokenizers.bpe_image.tokenizer import BpeImageTokenizer
from tokenmill.workers.tokenizers.bpe_image_merges.tokenizer import MergesTokenizer

SCENES = sorted((DATA / "preprocess").glob("rgb_*.png"))
CHECKPOINT = Checkpoint(uri=str(weights("taming_attn_tiny")))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """Merges learnt on the codes of the pictures themselves."""
    images = BpeImageTokenizer.load(CHECKPOINT, {"size": 64})
    grids = []
    for file in SCENES:
        made = encode_one(images, {"image": file.read_bytes()})["vq"]
        grids.append(made.ids.reshape(made.shape))
    out = str(tmp_path_factory.mktemp("merges") / "m.safetensors")
    lineage = {"codes_space": images.identity().space}
    config = {"vocab": 96, "rules": 40, "lineage": lineage}
    MergesTokenizer.fit(iter([{"vq": g} for g in grids]), out, config)
    return out


def test_both_ways_give_the_same_ids_of_the_same_recipe(table, tmp_path):
    for file in SCENES:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    image = {"tokenizer": "bpe-image", "checkpoint": CHECKPOINT.uri, "field": "png"}
    streams = {
        "vq": {**image, "config": {"size": 64}},
        "child": {"tokenizer": "bpe-image-merges", "parent": "vq", "checkpoint": table},
        "direct": {**image, "output": "merged", "config": {"size": 64, "merges": table}},
    }
    source = {"uri": str(tmp_path / "in"), "format": "files"}
    job = {
        "name": "merged",
        "store": str(tmp_path / "store"),
        "pipelines": {"p": {"source": source, "streams": streams}},
    }
    report = run(
        Job.model_validate(job),
        Options(executor="local", workers=1),
        watch=lambda *_: None,
        say=lambda _: None,
    )
    assert report.exit_code == 0, report.why
    dataset = tokenmill.open(str(tmp_path / "store"))
    assert dataset.recipes["child"] == dataset.recipes["direct"]
    assert dataset.spaces["child"] == dataset.spaces["direct"] != dataset.spaces["vq"]
    rows = list(dataset)
    assert len(rows) == len(SCENES)
    for row in rows:
        assert np.array_equal(row["child"], row["direct"]) and len(row["child"]) < len(row["vq"])
        picture = row.decode("vq")
        assert picture.shape == (64, 64, 3)
        # merged ids alone give back the very same picture, by either way
        assert np.array_equal(row.decode("child"), picture)
        assert np.array_equal(row.decode("direct"), picture)
    for stream in ("child", "direct", "vq"):
        wanted = Wanted(store=str(tmp_path / "store"), key=rows[0].key, stream=stream)
        (shown,) = decode_sample(wanted, suffix=".png", compare=True)
        assert shown.media.shape[1] >= 2 * 64, "the original stands beside it"


def test_the_plug_in_conforms_with_merges(table):
    report = conformance.check("bpe-image", CHECKPOINT, {"size": 32, "merges": table})
    assert report.ok, [c for c in report.checks if c.verdict == "fail"]


def test_merges_of_other_codes_are_refused(tmp_path):
    """G7."""
    out = str(tmp_path / "m.safetensors")
    MergesTokenizer.fit(iter([{"vq": np.zeros((4, 4), np.uint8)}]), out, {"vocab": 96})
    assert BpeImageTokenizer.load(CHECKPOINT, {"merges": out}) is not None
    MergesTokenizer.fit(iter([{"vq": np.zeros((4, 4), np.uint8)}]), out, {"vocab": 95})
    with pytest.raises(TokenizerError, match="codebooks"):
        BpeImageTokenizer.load(CHECKPOINT, {"merges": out})
    config = {"vocab": 96, "lineage": {"codes_space": "ab" * 32}}
    MergesTokenizer.fit(iter([{"vq": np.zeros((4, 4), np.uint8)}]), out, config)
    with pytest.raises(TokenizerError, match="space"):
        BpeImageTokenizer.load(CHECKPOINT, {"merges": {"table": out, "rules": 1}})


@pytest.mark.parametrize(
    ("config", "why"),
    [({"merges": 3}, "merges"), ({"merges": {"grid": [1, 2]}}, "name the table"),
     ({"merges": "m", "frames": "all"}, "single pictures"),
     ({"merges": {"table": "m", "gird": 1}}, "did you mean 'grid'")],
)  # fmt: skip
def test_a_wrong_setting_is_named(config, why):
    with pytest.raises(TokenizerError, match=why):
        registry.tokenizer_class("bpe-image").describe(config)


def test_the_output_follows_the_configuration(table):
    describe = registry.tokenizer_class("bpe-image").describe
    assert [o.name for o in describe({}).outputs] == ["vq"]
    assert [o.name for o in describe({"merges": table}).outputs] == ["merged"]


def test_paths_within_settings_start_at_the_jobs_folder():
    text = """
name: j
store: s
pipelines:
  p:
    source: {uri: in, format: files}
    streams:
      x: {tokenizer: bpe-image, config: {merges: {table: ./m.safetensors}, preset: adm}}
"""
    config = parse_job(text, name="job.yaml", folder="/jobs").pipelines["p"].streams["x"].config
    assert config == {"merges": {"table": "/jobs/m.safetensors"}, "preset": "adm"}
