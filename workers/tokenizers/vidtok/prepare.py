"""One video to windows of frames, in a decode child: no torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.tokenizer import Fields, Window
from tokenmill.workers.media.resize import Fit, Resizer, scale
from tokenmill.workers.media.timing import resample
from tokenmill.workers.media.video import Reader, VideoReader
from tokenmill.workers.tokenizers.vidtok.cutting import Cut


@dataclass(frozen=True, kw_only=True)
class VideoPreparer:
    """A video file's bytes, or uint8[T, H, W, 3], to windows float32[t, h, w, 3] of 0 to 255."""

    reader: Reader
    fps: float | None
    size: tuple[int, int]
    fit: Fit
    cut: Cut

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        """Raises SampleError as VideoReader does, and `too-short`, `not-video`."""
        video = fields["video"]
        if isinstance(video, np.ndarray):
            yield from self._windows(_array(video), 0.0)
            return
        with VideoReader(bytes(video), reader=self.reader) as opened:
            facts = opened.facts
            step = 1 / facts.fps if facts.fps else 0.04
            frames = resample(opened.frames(), self.fps, step)
            yield from self._windows((frame.rgb() for frame in frames), facts.duration)

    def _windows(self, frames: Iterator[NDArray[Any]], duration: float) -> Iterator[Window]:
        resize = Resizer(self.size, self.fit)
        for index, (held, valid, last) in enumerate(self.cut.windows(map(resize, frames))):
            clip = np.stack(held)
            yield Window(
                arrays={"frames": clip},
                index=index,
                last=last,
                valid=valid,
                cost=clip.size // 3,
                bucket=(index == 0 or self.cut.alone, *clip.shape[:3]),
                meta={"duration": duration},
            )


def _array(video: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
        raise SampleError(
            "not-video", f"{video.dtype}{list(video.shape)}; an array is uint8 [T, H, W, 3]"
        )
    yield from video


@dataclass(frozen=True, kw_only=True)
class FramePreparer:
    """For `fit`: a video's first `most` frames, the shorter side reduced to `side`, as windows
    uint8[up to 64, h, w, 3]."""

    side: int
    most: int

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        """Raises SampleError as VideoReader does."""
        held: list[NDArray[np.uint8]] = []
        index = 0
        with VideoReader(bytes(fields["video"])) as video:
            h, w = video.facts.height, video.facts.width
            ratio = min(1.0, self.side / min(h, w))
            size = (round(h * ratio), round(w * ratio))
            for frame in islice(video.frames(), self.most):
                held.append(np.rint(scale(frame.rgb(), size)).astype(np.uint8))
                if len(held) == 64:
                    yield Window(arrays={"frames": np.stack(held)}, index=index, last=False)
                    held, index = [], index + 1
        if held:
            yield Window(arrays={"frames": np.stack(held)}, index=index)
