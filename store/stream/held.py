"""Opened blocks, shared by the threads of a loader: two per lane, the next one opened ahead."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tokenmill.schemas.errors import StoreUnavailable
from tokenmill.store.stream.opened import Block

Key = tuple[int, int, int]  # part, epoch, block
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
_LOG = logging.getLogger("tokenmill.loader")
_T = TypeVar("_T")


class HeldBlocks:
    """At most `capacity` blocks, those used last. open_block: makes one, with the key it is given.

    ahead: opens blocks that `expect` names in the background; None does nothing ahead.
    """

    def __init__(
        self,
        open_block: Callable[[Key], Block],
        capacity: int,
        ahead: ThreadPoolExecutor | None,
    ) -> None:
        self._open = open_block
        self._capacity = capacity
        self._ahead = ahead
        self._held: OrderedDict[Key, _Cell] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Block:
        """The block, opened by the first who asks. Raises what opening it raises."""
        return self._cell(key)[0].block(lambda: self._open(key))

    def expect(self, key: Key) -> None:
        """This block will be asked for soon. A failure is met again, and raised, by `get`."""
        if self._ahead is not None and self._cell(key)[1]:
            self._ahead.submit(self.get, key)

    def _cell(self, key: Key) -> tuple[_Cell, bool]:
        """The cell of a block, and whether it is a new one."""
        with self._lock:
            new = key not in self._held
            if new:
                self._held[key] = _Cell()
            self._held.move_to_end(key)
            while len(self._held) > self._capacity:
                self._held.popitem(last=False)
            return self._held[key], new


class _Cell:
    """A place for a block that one thread makes while the others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block: Block | None = None

    def block(self, make: Callable[[], Block]) -> Block:
        with self._lock:
            if self._block is None:
                self._block = make()
            return self._block


def patiently(attempt: Callable[[], _T], patience: float) -> _T:
    """What `attempt` gives; a store that does not answer is asked again, with back-off, for
    `patience` seconds, and every wait is logged. Raises StoreUnavailable after that."""
    until = time.monotonic() + patience
    wait = FIRST_WAIT
    while True:
        try:
            return attempt()
        except StoreUnavailable as error:
            pause = random.uniform(0.5, 1.0) * wait
            if time.monotonic() + pause > until:
                raise
            _LOG.warning("the store does not answer, next try in %.1f s: %s", pause, error.what)
            time.sleep(pause)
            wait = min(LONGEST_WAIT, wait * 2)
