"""One video file to clips, in a decode child: frames by count and stride within their bounds.

A clip's frames travel as an uncompressed NUT file, its sound as WAV: any reader of media takes
them, and every stream of the sample sees the same span.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.job import Clips
from tokenmill.schemas.tokenizer import Fields, Window
from tokenmill.workers.media.resize import Resizer, scale
from tokenmill.workers.media.sound import SpanSound, wav
from tokenmill.workers.media.timing import resample
from tokenmill.workers.media.video import VideoReader

BEAT_SECONDS = 5.0  # of a child's work without a clip: its clock is one of progress
_SCENE_SIDE = 32


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame on its way into clips: when it is shown, and its pixels if anybody wants them."""

    time: float
    pixels: NDArray[np.uint8] | None
    segment: int  # clips never hold two


def cut(
    shots: Iterable[Shot], frames: int, stride: int, *, keep_tail: bool
) -> Iterator[list[Shot] | None]:
    """Clips of `frames` shots, `stride` from beginning to beginning, anew in every segment.

    None for every shot that completes no clip. A shorter rest is a clip where `keep_tail` is set
    and no clip before held all of it. Holds at most one clip's shots.
    """
    held: list[Shot] = []
    fresh = skip = 0  # shots in `held` that no clip has had; shots to leave out
    segment = None
    for shot in shots:
        if shot.segment != segment:
            if keep_tail and fresh:
                yield held
            held, fresh, skip, segment = [], 0, 0, shot.segment
        if skip:
            skip -= 1
            yield None
            continue
        held.append(shot)
        fresh += 1
        if len(held) < frames:
            yield None
            continue
        yield held
        skip = max(stride - frames, 0)
        held, fresh = held[stride:], 0
    if keep_tail and fresh:
        yield held


@dataclass(frozen=True, kw_only=True)
class ClipCutter:
    """A `Preparer`: fields {path, want} to one window per clip.

    Windows hold `video` and `audio` (uint8 arrays of file bytes, if wanted and there), and in
    their meta `start` and `end` (seconds from the first frame) and `duration` of the whole. A
    window without arrays and without `start` only says that work goes on. Raises SampleError as
    VideoReader does, after the clips that came before the damage.
    """

    clips: Clips

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        media, want = Path(fields["path"]), fields["want"]
        config = self.clips
        with ExitStack() as stack:
            video = stack.enter_context(VideoReader(media, reader=config.reader))
            sound = None
            if "audio" in want and video.facts.audio:
                sound = stack.enter_context(SpanSound(media, video.facts.start))
            step = 1 / (config.fps or video.facts.fps or 25.0)
            shots = self._shots(video, wanted="video" in want)
            stride, keep = config.stride or config.frames, config.tail == "keep"
            index, told = 0, time.monotonic()
            for clip in cut(shots, config.frames, stride, keep_tail=keep):
                if clip is not None:
                    yield _window(clip, index, step, sound, video.facts.duration)
                    index += 1
                    if index == config.max_clips:
                        return
                elif time.monotonic() - told < BEAT_SECONDS:
                    continue
                else:
                    yield Window(arrays={}, meta={"duration": video.facts.duration}, last=False)
                told = time.monotonic()

    def _shots(self, video: VideoReader, *, wanted: bool) -> Iterator[Shot]:
        config = self.clips
        shown = 1 / (video.facts.fps or 25.0)  # seconds that the last frame is on screen
        resize = _resizing(config)
        scenes = _Scenes(config.scene_threshold) if config.bounds == "scene" else None
        for frame in resample(video.frames(), config.fps, shown):
            rgb = frame.rgb() if wanted or scenes else None
            segment = frame.group if config.bounds == "keyframe" else 0
            if scenes is not None and rgb is not None:
                segment = scenes.number(rgb)
            pixels = resize(rgb) if wanted and rgb is not None else None
            yield Shot(frame.time, pixels, segment)


def _resizing(config: Clips) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    if config.size is None:
        return lambda rgb: rgb
    size = (config.size, config.size) if isinstance(config.size, int) else config.size
    resizer = Resizer(size, config.fit)
    return lambda rgb: np.rint(resizer(rgb)).astype(np.uint8)


class _Scenes:
    """Numbers scenes by how much the colour histogram of a small picture changes at once."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._before: NDArray[np.float64] | None = None
        self._number = 0

    def number(self, rgb: NDArray[np.uint8]) -> int:
        small = scale(rgb, (_SCENE_SIDE, _SCENE_SIDE)).reshape(-1, 3)
        planes = [np.histogram(small[:, c], 16, (0, 256))[0] for c in range(3)]
        now = np.concatenate(planes) / (3 * len(small))
        if self._before is not None:
            # half of the L1 distance: the share of pixels whose brightness is no longer there
            self._number += bool(np.abs(now - self._before).sum() / 2 > self._threshold)
        self._before = now
        return self._number


def _window(
    clip: list[Shot], index: int, step: float, sound: SpanSound | None, duration: float
) -> Window:
    start, end = clip[0].time, clip[-1].time + step
    arrays: dict[str, NDArray[np.uint8]] = {}
    pixels = [shot.pixels for shot in clip if shot.pixels is not None]
    if pixels:
        arrays["video"] = np.frombuffer(nut(pixels, step), np.uint8)
    if sound is not None:
        samples = sound.take(start, end)
        if samples.size:
            arrays["audio"] = np.frombuffer(wav(samples, sound.rate), np.uint8)
    meta = {"start": start, "end": end, "duration": duration}
    return Window(arrays=arrays, index=index, last=False, meta=meta)


def nut(frames: list[NDArray[np.uint8]], step: float) -> bytes:
    """uint8[H, W, 3] frames as an uncompressed file that gives the same bytes back."""
    out = io.BytesIO()
    rate = Fraction(1 / step).limit_denominator(1001)
    with av.open(out, "w", format="nut") as file:
        stream: Any = file.add_stream("rawvideo", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "rgb24"
        for n, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = n
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()
