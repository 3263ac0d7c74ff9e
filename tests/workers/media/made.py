"""Small videos made with PyAV: a moving picture whose frame n tells its number by colour."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

_OPTIONS = {
    "libx264": {"crf": "8"},
    "libx265": {"x265-params": "log-level=error:crf=8"},
    "libsvtav1": {"crf": "15", "preset": "12"},
}
HEIGHT, WIDTH = 96, 128


def picture(n: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Saturated blocks (wrong matrices and ranges show), and a bar whose grey is 8 n."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([(x * 3 + n * 5) % 200, (y * 4) % 200, (x + y) % 200], -1).astype(np.uint8)
    frame[4:20, 4:20], frame[4:20, 24:40] = (255, 0, 0), (0, 255, 0)
    frame[24:40, 4:20], frame[24:40, 24:40] = (0, 0, 255), (255, 255, 255)
    frame[:, -16:] = min(8 * n, 255)
    return frame


def number_of(frame: NDArray[Any]) -> int:
    """Which picture a decoded frame is."""
    return round(float(frame[8:40, -8:].mean()) / 8)


def video(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    frames: int = 12,
    rate: int = 25,
    stamps: list[int] | None = None,
    pixels: str = "yuv420p",
    matrix: int | None = None,
    full_range: bool = False,
    gop: int = 6,
    audio: bool = False,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    moov_first: bool = False,
) -> bytes:
    """stamps: presentation times in 1 / rate. matrix: 1 is BT.709 (tagged and converted)."""
    with tempfile.NamedTemporaryFile() as out:  # a file: moov first needs a second pass
        _write(out.name, codec, container, frames, rate, stamps, pixels, matrix, full_range, gop,
               audio, size, moov_first)  # fmt: skip
        _ordinary_priority()
        return Path(out.name).read_bytes()


def _ordinary_priority() -> None:
    """SVT-AV1's encoder makes root's process real-time, and all that it starts from then on: two
    children that spin would keep both cores from everybody else for ever."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _write(
    path: str,
    codec: str,
    container: str,
    frames: int,
    rate: int,
    stamps: list[int] | None,
    pixels: str,
    matrix: int | None,
    full_range: bool,
    gop: int,
    audio: bool,
    size: tuple[int, int],
    moov_first: bool,
) -> None:
    muxing = {"movflags": "faststart"} if moov_first else {}
    with av.open(path, "w", format=container, options=muxing) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=_OPTIONS.get(codec, {}))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = gop
        if codec not in _OPTIONS:
            stream.codec_context.bit_rate = 8_000_000
        if matrix:
            stream.codec_context.colorspace = matrix
        if full_range:
            stream.codec_context.color_range = 2
        sound: Any = file.add_stream("aac", rate=16000, layout="mono") if audio else None
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(n, *size), format="rgb24")
            frame = frame.reformat(
                format=pixels,
                dst_colorspace=matrix or 5,
                dst_color_range=2 if full_range else 1,
            )
            frame.pts = stamps[n] if stamps else n
            frame.time_base = Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            _sing(file, sound, frames / rate)


def _sing(file: Any, sound: Any, seconds: float) -> None:
    t = np.arange(int(seconds * 16000)) / 16000
    tone = (np.sin(2 * np.pi * 440 * t) * 0.5).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    file.mux(sound.encode(frame))
    file.mux(sound.encode())


def turned(mp4: bytes, degrees: int) -> bytes:
    """The same MP4 with a display matrix that turns it clockwise."""
    at = mp4.index(b"tkhd") + 4
    at += 4 + (32 if mp4[at] == 1 else 20) + 16
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    return mp4[:at] + matrix + mp4[at + 36 :]


def still() -> bytes:
    """A JPEG."""
    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width, encoder.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in encoder.encode(frame))


def sound_file() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return out.getvalue()
