"""The in-flight page: which samples native code holds right now, readable after the process died.

A small memory-mapped file in a node-local folder. The kernel keeps the page when the process is
gone, whatever killed it. Layout: magic (8 bytes), unit id (16), count (uint32), the count's
complement (uint32), the machine's monotonic clock when they went in (float64, seconds), then up to
4,093 sample ids of 16 bytes. The count is cleared before the ids are written and set after, so a
page torn by a death says nothing rather than something wrong.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.schemas.identity import ID_BYTES

PAGE_BYTES = 64 << 10
_MAGIC = b"tm-fly2\0"
_COUNT = struct.Struct("<II")
_COUNT_AT = len(_MAGIC) + ID_BYTES
_SINCE = struct.Struct("<d")
_SINCE_AT = _COUNT_AT + _COUNT.size
_IDS_AT = _SINCE_AT + _SINCE.size
CAPACITY = (PAGE_BYTES - _IDS_AT) // ID_BYTES
_MASK = 0xFFFFFFFF


def page_folder() -> Path:
    """The node-local folder of in-flight pages; private to the user."""
    folder = Path(tempfile.gettempdir()) / f"tokenmill-inflight-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def sweep(folder: Path) -> None:
    """Remove the pages `{driver pid}-…` of drivers that are gone: nobody will read them."""
    for page in folder.glob("*-*"):
        pid = page.name.partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            page.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What native code held: of a batch over 4,093 samples only the first so many. seconds: from
    then until the page was read."""

    unit: bytes
    samples: tuple[bytes, ...]
    seconds: float = field(default=0.0, compare=False)


class InFlightPage:
    """The writer's side. One batch at a time: the worker encodes under a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, PAGE_BYTES)
            self._page = mmap.mmap(fd, PAGE_BYTES)
        finally:
            os.close(fd)
        self._set_count(0)
        self._page[: len(_MAGIC)] = _MAGIC

    @contextmanager
    def holding(self, unit: bytes, samples: Sequence[bytes]) -> Iterator[None]:
        """While the block runs, the page names `samples` of `unit`."""
        ids = b"".join(samples[:CAPACITY])
        self._set_count(0)
        self._page[len(_MAGIC) : _COUNT_AT] = unit
        self._page[_SINCE_AT:_IDS_AT] = _SINCE.pack(time.monotonic())
        self._page[_IDS_AT : _IDS_AT + len(ids)] = ids
        self._set_count(len(ids) // ID_BYTES)
        try:
            yield
        finally:
            self._set_count(0)

    def close(self) -> None:
        """Unmap and remove: a page without a worker names nobody."""
        self._page.close()
        self.path.unlink(missing_ok=True)

    def _set_count(self, count: int) -> None:
        self._page[_COUNT_AT:_SINCE_AT] = _COUNT.pack(count, count ^ _MASK)


def read_page(path: Path) -> Held | None:
    """What the page's worker held when it died; None where it held nothing or has no page."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    if len(raw) < _IDS_AT or not raw.startswith(_MAGIC):
        return None
    count, complement = _COUNT.unpack(raw[_COUNT_AT:_SINCE_AT])
    if count ^ complement != _MASK or not 0 < count <= CAPACITY:
        return None
    (since,) = _SINCE.unpack(raw[_SINCE_AT:_IDS_AT])
    ends = range(_IDS_AT, _IDS_AT + count * ID_BYTES, ID_BYTES)
    return Held(
        unit=raw[len(_MAGIC) : _COUNT_AT],
        samples=tuple(raw[at : at + ID_BYTES] for at in ends),
        seconds=time.monotonic() - since,
    )
