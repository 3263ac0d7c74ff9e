from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.workers.bpe_image.vectors import DATA
from tokenmill.schemas.errors import SampleError
from tokenmill.workers.tokenizers.bpe_image.pictures import Bounds, frames
from tokenmill.workers.tokenizers.bpe_image.presets import PRESETS, Crop, to_float, to_pixels

NAMES = sorted(path.stem for path in (DATA / "preprocess").glob("*.png"))
VECTOR = {"chameleon": "meta_u8", "being-vl": "hf_u8", "adm": "adm_u8"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_crops_are_those_of_the_published_pipelines(name, preset):
    raw = (DATA / "preprocess" / f"{name}.png").read_bytes()
    image = next(frames(raw, "first", Bounds()))
    with np.load(DATA / "preprocess" / "expected.npz") as expected:
        wanted = expected[f"{name}/{VECTOR[preset]}"]
        mean = float(expected[f"{name}/hf_pixel_mean_dtype"][0])
    pixels = Crop(preset=preset, size=128)(image)
    np.testing.assert_array_equal(pixels, wanted)
    if preset == "being-vl":
        values = to_float(pixels.astype(np.float32), preset)
        assert values.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    preset=st.sampled_from(PRESETS),
    aspect=st.sampled_from(["square", "keep"]),
)
def test_sides_are_multiples_of_the_factor_and_follow_the_aspect(width, height, preset, aspect):
    image = Image.new("RGB", (width, height))
    crop = Crop(preset=preset, size=32, aspect=aspect, multiple=16)
    if max(width, height) > 64 * min(width, height):
        with pytest.raises(SampleError) as caught:
            crop(image)
        assert caught.value.reason == "too-elongated"
        return
    rows, columns = crop(image).shape[:2]
    if aspect == "square":
        assert (rows, columns) == (32, 32)
        return
    assert rows % 16 == columns % 16 == 0
    assert min(rows, columns) == 32 and max(rows, columns) <= 128
    exact = min(32 * max(width, height) / min(width, height), 128)
    assert exact - 17 < max(rows, columns) <= exact + 1
    assert (rows >= columns) == (height >= width) or rows == columns


@pytest.mark.parametrize("preset", PRESETS)
def test_pixels_go_to_the_network_range_and_back(preset):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    values = to_float(pixels.astype(np.float32), preset)
    assert values.dtype == np.float32
    assert values.min() >= -1 and values.max() <= 1
    back = to_pixels(values, preset).astype(int)
    assert np.abs(back - pixels).max() <= 1
    assert to_pixels(np.full((1, 1, 3), 9, np.float32), preset).max() == 255
    assert to_pixels(np.full((1, 1, 3), -9, np.float32), preset).min() == 0
