"""Tar archives that nobody vouches for: members one after another, never extracted.

Headers are parsed by the standard library's `TarInfo.frombuf` (checksum, octal and base-256
numbers, ustar prefix); the walk is our own, because `tarfile` keeps every member it has seen and
reads extended headers of any claimed size into memory. Archives that were concatenated are read on
behind the first one's end. Unsafe members are reported, not skipped over in silence.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from tokenmill.workers.sources.bounded import ByteStream, Damaged

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
# Linux takes no path over 4,096 bytes; POSIX headers carry little else.
_HEADER_BYTES = 1 << 16
_NAME_CHARS = 4096
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file, whose size is only claimed",
}
# Their size field does not mean bytes in the archive.
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file (or what pretends to be one). `size` in bytes; `unsafe` says why it is refused."""

    name: str
    size: int
    unsafe: str | None = None


class TarWalk:
    """Iterate over the members; `read()` gives the bytes of the one just seen.

    Raises Damaged (`truncated`, `corrupt`). `ended` is True behind an end-of-archive mark, where
    the last member is known to be whole.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._offset = 0
        self._begun = 0  # where the last header begins: the same whatever is read of the data
        self._block = _ZEROS  # of the last header
        self._unread = 0  # bytes of the current member, and of its padding
        self._padding = 0
        self.ended = False

    def __iter__(self) -> Iterator[Member]:
        path: str | None = None
        size: int | None = None
        unsafe: str | None = None
        while (info := self._header()) is not None:
            kind = info.type
            if kind in _EXTENDED or kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                header = self._small(info.size)
                if header is None:
                    unsafe = unsafe or f"a member with an extended header of {info.size:,} bytes"
                elif kind == tarfile.GNUTYPE_LONGNAME:
                    path = _text(header.split(b"\0", 1)[0])
                elif kind in _EXTENDED:
                    records = _records(header)
                    path = records.get("path", path)
                    size = _size(records, size)
                    unsafe = unsafe or _pax_fault(records)
            elif kind == tarfile.XGLTYPE:
                self._data(info.size)  # comments (git archive): nothing of ours
            elif kind == tarfile.DIRTYPE:
                path = size = unsafe = None
            else:
                yield self._member(info, path, size, unsafe)
                path = size = unsafe = None

    def read(self) -> bytes:
        """All bytes of the current member: look at its size before."""
        data = self._stream.read(self._unread)
        self._offset += len(data)
        if len(data) < self._unread:
            raise self._cut()
        self._unread = 0
        return data

    def _member(
        self, info: tarfile.TarInfo, path: str | None, size: int | None, unsafe: str | None
    ) -> Member:
        name = info.name if path is None else path
        claimed = info.size if size is None else size
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._sparse_headers(info)
        if info.type not in _WITHOUT_DATA:
            self._data(claimed)
        if info.type in _KINDS:
            unsafe = _KINDS[info.type]
        elif info.type not in tarfile.REGULAR_TYPES:
            unsafe = f"a member of the unknown type {info.type!r}"
        return Member(name=name[:_NAME_CHARS], size=self._unread, unsafe=unsafe or _odd_name(name))

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end of the file behind an end-of-archive mark."""
        self._pass_data()
        while True:
            block = self._stream.read(_BLOCK)
            self._begun, self._offset = self._offset, self._offset + len(block)
            if len(block) < _BLOCK:
                if self.ended and not block.strip(b"\0"):
                    return None
                raise self._cut()
            if block == _ZEROS:
                self.ended = True
                continue
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError, OverflowError) as error:
                raise Damaged("corrupt", f"no tar header at byte {self._begun}: {error}") from None
            if info.size < 0:
                raise Damaged(
                    "corrupt", f"the member at byte {self._begun} claims {info.size} bytes"
                )
            self.ended = False
            self._block = block
            return info

    def _sparse_headers(self, info: tarfile.TarInfo) -> None:
        """GNU's old sparse format continues its map in further blocks."""
        more = self._block[482]
        while more:
            block = self._stream.read(_BLOCK)
            self._offset += len(block)
            if len(block) < _BLOCK:
                raise self._cut()
            more = block[504]

    def _data(self, size: int) -> None:
        self._unread = size
        self._padding = -size % _BLOCK

    def _small(self, size: int) -> bytes | None:
        """The bytes of an extended header; None where it is too large to be one."""
        self._data(size)
        return self.read() if size <= _HEADER_BYTES else None

    def _pass_data(self) -> None:
        left, self._unread, self._padding = self._unread + self._padding, 0, 0
        if not self._stream.skip(left):
            raise self._cut()
        self._offset += left

    def _cut(self) -> Damaged:
        if not self._offset:
            return Damaged("truncated", "an empty file is not a tar archive")
        return Damaged(
            "truncated",
            f"the archive ends in or behind what begins at byte {self._begun}, "
            "without its end-of-archive mark",
        )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


_FAULT = "a member with a malformed extended header"


def _records(header: bytes) -> dict[str, str]:
    """The `length key=value\\n` records of a pax header; the key "" marks a malformed one."""
    found: dict[str, str] = {}
    while header.rstrip(b"\0"):
        length, _, _ = header.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = header[len(length) + 1 : size - 1].partition(b"=")
        if size > len(header) or not equals or header[size - 1 : size] != b"\n":
            return {**found, "": _FAULT}
        found[_text(key)] = _text(value)
        header = header[size:]
    return found


def _size(records: dict[str, str], otherwise: int | None) -> int | None:
    text = records.get("size")
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 19:
        raise Damaged("corrupt", f"an extended header claims the size {text[:40]!r}")
    return int(text)


def _pax_fault(records: dict[str, str]) -> str | None:
    if any(key.startswith("GNU.sparse.") for key in records):
        return "a sparse file, whose size is only claimed"
    return records.get("")


def _odd_name(name: str) -> str | None:
    if name.startswith("/"):
        return "an absolute path"
    if ".." in name.split("/"):  # also where the rest would lead back in
        return "a path with '..'"
    if "\0" in name or not name:
        return "a name with a zero byte" if name else "without a name"
    if len(name) > _NAME_CHARS:
        return f"a name of {len(name):,} characters"
    return None
