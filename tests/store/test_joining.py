from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.store.joining import link

STREAMS = st.sets(st.sampled_from(["audio", "image", "text"]), min_size=1).map(frozenset)
PIECES = st.lists(
    st.tuples(STREAMS, st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6)),
    max_size=5,
)


def sample(number: int) -> np.ndarray:
    return np.frombuffer(number.to_bytes(16, "big"), np.uint8)


@given(PIECES)
def test_every_current_row_is_read_once_and_no_stream_of_a_sample_twice(
    pieces: list[tuple[frozenset[str], list[tuple[int, bool]]]],
) -> None:
    streams = [each for each, _ in pieces]
    ids = [np.array([sample(n) for n, _ in rows], np.uint8).reshape(-1, 16) for _, rows in pieces]
    current = [np.array([now for _, now in rows], bool) for _, rows in pieces]
    links = link(streams, ids, current)
    read: list[tuple[int, int]] = []
    for number, each in enumerate(links):
        joined = {int(r): streams[number] for r in np.flatnonzero(each.keep)}
        read += [(number, row) for row in joined]
        for row, piece, at in zip(each.rows, each.pieces, each.at, strict=True):
            read.append((int(piece), int(at)))
            assert (ids[number][row] == ids[piece][at]).all()
            assert joined[int(row)].isdisjoint(streams[piece])
            joined[int(row)] |= streams[piece]
        assert list(each.rows) == sorted(each.rows)
    expected = [
        (number, row)
        for number, (_, rows) in enumerate(pieces)
        for row, (_, now) in enumerate(rows)
        if now
    ]
    assert sorted(read) == expected


def test_no_pieces_have_no_links() -> None:
    assert link([], [], []) == []
