from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.workers.bpe_image.hostile import hostile, png
from tokenmill.schemas.errors import SampleError
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene
from tokenmill.workers.tokenizers.bpe_image.pictures import Bounds, frames
from tokenmill.workers.tokenizers.bpe_image.presets import Crop

HOSTILE = hostile()


def first(value, **bounds):
    return next(frames(value, "first", Bounds(**bounds)))


def near(image, other, most=12.0):
    a, b = (np.asarray(i.convert("RGB")).astype(float) for i in (image, other))
    return a.shape == b.shape and np.abs(a - b).mean() < most


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
        ("HEIF", {}),
        ("BMP", {}),
        ("PPM", {}),
    ],
)
def test_every_format_is_told_by_its_content(format, options):
    picture = scene(90, 64)
    found = first(saved(picture, format, **options))
    assert found.mode == "RGB" and near(found, picture)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_exif_orientation_is_applied(format, orientation):
    upright = scene(80, 48)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = first(saved(stored, format, exif=exif.tobytes()))
    assert near(found, upright), "turned the wrong way"


def test_an_exif_block_of_junk_does_not_cost_the_picture():
    raw = saved(scene(40, 40), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff junk")
    assert first(raw).size == (40, 40)


def test_sixteen_bits_become_eight_by_their_high_byte():
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    found = np.asarray(first(saved(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(np.asarray(first(saved(Image.fromarray(values), "TIFF"))), found)


def test_alpha_is_blended_or_dropped_as_the_preset_says():
    image = Image.new("RGBA", (32, 32), (200, 10, 10, 0))
    found = first(saved(image, "PNG"))
    assert found.mode == "RGBA"
    assert (Crop(preset="chameleon", size=32)(found) == 255).all()
    assert (Crop(preset="adm", size=32)(found) == (200, 10, 10)).all()


def test_a_transparent_palette_keeps_its_transparency():
    image = scene(32, 32).quantize(16)
    image.info["transparency"] = 3
    assert first(saved(image, "PNG", transparency=3)).mode == "RGBA"
    assert first(saved(image, "GIF", transparency=3)).mode == "RGBA"


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "LA", "P", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode):
    plain = scene(40, 30)
    source = plain.convert("LA" if mode == "LA" else "RGB")
    if mode == "LAB":
        source = Image.new("LAB", (40, 30), (128, 128, 128))
    elif mode != "LA":
        source = plain.convert(mode)
    found = first(saved(source, "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF"))
    assert found.mode in ("RGB", "RGBA") and found.size == (40, 30)
    if mode in ("CMYK", "YCbCr"):
        assert near(found, plain)


def test_an_animation_gives_its_first_frame_or_all_of_them():
    pictures = [scene(48, 40, n) for n in range(4)]
    for format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        raw = saved(pictures[0], format, save_all=True, append_images=pictures[1:])
        assert near(first(raw), pictures[0], 25)
        found = list(frames(raw, "all", Bounds()))
        assert len(found) == 4, format
        assert all(near(f, p, 25) for f, p in zip(found, pictures, strict=True)), format
    with pytest.raises(SampleError) as caught:
        list(frames(raw, "all", Bounds(max_frames=3)))
    assert caught.value.reason == "too-many-frames"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_has_a_reason(name):
    """G9."""
    raw, reason = HOSTILE[name]
    with pytest.raises(SampleError) as caught:
        Crop(preset="chameleon", size=32)(first(raw))
    assert caught.value.reason == reason, str(caught.value)


def test_the_bound_is_checked_before_any_pixel_is_decoded():
    """G9: a header that claims a hundred gigapixels costs no memory."""
    with pytest.raises(SampleError, match=r"400,000 x 300,000"):
        first(png(400_000, 300_000))
    with pytest.raises(SampleError, match="max_pixels is 99"):
        first(saved(scene(10, 10), "PNG"), max_pixels=99)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_a_reason(data):
    """G9: whatever is changed in a file, nothing but SampleError comes out."""
    format = data.draw(
        st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "HEIF"])
    )
    raw = bytearray(saved(scene(24, 24), format))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]
    try:
        for image in frames(bytes(raw), "all", Bounds(max_pixels=1_000_000)):
            Crop(preset="being-vl", size=16)(image)
    except SampleError as fault:
        assert fault.reason and str(fault)


@pytest.mark.parametrize(
    "value",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), "x", 7],
)
def test_what_is_no_picture_in_memory_is_refused(value):
    with pytest.raises(SampleError) as caught:
        first(value)
    assert caught.value.reason == "wrong-type"


def test_arrays_are_pictures_too():
    array = np.asarray(scene(20, 12))
    np.testing.assert_array_equal(np.asarray(first(array)), array)
    assert first(array[:, :, 0]).size == (20, 12)
    assert first(memoryview(saved(scene(8, 8), "PNG"))).size == (8, 8)
