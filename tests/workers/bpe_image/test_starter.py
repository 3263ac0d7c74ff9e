"""The checkpoint that comes with the package."""

from __future__ import annotations

import json

import numpy as np

import tokenmill
from tests.workers.bpe_image.vectors import DATA
from tokenmill.schemas.job import parse_job
from tokenmill.workers.tokenizers.bpe_image.tokenizer import STARTER_FILE

PICTURE = (DATA / "preprocess" / "rgb_333x200.png").read_bytes()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b.astype(float)).mean())


def test_it_is_small_and_works_without_being_named():
    assert STARTER_FILE.stat().st_size <= 4_000_000
    tokenizer = tokenmill.load_tokenizer("bpe-image", size=64)
    named = tokenmill.load_tokenizer("bpe-image", checkpoint="starter", size=64)
    assert tokenizer.identity().recipe == named.identity().recipe
    assert tokenizer.plugin._loaded.found.family == "llamagen"
    [encoding] = tokenizer.encode_samples([PICTURE])
    assert encoding["vq"].shape == (8, 8) and encoding["vq"].ids.dtype == np.uint16
    assert tokenizer.decode(encoding).shape == (64, 64, 3)


def test_its_pictures_look_like_the_originals():
    """22 dB on this one when it was made; a wrong order of levels or colours gives under 12."""
    tokenizer = tokenmill.load_tokenizer("bpe-image", size=128)
    [encoding] = tokenizer.encode_samples([PICTURE])
    window = next(tokenizer.preparer().prepare({"image": PICTURE}, np.random.default_rng(0)))
    assert psnr(window.arrays["pixels"], tokenizer.decode(encoding)) > 20
    assert len(np.unique(encoding["vq"].ids)) > 50


def test_a_job_may_call_it_starter_though_relative_paths_start_at_its_folder():
    text = (
        "name: j\nstore: s\npipelines: {p: {source: {uri: in, format: files}, streams: {\n"
        "  a: {tokenizer: bpe-image, checkpoint: starter},\n"
        "  b: {tokenizer: x, checkpoint: ./starter}}}}"
    )
    streams = parse_job(text, name="j.yaml", folder="/jobs").pipelines["p"].streams
    assert streams["a"].checkpoint == "starter"
    assert streams["b"].checkpoint == "/jobs/starter"


def test_the_card_says_both_figures():
    card = STARTER_FILE.with_name("CARD.md").read_text(encoding="utf-8")
    lineage = json.loads(card.partition("```json")[2].partition("```")[0])
    for name in ("held_out_psnr", "bar_psnr", "held_out_codes_used", "steps", "held_out"):
        assert str(lineage[name]) in card
