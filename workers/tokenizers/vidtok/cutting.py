"""Frames to windows: lengths that the model keeps, and what becomes of a short last one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tokenmill.schemas.errors import SampleError
from tokenmill.workers.tokenizers.vidtok.settings import Tail

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """first, later: frames of window 0 and of the others. factor: frames of one latent.

    alone: windows are clips of their own, each of the shape of the first (v1.0, non-causal).
    causal: a clip holds one frame more than a multiple of `factor`.
    """

    first: int
    later: int
    factor: int
    causal: bool
    alone: bool
    tail: Tail

    def windows(self, frames: Iterable[T]) -> Iterator[tuple[list[T], int, bool]]:
        """(frames, how many of them are valid, whether it is the last window), in order.

        Holds one window and one frame. Raises SampleError `too-short` where nothing is left.
        """
        held: list[T] = []
        ready: tuple[list[T], int] | None = None
        index = 0
        for frame in frames:
            if len(held) == self._length(index):
                if ready is not None:
                    yield (*ready, False)
                ready, held, index = (held, len(held)), [], index + 1
            held.append(frame)
        tail = self._tail(held, index)
        if ready is not None:
            yield (*ready, tail is None)
        if tail is not None:
            yield (*tail, True)
        elif ready is None:
            raise SampleError(
                "too-short", f"{len(held)} frames, and {self._least(held)} are needed"
            )

    def _length(self, index: int) -> int:
        return self.later if index and not self.alone else self.first

    def _tail(self, held: list[T], index: int) -> tuple[list[T], int] | None:
        """The last window, or None where it is left out."""
        count, full = len(held), self._length(index)
        if not count or count == full:
            return (held, count) if count else None
        if self.tail == "pad":
            wanted = full if self.alone else self._fitting(count, index, up=True)
            return [*held, *[held[-1]] * (wanted - count)], count
        if self.tail == "drop" or (self.alone and index):
            return None
        kept = self._fitting(count, index, up=False)
        return (held[:kept], kept) if kept else None

    def _fitting(self, count: int, index: int, *, up: bool) -> int:
        """The nearest length that is 1 (a causal clip's beginning) or 0 mod factor."""
        rest = int(self.causal and (self.alone or not index))
        steps = -(-(count - rest) // self.factor) if up else (count - rest) // self.factor
        return rest + steps * self.factor

    def _least(self, held: list[T]) -> int:
        if self.tail == "drop":
            return self.first
        return 1 if self.causal else self.factor
