"""`VideoReader`: any video file to RGB frames with their times, by PyAV, by decord, or `auto`.

auto is PyAV. Read from front to back on one thread, as here, decord 0.6 gives the same bytes at
1.1 to 1.3 times the CPU time (benchmarks/video.py), but also frames of damaged bytes without a
word, frames that the file's edit list leaves out, and no AV1; and it has wheels for x86-64 Linux
alone, so that the same job elsewhere would be another recipe. `reader: decord` is for corpora that
must match others read by it.

Frames are upright (the file's rotation applied once) and full-range RGB, converted by what the
file says of its matrix and range; an untagged one is BT.601, limited range, as swscale assumes.
Nothing is mapped from HDR to SDR.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError

Reader = Literal["auto", "decord", "pyav"]
READERS = ("auto", "decord", "pyav")
# Beyond this a frame alone passes 200 MB: no camera, but files made to hurt declare it.
MAX_PIXELS = 8192 * 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """What a file says of its first moving picture. width and height are those of upright frames.

    rotation: quarter turns counter-clockwise, already applied to frames. fps: average, 0 unknown.
    duration: seconds declared, 0 unknown; start: seconds of the first frame on the container's
    own clock. colour: range and matrix as FFmpeg numbers them.
    """

    container: str
    codec: str
    width: int
    height: int
    pixel_format: str
    colour_range: int
    colour_matrix: int
    rotation: int
    fps: float
    duration: float
    start: float
    audio: bool
    reader: str = "pyav"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: seconds since the first one, and how to get uint8[H, W, 3] of it.

    group: how many key frames came before it or are it; decord counts none.
    """

    time: float
    rgb: Callable[[], NDArray[np.uint8]]
    group: int = 0


Media = bytes | Path


def reader_family(reader: Reader) -> str:
    """Which decoder makes the frames, for the recipe. Raises ImportError where it is missing."""
    family = "decord" if reader == "decord" else "pyav"
    for module in ("av", "decord")[: 2 if family == "decord" else 1]:
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"{module} is not installed: pip install 'tokenmill[video]'")
    return family


def reader_versions() -> dict[str, str]:
    """Versions of what reads, for provenance."""
    found = {}
    for name in ("av", "decord"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class VideoReader:
    """A context manager over one video, bytes or a local file.

    Raises SampleError: `not-video` (no such container, audio alone, still images), `too-large`,
    `decoder-refused`. Frames come in display order, each decoded once; memory is the decoder's own
    few frames, whatever the length.
    """

    facts: VideoFacts

    def __init__(self, media: Media, *, reader: Reader = "auto") -> None:
        from tokenmill.workers.media import video_pyav  # noqa: PLC0415 - PyAV is an extra

        self._pyav = video_pyav.PyavVideo(_file(media))
        self._frames = self._pyav.frames
        self.facts = self._pyav.facts
        if reader == "decord":
            try:
                self._by_decord(media)
            except BaseException:
                self.close()
                raise

    def _by_decord(self, media: Media) -> None:
        from tokenmill.workers.media import video_decord, video_pyav  # noqa: PLC0415 - extras

        times = video_pyav.packet_times(_file(media))
        decord = video_decord.DecordVideo(_file(media), times, self.facts)
        self._frames = decord.frames
        self.facts = replace(self.facts, reader="decord")

    def frames(self) -> Iterator[Frame]:
        """All frames, once. Raises SampleError: `damaged` where a packet cannot be decoded,
        `truncated` where the file ends well before it says, `no-frames`."""
        count, end = 0, 0.0
        for frame in self._frames():
            count, end = count + 1, frame.time
            yield frame
        if not count:
            raise SampleError("no-frames", "the file has a video stream without a frame")
        self._check_end(count, end)

    def _check_end(self, count: int, end: float) -> None:
        step = 1 / self.facts.fps if self.facts.fps else end / max(count - 1, 1)
        # what a muxer rounds, or an encoder's delay, is a few frames
        missing = self.facts.duration - (end + step)
        if missing > max(0.5, 4 * step):
            raise SampleError(
                "truncated",
                f"{count} frames until {end + step:.2f} s, {self.facts.duration:.2f} s declared",
            )

    def close(self) -> None:
        self._pyav.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _file(media: Media) -> str | io.BytesIO:
    return str(media) if isinstance(media, Path) else io.BytesIO(media)
