"""Reading by decord (x86-64 Linux), which applies the file's rotation by itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import decord
import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError
from tokenmill.workers.media.video import Frame, VideoFacts

decord.logging.set_level(decord.logging.QUIET)

_REMEDY = "`reader: auto`"


class DecordVideo:
    """times: of every frame, in display order; None where only the rate is known.
    Raises SampleError `decoder-refused`.

    decord can spin for ever, holding the interpreter's lock (dmlc/decord#373, #375): only in
    a child that somebody else can kill.
    """

    def __init__(
        self, file: str | io.BytesIO, times: list[float] | None, facts: VideoFacts
    ) -> None:
        try:
            self._video: Any = decord.VideoReader(file, num_threads=1)
            count = len(self._video)
        except (decord.DECORDError, RuntimeError, OSError) as error:
            text = str(error).splitlines()[0][:200]
            raise SampleError("decoder-refused", f"decord: {text}", remedy=_REMEDY) from None
        if times is not None and len(times) != count:
            what = f"decord counts {count} frames, the container {len(times)}"
            raise SampleError("decoder-refused", what, remedy=_REMEDY)
        self._times = times or [n / (facts.fps or 25.0) for n in range(count)]
        self._shape = (facts.height, facts.width, 3)

    def frames(self) -> Iterator[Frame]:
        for time in self._times:
            try:
                array = self._video.next()
            except (decord.DECORDError, StopIteration) as error:
                text = str(error).splitlines()[0][:200] if str(error) else "no more frames"
                raise SampleError("damaged", f"the decoder stopped: {text}") from None
            if array.shape != self._shape:
                why = f"decord gives frames of {array.shape}, not {self._shape}"
                raise SampleError("decoder-refused", why, remedy=_REMEDY)
            rgb: Callable[[], NDArray[np.uint8]] = partial(array.asnumpy)
            yield Frame(time, rgb)
