"""Decoded videos as files: uint8 [T, H, W, 3] to an MP4, or an animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.tokenizer import Window

Frames = NDArray[np.uint8]

# Tokens do not say how fast their frames were; at another rate they only play slower or faster.
FPS = 25
_GAP = 8  # white pixels between two videos


class VideoRenderer:
    suffixes = (".mp4", ".mkv", ".webm")

    def write(self, media: Frames, path: Path) -> None:
        """H.264 in 4:2:0 (VP9 in WebM) of good quality; an odd side gets one more row or column."""
        frames = np.pad(media, ((0, 0), (0, media.shape[1] % 2), (0, media.shape[2] % 2), (0, 0)),
                        mode="edge")  # fmt: skip
        codec, options = "libx264", {"crf": "12"}
        if path.suffix.lower() == ".webm":
            codec, options = "libvpx-vp9", {"crf": "15", "b:v": "0"}
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream(codec, rate=FPS, options=options)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode())

    def original(self, fields: Mapping[str, Any], windows: Sequence[Window]) -> Frames:
        parts = [window.arrays["frames"][: window.valid] for window in windows]
        frames: NDArray[np.float32] = np.concatenate(parts)
        return np.rint(frames).astype(np.uint8)

    def beside(self, original: Frames, decoded: Frames) -> Frames:
        count = min(len(original), len(decoded))
        gap = np.full((count, decoded.shape[1], _GAP, 3), 255, np.uint8)
        return np.concatenate([original[:count], gap, decoded[:count]], axis=2)


RENDERER = VideoRenderer()
