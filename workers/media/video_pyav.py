"""Reading by PyAV: probing, and frames in display order."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError
from tokenmill.workers.media.video import MAX_PIXELS, Frame, VideoFacts

av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is said in its verdict

# Timestamps of decoding order alone (AVI), or none: the n-th frame shown takes the n-th of these.
# Counting frames would be wrong in AVI, where an empty chunk repeats the frame before.
_DECODING_ORDER = ("avi", "mpeg", "h264", "hevc", "m4v", "ivf")
_STILLS = ("image2", "_pipe")


class PyavVideo:
    """An opened container and its first moving picture. Raises SampleError as VideoReader does."""

    def __init__(self, file: str | io.BytesIO) -> None:
        try:
            self._container: Any = av.open(file, metadata_errors="replace")
        except (av.FFmpegError, ValueError, OSError) as error:
            raise SampleError(
                "not-video", f"FFmpeg does not open it: {_text(error)}", remedy=_REMEDY
            ) from None
        try:
            self._stream = self._picture()
            self._first = self._first_frame()
            self.facts = self._facts()
        except BaseException:
            self._container.close()
            raise

    def _picture(self) -> Any:
        name = self._container.format.name
        if any(name.endswith(still) for still in _STILLS):
            raise SampleError("not-video", f"a still image ({name})")
        for stream in self._container.streams.video:
            if not stream.disposition & av.stream.Disposition.attached_pic:
                stream.thread_type = "NONE"  # children are many: one thread each
                return stream
        raise SampleError("not-video", f"no moving picture in this {name} file")

    def _first_frame(self) -> VideoFrame:
        """Decoded at once: dimensions, rotation and colour are those of frames, not of headers."""
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise SampleError("too-large", f"frames of {width} x {height} pixels")
        self._order: deque[float] = deque()
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise SampleError("no-frames", "the file has a video stream without a frame")
        return first

    def _decode(self) -> Iterator[VideoFrame]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and packet.dts is not None:
                    self._order.append(float(packet.dts * packet.time_base))
                for frame in packet.decode():
                    if frame.is_corrupt:  # painted over by the decoder: it would pass for good
                        raise SampleError("damaged", f"a damaged frame at {frame.time} s")
                    yield frame
        except (av.FFmpegError, ValueError) as error:
            raise SampleError("damaged", f"the decoder stopped: {_text(error)}") from None

    def _facts(self) -> VideoFacts:
        frame, stream = self._first, self._stream
        turned = round(frame.rotation / 90) % 4
        sides = (frame.width, frame.height)
        width, height = sides[::-1] if turned % 2 else sides
        rate = stream.average_rate or stream.base_rate or stream.guessed_rate
        return VideoFacts(
            container=self._container.format.name,
            codec=stream.codec.canonical_name,
            width=width,
            height=height,
            pixel_format=frame.format.name,
            colour_range=int(frame.color_range),
            colour_matrix=int(frame.colorspace),
            rotation=turned,
            fps=float(rate) if rate else 0.0,
            duration=self._duration(),
            start=float(frame.time or 0.0),
            audio=bool(self._container.streams.audio),
        )

    def _duration(self) -> float:
        """Of the picture; of the container where that is all it holds."""
        stream = self._stream
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / av.time_base)
        return 0.0

    def frames(self) -> Iterator[Frame]:
        step = 1 / self.facts.fps if self.facts.fps else 1 / 25
        by_order = self.facts.container in _DECODING_ORDER
        first, last, group = None, -step, 0
        for frame in self._all():
            time = self._order.popleft() if self._order else None
            if not by_order:
                time = frame.time  # pts x time base
            if time is not None:
                first = time if first is None else first
                time -= first
            if time is None or time <= last:  # none, or not after the frame before
                time = last + step
            last = time
            group += bool(frame.key_frame)
            yield Frame(time, partial(self._rgb, frame), group)

    def _all(self) -> Iterator[VideoFrame]:
        first, self._first = self._first, None  # type: ignore[assignment]
        if first is not None:
            yield first
        yield from self._decoded

    def _rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        rgb: NDArray[np.uint8] = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        if self.facts.rotation:
            rgb = np.ascontiguousarray(np.rot90(rgb, self.facts.rotation))
        return rgb

    def close(self) -> None:
        self._container.close()


def packet_times(file: str | io.BytesIO) -> list[float] | None:
    """Display times by demuxing alone, from 0; None where one is missing or comes twice."""
    opened: Any = av.open(file, metadata_errors="replace")
    with opened as container:
        stream = container.streams.video[0]
        try:
            stamps = [p.pts for p in container.demux(stream) if p.size]
        except av.FFmpegError:
            return None
        known = sorted(stamp for stamp in stamps if stamp is not None)
        if not known or len(known) != len(stamps) or len(set(known)) != len(known):
            return None
        return [float((stamp - known[0]) * stream.time_base) for stamp in known]


_REMEDY = "a video file by its content, whatever its name"


def _text(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)[:200]
