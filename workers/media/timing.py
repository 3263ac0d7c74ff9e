"""Resampling in time: which frame is shown at k / fps. Pure; works for variable rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from tokenmill.workers.media.video import Frame

T = TypeVar("T")
# A timestamp rounded to a millisecond must not push a frame over the tick that it belongs to.
SLACK = 1e-3


def resample(frames: Iterator[Frame], fps: float | None, last_step: float) -> Iterator[Frame]:
    """Frames at 0, 1/fps, 2/fps, ...: each the one shown then, repeated where the source is slower.

    fps None: all frames as they are. last_step: seconds that the last frame is shown.
    """
    if fps is None:
        yield from frames
        return
    tick, held = 0, None
    for frame in frames:
        while held is not None and tick / fps < frame.time - SLACK:
            yield _at(held, tick / fps)
            tick += 1
        held = frame
    while held is not None and tick / fps < held.time + last_step - SLACK:
        yield _at(held, tick / fps)
        tick += 1


def _at(frame: Frame, time: float) -> Frame:
    return Frame(time, frame.rgb, frame.group)
