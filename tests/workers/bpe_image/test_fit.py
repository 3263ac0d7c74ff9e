"""Learning a checkpoint: the file is one of the family, and better than it began."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.workers.bpe_image.vectors import key_shapes
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers import registry
from tokenmill.workers.one_off import LoadedTokenizer
from tokenmill.workers.tokenizers.bpe_image import llamagen
from tokenmill.workers.tokenizers.bpe_image.bar import bar_psnr, kmeans, patches, psnr
from tokenmill.workers.tokenizers.bpe_image.beginning import as_shortcuts, begin
from tokenmill.workers.tokenizers.bpe_image.crops import Sampler, gather
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene
from tokenmill.workers.tokenizers.bpe_image.fit import FitSettings, fit
from tokenmill.workers.tokenizers.bpe_image.graph import VqGan
from tokenmill.workers.tokenizers.bpe_image.pictures import Bounds
from tokenmill.workers.tokenizers.bpe_image.training import slim

TINY = {
    "codes": 32, "dim": 8, "widths": [32, 96], "decoder_widths": [96, 32], "size": 32, "crop": 16,
    "batch": 4, "minutes": 10, "patches": 4000, "held_out": 0.4, "bar_patches": 500,
}  # fmt: skip


def samples(count=16):
    yield {"image": b"no picture"}
    for n in range(count):
        yield {"image": saved(scene(48, 40, n), "PNG")}


def learned(folder, **config):
    out = folder / "tiny.safetensors"
    return out, fit(samples(), str(out), {**TINY, **config})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return learned(tmp_path_factory.mktemp("fit"), steps=40)


def test_the_written_file_is_a_llamagen_checkpoint_that_the_plug_in_loads(tiny):
    out, lineage = tiny
    with safe_open(out, framework="pt") as file:
        names = set(file.keys())
        assert {str(file.get_slice(n).get_dtype()) for n in names} == {"BF16"}
        metadata = file.metadata()
    assert any(n.startswith("encoder.conv_blocks.1.attn.0") for n in names)
    assert json.loads(metadata["tokenmill"])["lineage"]["corpus_sha256"] == lineage["corpus_sha256"]
    tokenizer = LoadedTokenizer(registry.load("bpe-image", str(out)))
    identity = tokenizer.identity()
    assert (identity.parts["preset"], identity.parts["size"]) == ("chameleon", 32)
    [encoding] = tokenizer.encode_samples([np.asarray(scene(48, 40, 3))])
    assert encoding["vq"].shape == (16, 16)
    assert tokenizer.decode(encoding).shape == (32, 32, 3)


def test_the_lineage_says_what_was_seen_and_how_good_it_is(tiny):
    _, lineage = tiny
    assert lineage["pictures"] + lineage["held_out"] == 16 and lineage["held_out"] > 0
    assert (lineage["skipped"], lineage["steps"], lineage["device"]) == (1, 40, "cpu")
    assert lineage["bits_per_picture"] == 16 * 16 * 5
    assert 0 < lineage["held_out_codes_used"] <= 32
    assert lineage["bar_psnr"] > 10 and lineage["held_out_psnr"] > 5
    json.dumps(lineage)


def test_what_training_leaves_out_adds_nothing():
    """The network as it is trained and as it is stored give the same latents and pictures."""
    torch.manual_seed(0)
    network = VqGan(FitSettings.parse(TINY).layout)
    as_shortcuts(network)
    pictures = torch.from_numpy(np.stack([np.asarray(scene(32, 32, n)) for n in range(8)]))
    pictures = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    with slim(network):
        begin(network, pictures, patches=2000, seed=0)
        latents, painted = both(network, pictures)
    whole_latents, whole = both(network, pictures)
    torch.testing.assert_close(whole_latents, latents)
    torch.testing.assert_close(whole, painted)
    error = float((painted - pictures).square().mean())
    assert error < 0.2 * float(pictures.var()), "the closed form paints nothing"


def both(network, pictures):
    with torch.no_grad():
        z = network.quant_conv(network.encoder(pictures))
        codes = torch.nn.functional.normalize(z, dim=1)
        return z, network.decoder(network.post_quant_conv(codes))


def test_longer_is_better_and_the_same_steps_give_the_same_file(tmp_path, tiny):
    (tmp_path / "again").mkdir()
    _, short = learned(tmp_path, steps=2)
    _, again = learned(tmp_path / "again", steps=2)
    assert short["sha256"] == again["sha256"]
    assert tiny[1]["held_out_psnr"] > short["held_out_psnr"]


def test_the_split_goes_by_content_not_by_order():
    def split(items):
        corpus = gather(iter(items), size=32, share=0.4, most=99, bounds=Bounds())
        return {p.tobytes() for p in corpus.held_out}, {p.tobytes() for p in corpus.squares}

    forwards, backwards = split(list(samples())), split(list(samples())[::-1])
    assert forwards == backwards
    assert not forwards[0] & forwards[1]


def test_crops_are_seeded_and_in_range():
    corpus = gather(samples(), size=32, share=0.0, most=99, bounds=Bounds())
    one, two = (Sampler(corpus.training, 7).batch(6, 24) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (6, 3, 24, 24) and one.dtype == np.float32
    assert -1 <= one.min() < one.max() <= 1
    assert (Sampler(corpus.training, 8).batch(6, 24) != one).any()


def test_names_go_to_the_family_and_back():
    for name in ("llamagen_vq16", "llamagen_vq8"):
        for key in key_shapes(name):
            there = llamagen.canonical(key, 5)
            if there is not None:
                assert llamagen.original(there, 5) == key


def test_the_bar_is_exact_where_it_can_be():
    pictures = [np.full((16, 16, 3), v, np.uint8) for v in (0, 40, 200)]
    found = bar_psnr(pictures, pictures, side=8, codes=3, most=100, rounds=5, seed=0)
    assert found > 60
    assert psnr(255.0**2) == 0
    tiles = patches([np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)], 8)
    assert tiles.shape == (2, 192) and tiles[1, 0] == 192
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    assert sorted(kmeans(points, 2, rounds=5, seed=1)[:, 0].tolist()) == pytest.approx([0.05, 5.05])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"widths": [30, 96]}, "multiples of 32"),
        ({"widths": [32, 64]}, "96 as the last one"),
        ({"decoder_widths": [96, 96]}, "another beside it"),
        ({"decoder_widths": [32, 96]}, "96 as the first one"),
        ({"widths": [96]}, "two to six"),
        ({"decoder_widths": [96, 32, 32]}, "as many as"),
        ({"size": 33}, "multiple of 2"),
        ({"code": 4}, "did you mean 'codes'"),
        ({"minutes": -1}, "from 0"),
    ],
)
def test_a_wrong_setting_says_what_it_may_be(config, said):
    with pytest.raises(TokenizerError, match=said):
        FitSettings.parse({**TINY, **config})


def test_no_pictures_is_said(tmp_path):
    with pytest.raises(TokenizerError, match="no pictures"):
        fit(iter([{"image": b"x"}]), str(tmp_path / "x.safetensors"), TINY)
    with pytest.raises(TokenizerError, match="does not exist"):
        fit(samples(), str(tmp_path / "no" / "x.safetensors"), TINY)
