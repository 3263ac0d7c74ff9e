"""Windows to budgeted batches, a pure function of the unit: never of arrival, queue or memory (G6).

Windows of one bucket (array shape) share a batch; a batch is closed when the next window would
pass the budget's cost or count. Windows come in sample order. Two rules bound what waits:

* *order*: stateful models see a sample's windows in order, so where a sample goes on from one
  bucket to another, the first bucket leaves before the second; a sample that would go round in a
  circle (shapes A, B, A) closes what stands in its way;
* *horizon*: when more than 8 batches' worth of windows wait in their buckets, the bucket with the
  oldest window goes out part-filled, so rare shapes hold back neither memory nor rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tokenmill.schemas.tokenizer import BatchBudget

HORIZON = 8  # batches

T = TypeVar("T")


@dataclass(slots=True)
class _Bucket(Generic[T]):
    place: int  # arrival number of its first window
    items: list[T] = field(default_factory=list)
    cost: int = 0
    before: set[Hashable] = field(default_factory=set)  # buckets that must leave first


class Batcher(Generic[T]):
    """`add` windows in order, take the batches that each one closes, `flush` at the end."""

    def __init__(self, budget: BatchBudget) -> None:
        self._cost = max(budget.cost, 1)
        self._windows = max(budget.windows, 1)
        self._open: dict[Hashable, _Bucket[T]] = {}
        self._place = 0
        self._held = 0
        self._last: tuple[int, Hashable] | None = None  # sample and bucket of the last window

    def add(self, item: T, *, sample: int, bucket: Hashable, cost: int) -> Iterator[list[T]]:
        """The batches that this window closes, oldest first. `sample`: its number in the unit.

        A window dearer than the whole budget makes a batch of its own.
        """
        waiting = self._open.get(bucket)
        if waiting and waiting.cost + cost > self._cost:
            yield from self._close(bucket)
        yield from self._follow(sample, bucket)
        target = self._open.setdefault(bucket, _Bucket(self._place))
        if self._last and self._last[0] == sample and self._last[1] != bucket:
            target.before |= {self._last[1]} & self._open.keys()
        target.items.append(item)
        target.cost += cost
        self._last = (sample, bucket)
        self._place += 1
        self._held += 1
        if len(target.items) >= self._windows or target.cost >= self._cost:
            yield from self._close(bucket)
        while self._held > HORIZON * self._windows:
            yield from self._close(self._oldest())

    def flush(self) -> Iterator[list[T]]:
        """What is left, in the order of each bucket's oldest window."""
        while self._open:
            yield from self._close(self._oldest())

    def _follow(self, sample: int, bucket: Hashable) -> Iterator[list[T]]:
        """Close the bucket that `sample` comes from, where `bucket` must leave before that one."""
        if self._last and self._last[0] == sample and self._last[1] in self._open:
            came_from = self._last[1]
            if came_from != bucket and bucket in self._all_before(came_from):
                yield from self._close(came_from)

    def _all_before(self, bucket: Hashable) -> set[Hashable]:
        found: set[Hashable] = set()
        todo = [bucket]
        while todo:
            new = self._open[todo.pop()].before - found
            found |= new
            todo += new
        return found

    def _oldest(self) -> Hashable:
        return min(self._open, key=lambda bucket: self._open[bucket].place)

    def _close(self, bucket: Hashable) -> Iterator[list[T]]:
        # oldest first, so that the order does not hang on hash values
        for first in sorted(self._open[bucket].before, key=lambda b: self._open[b].place):
            if first in self._open:
                yield from self._close(first)
        closed = self._open.pop(bucket)
        for other in self._open.values():
            other.before.discard(bucket)
        self._held -= len(closed.items)
        yield closed.items
