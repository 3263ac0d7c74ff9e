"""A remote object as a seekable file: few large requests for a stream, small ones for a jump.

tarfile and gzip read forwards in small steps; pyarrow jumps to a footer and then to column
chunks. A forward read doubles its request up to 8 MiB and then fetches the next block while this
one is consumed; a jump fetches what was asked for and a little more.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

SMALLEST = 256 << 10
LARGEST = 8 << 20
HELD = 4  # blocks kept: at most 32 MiB beside what one read asks for


class RangeFile(io.RawIOBase):
    """Reads `size` bytes through `fetch(start, end)`; safe to share between threads."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._blocks: dict[int, bytes] = {}  # by start, oldest first
        self._step = SMALLEST
        self._expected = 0  # where a forward reader's next block starts
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("seek before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        with self._lock:
            wanted = min(len(view), self._size - self._position)
            if wanted <= 0:
                return 0
            start, block = self._block_at(self._position, wanted)
            offset = self._position - start
            count = min(wanted, len(block) - offset)
            view[:count] = memoryview(block)[offset : offset + count]
            self._position += count
            return count

    def _block_at(self, position: int, wanted: int) -> tuple[int, bytes]:
        for start, block in self._blocks.items():
            if start <= position < start + len(block):
                return start, block
        forward = position == self._expected
        self._step = min(LARGEST, self._step * 2) if forward else SMALLEST
        block = self._fetched(position, min(self._size, position + max(self._step, wanted)))
        self._expected = position + len(block)
        self._blocks[position] = block
        while len(self._blocks) > HELD:
            del self._blocks[next(iter(self._blocks))]
        if forward:
            self._read_ahead(self._expected)
        return position, block

    def _fetched(self, start: int, end: int) -> bytes:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == start:
            return ahead[1].result()
        if ahead is not None:
            ahead[1].cancel()
        return self._fetch(start, end)

    def _read_ahead(self, start: int) -> None:
        if self._step < LARGEST or start >= self._size:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenmill-read-ahead")
        end = min(self._size, start + LARGEST)
        self._ahead = start, self._pool.submit(self._fetch, start, end)

    def close(self) -> None:
        pool, self._pool = getattr(self, "_pool", None), None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        super().close()
