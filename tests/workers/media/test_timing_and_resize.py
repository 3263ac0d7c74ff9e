"""Resampling in time (property tests) and in space (against torch)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenmill.workers.media.resize import FITS, Fit, Resizer, scale
from tokenmill.workers.media.timing import resample
from tokenmill.workers.media.video import Frame


def _maker(n: int) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.full((1, 1, 3), n, np.uint8)


def _frames(times: list[float]) -> list[Frame]:
    return [Frame(t, _maker(n)) for n, t in enumerate(times)]


def _numbers(times: list[float], fps: float | None, step: float) -> list[int]:
    return [int(f.rgb()[0, 0, 0]) for f in resample(iter(_frames(times)), fps, step)]


def test_half_and_double_rate() -> None:
    times = [n / 30 for n in range(6)]
    assert _numbers(times, 15, 1 / 30) == [0, 2, 4]
    assert _numbers(times, 60, 1 / 30) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert _numbers(times, None, 1 / 30) == [0, 1, 2, 3, 4, 5]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=40), st.sampled_from([1.0, 7.5, 24.0, 30.0])
)
def test_each_tick_shows_the_frame_on_screen_then(gaps: list[int], fps: float) -> None:
    """Variable rates: gaps in milliseconds."""
    times = [sum(gaps[:n]) / 1000 for n in range(len(gaps))]
    found = _numbers(times, fps, gaps[-1] / 1000)
    end = times[-1] + gaps[-1] / 1000
    assert abs(len(found) - end * fps) <= 1
    for k, n in enumerate(found):
        shown = [i for i, t in enumerate(times) if t <= k / fps + 1e-3]
        assert n == shown[-1]


@settings(max_examples=20, deadline=None)
@given(
    *(st.integers(2, 90) for _ in range(4)),  # torch's own result is wrong for a width of 1
    st.integers(0, 1000),
)
def test_scaling_equals_torch_with_antialias(h: int, w: int, a: int, b: int, seed: int) -> None:
    torch = pytest.importorskip("torch")
    frame = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float().contiguous()
    known = torch.nn.functional.interpolate(image, (a, b), mode="bilinear", antialias=True)
    off = np.abs(scale(frame, (a, b)) - known[0].permute(1, 2, 0).numpy())
    assert off.max() < 0.02


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from(FITS))
def test_every_fit_gives_the_size_asked_for(h: int, w: int, fit: Fit) -> None:
    out = Resizer((32, 48), fit)(np.full((h, w, 3), 200, np.uint8))
    assert out.shape == (32, 48, 3) and out.dtype == np.float32
    if fit != "pad":
        assert np.allclose(out, 200, atol=1e-3)


def test_crop_takes_the_centre_and_pad_keeps_all() -> None:
    frame = np.zeros((32, 96, 3), np.uint8)
    frame[:, 32:64] = 255
    assert Resizer((32, 32), "crop")(frame).min() == 255
    padded = Resizer((32, 32), "pad")(frame)
    assert padded[0].max() == 0 and padded[16].max() > 250
