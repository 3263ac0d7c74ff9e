from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.workers.bpe_image.vectors import DATA, TINY, arrays, weights
from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import Checkpoint, Encoded
from tokenmill.workers import conformance
from tokenmill.workers.conformance_subject import encode_one
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene
from tokenmill.workers.tokenizers.bpe_image.tokenizer import BpeImageTokenizer

IMAGE = (DATA / "preprocess" / "rgb_150x220.png").read_bytes()


def load(name="taming_attn_tiny", **config):
    uri = str(weights(name))
    return BpeImageTokenizer.load(Checkpoint(uri=uri), {"size": 64, **config})


def encode(tokenizer, value):
    made = encode_one(tokenizer, {"image": value})
    if isinstance(made, SampleError):
        raise made
    return made["vq"]


def test_the_plug_in_conforms():
    report = conformance.check("bpe-image", str(weights("taming_attn_tiny")), {"size": 32})
    assert report.ok, [c for c in report.checks if c.verdict == "fail"]
    by_name = {c.name: c.verdict for c in report.checks}
    assert by_name["batch invariance"] == by_name["round trip"] == "pass"


@pytest.mark.parametrize("name", TINY)
def test_pictures_in_memory_get_the_indices_of_the_vectors(name):
    """From pixels to ids through prepare, encode and join: no resize, no crop at their own size."""
    vectors = arrays(name)
    size = vectors["pixel_u8"].shape[2]
    tokenizer = load(name, size=size, preset="chameleon")
    for pixels, wanted in zip(vectors["pixel_u8"], vectors["indices"], strict=True):
        found = encode(tokenizer, pixels.transpose(1, 2, 0))
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(found.ids.reshape(found.shape), wanted)


def test_presets_and_size_are_the_recipe_and_the_weights_are_the_space():
    """A preset changes what a picture becomes, not what an id means."""
    base = load().identity()
    assert base.parts["preset"] == "chameleon"
    assert load("llamagen_tiny").identity().parts["preset"] == "adm"
    for change in (
        {"preset": "being-vl"}, {"size": 32}, {"aspect": "keep"}, {"frames": "all"},
        {"precision": "bfloat16"}, {"threads": 2}, {"batch": 4},
    ):  # fmt: skip
        other = load(**change).identity()
        assert other.space == base.space and other.recipe != base.recipe, change
    for change in ({"max_pixels": 10**9}, {"max_frames": 9}, {"device": "cpu"}):
        assert load(**change).identity().recipe == base.recipe, change
    sha256 = hashlib.sha256(weights("taming_attn_tiny").read_bytes()).hexdigest()
    assert base.provenance["checkpoint_sha256"] == sha256
    assert load("chameleon_tiny").identity().space != base.space


def test_any_aspect_ratio_gives_its_own_grid():
    tokenizer = load(aspect="keep")
    found = encode(tokenizer, saved(scene(150, 80), "PNG"))
    assert found.shape == (32, 60)
    assert tokenizer.decode({"vq": found}).shape == (64, 120, 3)


def test_all_frames_are_one_sample_with_a_time_axis():
    pictures = [scene(64, 64, n) for n in range(3)]
    raw = saved(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    first, every = load(), load(frames="all")
    assert every.descriptor.outputs[0].axes == ("T", "H", "W")
    found = encode(every, raw)
    assert found.shape == (3, 32, 32)
    assert (found.ids[: 32 * 32] == encode(first, raw).ids).all()
    assert every.decode({"vq": found}).shape == (3, 64, 64, 3)
    windows = list(every.preparer().prepare({"image": raw}, np.random.default_rng(0)))
    assert [(w.index, w.last) for w in windows] == [(0, False), (1, False), (2, True)]


def test_decoding_gives_the_picture_of_the_codes_and_refuses_foreign_ids():
    tokenizer = load("llamagen_tiny", size=256, preset="chameleon")
    vectors = arrays("llamagen_tiny")
    grid = vectors["indices"][0].astype(np.uint8)
    picture = tokenizer.decode({"vq": Encoded(ids=grid.reshape(-1), shape=grid.shape)})
    values = vectors["decoded_every_4th"][0].transpose(1, 2, 0)
    wanted = np.clip((np.clip(values, -1, 1) + 1) / 2 * 255, 0, 255).astype(int)
    assert np.abs(picture[::4, ::4].astype(int) - wanted).max() <= 1
    with pytest.raises(TokenizerError, match="id 300"):
        tokenizer.decode({"vq": Encoded(ids=np.array([300], np.uint16), shape=(1, 1))})


def test_ids_have_the_narrowest_type():
    assert load().descriptor.outputs[0].dtype == "uint8"
    assert load().descriptor.outputs[0].codebook_sizes == (96,)
    assert encode(load(), IMAGE).ids.dtype == np.uint8
    assert BpeImageTokenizer.describe({}).outputs[0].dtype == "uint16"


def test_low_precision_changes_some_ids_and_few():
    tokenizer, low = load(), load(precision="bfloat16")
    same = (encode(tokenizer, IMAGE).ids == encode(low, IMAGE).ids).mean()
    assert 0.8 < same < 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"presset": "adm"}, "did you mean 'preset'"),
        ({"preset": "clip"}, "chameleon, being-vl, adm"),
        ({"size": 63}, "no multiple of 2"),
        ({"size": True}, "whole number"),
        ({"batch": 0}, "from 1"),
        ({"precision": "int8"}, "float32, bfloat16, float16"),
    ],
)
def test_a_wrong_setting_says_what_it_may_be(config, said):
    with pytest.raises(TokenizerError, match=said):
        load(**config)


def test_the_preparer_crosses_into_a_child_without_torch():
    code = (
        "import pickle, sys, numpy; sys.path[:] = sys.argv[1:];"
        "preparer, raw = pickle.load(sys.stdin.buffer);"
        "windows = list(preparer.prepare({'image': raw}, numpy.random.default_rng(0)));"
        "assert windows[0].arrays['pixels'].shape == (64, 64, 3);"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    message = pickle.dumps((load().preparer(), IMAGE))
    subprocess.run([sys.executable, "-c", code, *sys.path], input=message, check=True, timeout=60)
