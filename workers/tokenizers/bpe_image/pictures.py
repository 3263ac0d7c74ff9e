"""A file's bytes to pictures of 8 bits: what a decoder may cost is bounded before it starts.

Formats by content, whatever the file is called: JPEG, PNG, WebP, GIF, TIFF, AVIF, HEIF, BMP and
PPM. EXIF orientation is applied; 16 bits become 8 by their high byte; palettes and CMYK become
RGB by Pillow's plain conversion (colour profiles are not applied, as in the published pipelines).
Alpha stays, for the preset to judge. No torch: this runs in a decode child.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from tokenmill.schemas.errors import SampleError

# Pillow's readers for these only: each reader is native code that a hostile file can reach.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "HEIF", "BMP", "PPM")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"BM", b"RIFF")
MEGA = 1_000_000
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
# What damaged files make Pillow's readers raise; anything else is a fault to look at.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
           OverflowError, struct.error, zlib.error, RuntimeError, AttributeError)  # fmt: skip

pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
Image.MAX_IMAGE_PIXELS = None  # our own bound is checked before anything is decoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """max_pixels: of one frame. max_frames: of one file, with `frames: all`."""

    max_pixels: int = 100 * MEGA
    max_frames: int = 256


def frames(value: Any, which: Literal["first", "all"], bounds: Bounds) -> Iterator[Image.Image]:
    """Pictures in mode RGB or RGBA, upright: the first, or every frame of an animation.

    value: a file's bytes, or a uint8 array [H, W], [H, W, 3] or [H, W, 4].
    Raises SampleError: empty, not-an-image, truncated, too-many-pixels, too-many-frames,
    unsupported-pixels, decoder-refused, wrong-type.
    """
    if isinstance(value, np.ndarray):
        yield _from_array(value, bounds)
        return
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise SampleError(
            "wrong-type", f"a picture's bytes are wanted, a {type(value).__name__} was found"
        )
    with _opened(bytes(value), bounds) as image:
        count = getattr(image, "n_frames", 1) if which == "all" else 1
        if count > bounds.max_frames:
            raise SampleError(
                "too-many-frames",
                f"{count} frames, and max_frames is {bounds.max_frames}",
                remedy="raise config.max_frames, or take `frames: first`",
            )
        for number in range(count):
            yield _frame(image, number, bounds)


@contextmanager
def _opened(raw: bytes, bounds: Bounds) -> Iterator[Image.Image]:
    if not raw:
        raise SampleError("empty", "the file has no bytes")
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        if raw.startswith(_MAGIC) or raw[4:8] == b"ftyp":
            raise SampleError(
                "decoder-refused", f"it begins like a picture ({raw[:12]!r}), but cannot be opened"
            ) from None
        raise SampleError(
            "not-an-image",
            f"no picture format begins like this: {raw[:12]!r}",
            remedy=f"known are {', '.join(FORMATS)}",
        ) from None
    except _DAMAGE as error:
        raise _refused(error, "the header") from None
    with image:
        _check_size(image, bounds)
        yield image


def _frame(image: Image.Image, number: int, bounds: Bounds) -> Image.Image:
    try:
        if number:
            image.seek(number)
            _check_size(image, bounds)
        image.load()
        return _plain(_upright(image))
    except SampleError:
        raise
    except _DAMAGE as error:
        raise _refused(error, f"frame {number}" if number else "the pixels") from None


def _check_size(image: Image.Image, bounds: Bounds) -> None:
    width, height = image.size
    if width * height > bounds.max_pixels:
        raise SampleError(
            "too-many-pixels",
            f"{width:,} x {height:,} pixels, and max_pixels is {bounds.max_pixels:,}",
            remedy="raise config.max_pixels to take it",
        )
    if not width or not height:
        raise SampleError("empty", "the picture has no pixels")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; an EXIF block that cannot be read says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        return image


def _plain(image: Image.Image) -> Image.Image:
    """Mode RGB, or RGBA where some pixel may be transparent."""
    if image.mode in _WIDE:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise SampleError(
            "unsupported-pixels",
            f"pixels of mode {image.mode!r} have no agreed range",
            remedy="convert them to 8 or 16 bits",
        )
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _from_array(array: np.ndarray[Any, Any], bounds: Bounds) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise SampleError(
            "wrong-type",
            f"an array of {array.dtype} {list(array.shape)}; uint8 [H, W, 3] is wanted",
        )
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise SampleError("wrong-type", f"{array.shape[2]} channels; 3 or 4 are wanted")
    image = Image.fromarray(np.ascontiguousarray(array))
    _check_size(image, bounds)
    return image.convert("RGBA" if image.mode == "RGBA" else "RGB")


def _refused(error: Exception, what: str) -> SampleError:
    """Truncated where the decoder says that data ran out; else damaged in some other way."""
    text = str(error)
    short = isinstance(error, EOFError) or any(
        word in text.lower()
        for word in ("truncated", "end of file", "not enough", "premature", "eof", "incomplete")
    )
    return SampleError(
        "truncated" if short else "decoder-refused",
        f"{what} cannot be decoded: {type(error).__name__}: {text[:200]}",
    )
