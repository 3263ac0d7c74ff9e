"""The sound of a span of a media file, streamed in step with its picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from numpy.typing import NDArray


class SpanSound:
    """Spans in order of their beginnings; holds what lies between the oldest wanted and the newest.

    start: the time, on the container's clock, that counts as 0 (the first frame's).
    """

    def __init__(self, media: bytes | Path, start: float) -> None:
        self._container: Any = av.open(
            str(media) if isinstance(media, Path) else io.BytesIO(media), metadata_errors="replace"
        )
        self._stream: Any = self._container.streams.audio[0]
        self._stream.codec_context.thread_type = "NONE"
        self.rate = int(self._stream.codec_context.sample_rate)
        self._start = start
        self._chunks = self._decoded()
        self._held = np.zeros((0, 0), np.float32)  # [channels, samples]
        self._at = 0  # the number of its first sample

    def take(self, begin: float, end: float) -> NDArray[np.float32]:
        """float32[channels, samples] of the seconds [begin, end): silence before the sound begins,
        shorter where it has ended, empty where there is none at all."""
        first, last = round(begin * self.rate), round(end * self.rate)
        while self._at + self._held.shape[1] < last:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._add(*chunk, keep=first)
        return self._held[:, max(first - self._at, 0) : max(last - self._at, 0)].copy()

    def _add(self, at: int, samples: NDArray[np.float32], keep: int) -> None:
        if not self._held.size:
            gap = max(at - keep, 0) if at > keep else 0
            self._held = np.pad(samples, ((0, 0), (gap, 0)))
            self._at = at - gap
        else:
            self._held = np.concatenate([self._held, samples], axis=1)
        old = min(max(keep - self._at, 0), self._held.shape[1])
        self._held, self._at = self._held[:, old:], self._at + old

    def _decoded(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(number of its first sample, float32[channels, samples]); ends where damage begins."""
        resampler = av.AudioResampler(format="fltp")
        with suppress(av.FFmpegError, ValueError):
            for frame in self._container.decode(self._stream):
                time = (frame.time or 0.0) - self._start
                at = round(time * self.rate)
                for part in resampler.resample(frame):
                    samples = part.to_ndarray().astype(np.float32, copy=False)
                    yield at, samples
                    at += samples.shape[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()


def wav(samples: NDArray[np.float32], rate: int) -> bytes:
    """A WAV file of 32-bit floats; samples: [channels, n]."""
    channels, count = samples.shape
    data = np.ascontiguousarray(samples.T, dtype="<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, channels, rate, rate * channels * 4, channels * 4, 32)
    fact = struct.pack("<I", count)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"fact" + struct.pack("<I", 4) + fact
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body
