"""Lines of spans: exactly once, whatever the cuts and the reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.workers.sources import lines
from tokenmill.workers.sources.bounded import Damaged
from tokenmill.workers.sources.lines import TooLong, line_blocks, span_lines

Numbered = list[tuple[int, bytes | TooLong]]

LIMIT = 12
texts = st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"x"))).flatmap(
    lambda parts: st.booleans().map(lambda end: b"\n".join(parts) + (b"\n" if end else b""))
)


def expected(data: bytes) -> Numbered:
    """The definition, with nothing clever in it."""
    found: Numbered = []
    at = 0
    for line in data.split(b"\n"):
        found.append((at, line if len(line) <= LIMIT else TooLong(len(line))))
        at += len(line) + 1
    if data.endswith(b"\n") or not data:
        found.pop()
    return found


def numbered(blocks: Iterator[lines.LineBlock]) -> Numbered:
    return [pair for block in blocks for pair in zip(*block, strict=True)]


@given(texts, st.lists(st.integers(0, 400), max_size=6), st.integers(1, 50))
def test_any_cuts_give_every_line_once_and_in_order(
    data: bytes, cuts: list[int], block: int
) -> None:
    size = max(len(data), 1)
    edges = sorted({0, size, *(c % (size + 1) for c in cuts)})
    found: Numbered = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        patch.setattr(lines, "_TAIL_BYTES", 3)
        for start, end in pairwise(edges):
            part = numbered(span_lines(io.BytesIO(data), start, end, LIMIT))
            assert all(start <= offset < end for offset, _ in part)
            found += part
    assert found == expected(data)


@given(texts, st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_blocks_may_end_anywhere(data: bytes, sizes: list[int]) -> None:
    blocks, at = [], 0
    for size in sizes:
        blocks.append(data[at : at + size])
        at += size
    blocks.append(data[at:])
    assert numbered(line_blocks(blocks, 0, None, LIMIT)) == expected(data)


def test_lines_before_a_damage_are_kept_and_the_cut_line_is_not() -> None:
    def damaged() -> Iterator[bytes]:
        yield b"one\ntwo\nthr"
        raise Damaged("truncated", "cut")

    found: Numbered = []
    with pytest.raises(Damaged):
        for block in line_blocks(damaged(), 0, None, LIMIT):
            found += zip(*block, strict=True)
    assert found == [(0, b"one"), (4, b"two")]


def test_a_line_over_the_limit_is_never_held() -> None:
    class Endless(io.RawIOBase):
        """A line of 1 GiB that is made as it is read."""

        left = 1 << 30

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    [block] = span_lines(Endless(), 0, 1 << 30, 1000)  # type: ignore[arg-type]
    assert block.lines == [TooLong(1 << 30)]
