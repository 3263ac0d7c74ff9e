"""`fit` makes a checkpoint that the plug-in loads, with a card that says how good it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenmill[video]'")

import torch

from tests.workers.media.made import video
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers import registry
from tokenmill.workers.tokenizers.vidtok.beginning import begin
from tokenmill.workers.tokenizers.vidtok.model import VidTok
from tokenmill.workers.tokenizers.vidtok.quantizers import FiniteScalar
from tokenmill.workers.tokenizers.vidtok.tokenizer import VidTokTokenizer
from tokenmill.workers.tokenizers.vidtok.training import measured, straight_through
from tokenmill.workers.tokenizers.vidtok.variants import STARTER
from tokenmill.workers.tokenizers.vidtok.weights import card_of

TINY = {"ch": 8, "steps": 2, "crop": 16, "side": 32, "batch": 1, "threads": 1}


def corpus(*media: bytes) -> Iterator[Mapping[str, Any]]:
    return ({"video": one} for one in media)


def test_fit_writes_a_loadable_checkpoint_and_passes_over_what_is_no_video(tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    good = [video(frames=20), video("libvpx-vp9", "webm", frames=20)]
    card = VidTokTokenizer.fit(corpus(good[0], b"nonsense", good[1]), str(out), TINY)
    assert (card["videos"], card["refused"], card["steps"]) == (1, 1, 2)
    told = card["held_out"]
    assert 0 < told["psnr"] < 40 and told["frames"] == 17
    assert 1 <= told["distinct_ids"] <= told["tokens"] == 5 * 4 * 5
    assert card_of(out)["held_out"] == told
    tokenizer = registry.load("vidtok:starter", str(out), {"size": 32, "device": "cpu"})
    windows = list(tokenizer.preparer().prepare({"video": good[0]}, np.random.default_rng(0)))
    found = tokenizer.join(tokenizer.encode(windows))["ids"]
    assert found.shape == (6, 4, 4) and found.media_valid == 20


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"stepz": 1}, "did you mean 'steps'"),
        ({"variant": "kl_causal_488_4chn"}, "FSQ variant"),
        ({"variant": "fsq_causal_488_32768"}, "v1.1 FSQ variant"),
        ({"ch": 4}, "8 or more"),
        ({"frames": 6}, "FSQ variant"),
        ({"held_out": 3}, "held out"),
    ],
)
def test_what_cannot_be_fitted_is_named(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        VidTokTokenizer.fit(corpus(video(frames=20)), str(tmp_path / "x"), {**TINY, **config})


def test_gradient_passes_the_quantizer_straight_through() -> None:
    fsq = FiniteScalar((8, 8))
    latent = torch.randn(1, 2, 1, 2, 2, requires_grad=True)
    codes = straight_through(fsq, latent)
    assert torch.equal(codes, fsq.codes(latent))
    codes.sum().backward()  # type: ignore[no-untyped-call]
    assert latent.grad is not None
    slope = 3.5035 * (1 - torch.tanh(latent + 0.1438).square()) / 4
    torch.testing.assert_close(latent.grad, slope.detach(), atol=1e-3, rtol=1e-3)


def test_fit_begins_with_the_colours_of_every_block() -> None:
    """Not with noise: a smooth picture is there before the first step."""
    model = VidTok(replace(STARTER, ch=8)).requires_grad_(False)
    y, x = np.mgrid[:32, :48]
    smooth = np.stack([x * 5, y * 7, 120 + x - y], -1).astype(np.uint8)
    clip = np.broadcast_to(smooth, (17, 32, 48, 3)).copy()
    before = measured(model, [clip])["psnr"]
    begin(model)
    assert measured(model, [clip])["psnr"] > 18 > before + 3


def test_a_better_model_measures_better() -> None:
    """A decoder that paints the mean beats one that paints black."""
    model = VidTok(replace(STARTER, ch=4)).requires_grad_(False)
    frames = [np.full((17, 16, 16, 3), 192, np.uint8)]
    conv: Any = model.decoder.conv_out
    conv.conv.weight.zero_()
    scores = []
    for level in (-1.0, 192 / 127.5 - 1):
        conv.conv.bias.fill_(level)
        scores.append(measured(model, frames)["psnr"])
    assert scores[0] < 5 and scores[1] > 60
