"""Decompression of hostile and honest streams."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import islice

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.workers.sources import bounded
from tokenmill.workers.sources.bounded import (
    Compression,
    Damaged,
    FileStream,
    PieceStream,
    compression,
    decompressed,
)

TEXT = b"".join(b"%d hello world, hello tar\n" % n for n in range(40_000))


def pack(kind: Compression, data: bytes) -> bytes:
    if kind == "gzip":
        return gzip.compress(data, mtime=0)
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def pieces(kind: Compression, packed: bytes) -> Iterator[bytes]:
    return decompressed(io.BytesIO(packed), kind, len(packed))


def until_damage(kind: Compression, packed: bytes) -> tuple[bytes, Damaged | None]:
    got = []
    try:
        for piece in pieces(kind, packed):
            got.append(piece)
    except Damaged as damage:
        return b"".join(got), damage
    return b"".join(got), None


KINDS: list[Compression] = ["gzip", "zstd"]


@pytest.mark.parametrize("kind", KINDS)
def test_members_and_frames_that_follow_each_other_are_read_to_the_end(kind: Compression) -> None:
    packed = pack(kind, TEXT) + pack(kind, b"") + pack(kind, b"more")
    assert until_damage(kind, packed) == (TEXT + b"more", None)


def test_zstd_frames_of_every_shape_are_read() -> None:
    streamed = zstandard.ZstdCompressor(level=1).compressobj()  # no content size
    frame = streamed.compress(TEXT) + streamed.flush()
    noise = zlib.compress(TEXT) * 5  # raw blocks
    skippable = (0x184D2A53).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    params = zstandard.ZstdCompressionParameters.from_level(19, window_log=23)
    long = zstandard.ZstdCompressor(compression_params=params).compress(TEXT * 3)
    packed = frame + skippable + pack("zstd", noise) + long + pack("zstd", bytes(1 << 20))
    got, damage = until_damage("zstd", packed)
    assert damage is None
    assert got == TEXT + noise + TEXT * 3 + bytes(1 << 20)


def test_gzip_may_be_padded_with_zeros() -> None:
    packed = pack("gzip", b"a") + bytes(1000) + pack("gzip", b"b") + bytes(600_000)
    assert until_damage("gzip", packed) == (b"ab", None)


@given(kind=st.sampled_from(KINDS), at=st.floats(0, 0.999), both=st.booleans())
def test_a_cut_keeps_what_came_before_and_is_always_seen(
    kind: Compression, at: float, both: bool
) -> None:
    packed = pack(kind, TEXT) + (pack(kind, TEXT) if both else b"")
    whole = pack(kind, TEXT)
    end = int(len(packed) * at)
    got, damage = until_damage(kind, packed[:end])
    assert (TEXT + TEXT).startswith(got)
    if end == len(whole):
        assert damage is None
    else:
        assert damage is not None
        assert damage.reason == "truncated"
    if end > len(whole):
        assert got.startswith(TEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_middle_is_seen(kind: Compression) -> None:
    packed = bytearray(pack(kind, TEXT))
    for at in range(len(packed) // 2, len(packed) // 2 + 40):
        packed[at] ^= 0x5A
    _, damage = until_damage(kind, bytes(packed))
    assert damage is not None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_compressed_is_corrupt_and_what_is_empty_truncated(kind: Compression) -> None:
    assert until_damage(kind, b"plain text, no magic")[1].reason == "corrupt"  # type: ignore[union-attr]
    assert until_damage(kind, b"")[1].reason == "truncated"  # type: ignore[union-attr]


def test_rubbish_behind_a_gzip_member_is_corrupt_but_costs_nothing_before_it() -> None:
    got, damage = until_damage("gzip", pack("gzip", TEXT) + b"rubbish")
    assert got == TEXT
    assert damage is not None
    assert damage.reason == "corrupt"


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_given_up_on_and_held_in_small_pieces(
    kind: Compression, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(bounded, "BOMB_RATIO", 10)
    packed = pack(kind, bytes(64 << 20))
    total, largest = 0, 0
    with pytest.raises(Damaged) as raised:
        for piece in pieces(kind, packed):
            total, largest = total + len(piece), max(largest, len(piece))
    assert raised.value.reason == "decompression-bomb"
    assert total <= max(1 << 20, 10 * len(packed))
    assert largest <= 1 << 20


def test_one_zstd_block_at_a_time_comes_out() -> None:
    sizes = [len(p) for p in islice(pieces("zstd", pack("zstd", bytes(64 << 20))), 100)]
    assert max(sizes) <= 1 << 17


def test_a_window_that_needs_too_much_memory_is_refused() -> None:
    # a frame header that claims a window of 1 GiB, and an empty last block
    frame = (0xFD2FB528).to_bytes(4, "little") + bytes([0x00, (30 - 10) << 3]) + b"\x01\0\0"
    _, damage = until_damage("zstd", frame)
    assert damage is not None
    assert damage.reason == "decompression-window"


def test_compression_goes_by_the_end_of_the_name() -> None:
    names = {"a.jsonl": "", "a.jsonl.gz": "gzip", "a.TGZ": "gzip", "b.zst": "zstd", "gz": ""}
    assert {name: compression(name) for name in names} == names


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=20))
def test_both_streams_read_and_skip_alike(steps: list[tuple[bool, int]]) -> None:
    data = bytes(range(256)) * 4
    file = FileStream(io.BytesIO(data), len(data))
    piece = PieceStream(data[n : n + 100] for n in range(0, len(data), 100))
    for skip, size in steps:
        if skip:
            moved = file.skip(size)
            assert moved == piece.skip(size)
            if not moved:
                return
        else:
            assert file.read(size) == piece.read(size)
