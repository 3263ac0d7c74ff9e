"""Damaged and hostile picture files, made on the spot: name -> (bytes, the reason expected)."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image

from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene

pillow_heif.register_heif_opener()


def png(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG whose header claims any size; `data`: its compressed pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) * 2 // 3]


def hostile() -> dict[str, tuple[bytes, str]]:
    picture = scene(96, 80)
    tiff = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(tiff, "TIFF")
    return {
        "bomb.png": (png(60_000, 60_000, data=zlib.compress(bytes(1 << 20))), "too-many-pixels"),
        "lying.png": (png(300, 300, data=zlib.compress(bytes(1000))), "truncated"),
        "truncated.jpg": (cut(saved(picture, "JPEG")), "truncated"),
        "truncated.png": (cut(saved(picture, "PNG")), "truncated"),
        "truncated.gif": (cut(saved(picture, "GIF")), "truncated"),
        "truncated.webp": (cut(saved(picture, "WEBP")), "decoder-refused"),
        "truncated.tif": (cut(saved(picture, "TIFF", compression="tiff_lzw")), "decoder-refused"),
        "truncated.avif": (cut(saved(picture, "AVIF")), "decoder-refused"),
        "truncated.heic": (cut(saved(picture, "HEIF")), "truncated"),
        "floats.tif": (tiff.getvalue(), "unsupported-pixels"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"not a picture at all", "not-an-image"),
        "page.jpg": (b"<html><body>404</body></html>", "not-an-image"),
        "ribbon.png": (saved(Image.new("RGB", (4000, 2)), "PNG"), "too-elongated"),
    }
