"""Decompression of files that nobody vouches for: gzip and zstd, piece by piece, bounded.

Memory is bounded by one piece (256 KiB of gzip output, one zstd block of at most 128 KiB plus its
window of at most 128 MiB), whatever the file claims. Concatenated gzip members and zstd frames
are read to the end; a file that ends early, or expands beyond belief, raises `Damaged` *after*
everything before the damage was yielded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal, Protocol

import zstandard

Compression = Literal["", "gzip", "zstd"]

_SUFFIXES: dict[str, Compression] = {
    ".gz": "gzip",
    ".tgz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".tzst": "zstd",
}
# Known, and not read: planning says so instead of quarantining every line of them.
UNSUPPORTED = (".xz", ".bz2", ".lz4", ".lzma", ".zip", ".7z", ".br")

READ_BYTES = 1 << 18
PIECE_BYTES = 1 << 18
WINDOW_BYTES = 1 << 27  # what `zstd` itself decodes without --long
# A gzip stream cannot pass 1,032:1, honest text seldom 20:1; both limits must be passed.
BOMB_RATIO = 1000
BOMB_BYTES = 1 << 30
_ZSTD_MAGIC = 0xFD2FB528
_BLOCK_BYTES = 1 << 17


class Damaged(Exception):
    """The rest of an input cannot be read: becomes the input-level fault of `SpanDone`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def compression(path: str) -> Compression:
    """By the name's end, since planning opens nothing."""
    dot = path.rfind(".")
    return _SUFFIXES.get(path[dot:].lower(), "") if dot >= 0 else ""


def decompressed(raw: BinaryIO, kind: Compression, size: int) -> Iterator[bytes]:
    """Pieces of the content of `raw`, whose compressed size is `size` bytes.

    Raises Damaged (`truncated`, `corrupt`, `decompression-bomb`, `decompression-window`).
    """
    pieces = _gzip(raw) if kind == "gzip" else _zstd(raw)
    total, ceiling = 0, max(BOMB_BYTES, BOMB_RATIO * size)
    for piece in pieces:
        total += len(piece)
        if total > ceiling:
            raise Damaged(
                "decompression-bomb",
                f"{size} bytes expand to more than {ceiling}: refused after {total - len(piece)}",
            )
        if piece:
            yield piece


def _gzip(raw: BinaryIO) -> Iterator[bytes]:
    data = raw.read(READ_BYTES)
    if not data:
        raise Damaged("truncated", "an empty file is not a gzip stream")
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if not data:
                raise Damaged("truncated", "the gzip stream ends in the middle of a member")
            try:
                piece = member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise Damaged("corrupt", f"not a sound gzip stream: {error}") from None
            yield piece
            data = member.unconsumed_tail
            if not data and not member.eof:
                data = raw.read(READ_BYTES)
        # zero padding after a member is allowed (tapes, tar); another member may follow it
        data = member.unused_data.lstrip(b"\0")
        while not data and (more := raw.read(READ_BYTES)):
            data = more.lstrip(b"\0")


def _exactly(raw: BinaryIO, size: int) -> bytes:
    data = raw.read(size)
    while len(data) < size:  # a raw S3 body may answer short
        more = raw.read(size - len(data))
        if not more:
            raise Damaged("truncated", "the zstd stream ends in the middle of a frame")
        data += more
    return data


def _zstd(raw: BinaryIO) -> Iterator[bytes]:
    """Frame by frame and block by block: the library's readers take a cut frame for a whole one.

    Blocks are found by their three-byte headers (RFC 8878, section 3.1.1.2), so that one call
    into the library returns at most one block.
    """
    magic = raw.read(4)
    if not magic:
        raise Damaged("truncated", "an empty file is not a zstd stream")
    while magic:
        magic += _exactly(raw, 4 - len(magic))
        number = int.from_bytes(magic, "little")
        if number & 0xFFFFFFF0 == 0x184D2A50:  # a skippable frame
            left = int.from_bytes(_exactly(raw, 4), "little")
            while left:
                left -= len(_exactly(raw, min(left, READ_BYTES)))
        elif number == _ZSTD_MAGIC:
            yield from _zstd_frame(raw, magic)
        else:
            raise Damaged("corrupt", "not a zstd stream: the magic number of a frame is missing")
        magic = raw.read(4)


def _zstd_frame(raw: BinaryIO, magic: bytes) -> Iterator[bytes]:
    flags = _exactly(raw, 1)
    single = flags[0] >> 5 & 1
    extra = (1 - single) + (0, 1, 2, 4)[flags[0] & 3] + ((single, 2, 4, 8)[flags[0] >> 6])
    frame = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()
    yield _zstd_feed(frame, magic + flags + _exactly(raw, extra))
    last = 0
    while not last:
        head = _exactly(raw, 3)
        value = int.from_bytes(head, "little")
        last, kind, size = value & 1, value >> 1 & 3, value >> 3
        if kind == 3 or (kind != 1 and size > _BLOCK_BYTES):
            raise Damaged("corrupt", "not a sound zstd stream: a block of a reserved kind or size")
        yield _zstd_feed(frame, head + _exactly(raw, 1 if kind == 1 else size))
    if flags[0] >> 2 & 1:
        yield _zstd_feed(frame, _exactly(raw, 4))


class _Feedable(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd_feed(frame: _Feedable, data: bytes) -> bytes:
    try:
        return frame.decompress(data)
    except zstandard.ZstdError as error:
        text = str(error)
        if "too much memory" in text:
            why = f"its window is larger than {WINDOW_BYTES >> 20} MiB"
            raise Damaged("decompression-window", f"the zstd stream is refused: {why}") from None
        raise Damaged("corrupt", f"not a sound zstd stream: {text}") from None


class ByteStream(Protocol):
    """What an archive is read from: forwards only."""

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        ...

    def skip(self, size: int) -> bool:
        """Go `size` bytes forward; False where the end comes before."""
        ...


class FileStream:
    """A seekable file of a known size: skipping costs nothing."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw = raw
        self._size = size
        self._at = 0

    def read(self, size: int) -> bytes:
        size = min(size, self._size - self._at)
        data = self._raw.read(size)
        while len(data) < size and (more := self._raw.read(size - len(data))):
            data += more
        self._at += len(data)
        return data

    def skip(self, size: int) -> bool:
        if size > self._size - self._at:
            return False
        if size:
            self._at = self._raw.seek(self._at + size)
        return True


class PieceStream:
    """Pieces of bytes (as of `decompressed`) as one stream; holds one piece and what is asked."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def _take(self, size: int) -> memoryview:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return self._piece
            self._piece = memoryview(piece)
        taken, self._piece = self._piece[:size], self._piece[size:]
        return taken

    def read(self, size: int) -> bytes:
        parts: list[memoryview] = []
        while size and (part := self._take(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> bool:
        while size and (part := self._take(size)):
            size -= len(part)
        return not size


def byte_stream(raw: BinaryIO, kind: Compression, size: int) -> ByteStream:
    return PieceStream(decompressed(raw, kind, size)) if kind else FileStream(raw, size)
