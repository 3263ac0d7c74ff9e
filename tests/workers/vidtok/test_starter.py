"""The checkpoint in the package: small, carded, and good enough to see what a video shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenmill[video]'")

from tests.workers.media.made import picture, video
from tokenmill.workers import registry
from tokenmill.workers.tokenizers.vidtok.tokenizer import STARTER_FILE
from tokenmill.workers.tokenizers.vidtok.weights import card_of


def test_starter_is_small_and_says_how_good_it_is() -> None:
    assert STARTER_FILE.stat().st_size <= 4_000_000
    card = card_of(STARTER_FILE)
    assert card["held_out"]["psnr"] > 20 and card["held_out"]["distinct_ids"] > 100
    assert card["videos"] >= 5 and card["fit"]["held_out"] == 2


def test_starter_needs_no_checkpoint_and_gives_the_video_back() -> None:
    tokenizer: Any = registry.load("vidtok:starter", None, {"size": [96, 128], "device": "cpu"})
    assert tokenizer.identity().recipe
    fields = {"video": video(frames=20)}
    windows = list(tokenizer.preparer().prepare(fields, np.random.default_rng(0)))
    encoding = tokenizer.join(tokenizer.encode(windows))
    assert encoding["ids"].shape == (6, 12, 16)
    decoded = tokenizer.decode(encoding)
    known = np.stack([picture(n) for n in range(20)])
    error = ((decoded.astype(float) - known) ** 2).mean()
    assert decoded.shape == known.shape and 10 * np.log10(255**2 / error) > 14
