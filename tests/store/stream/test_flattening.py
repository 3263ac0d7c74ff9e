"""Flattening orders and joint vocabularies, without a file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.schemas.errors import CorruptStore, JobError
from tokenmill.store.stream.flattening import (
    FLATTENINGS,
    check_flattening,
    codebook_of,
    extra_tokens,
    positions,
)
from tokenmill.store.stream.vocabulary import StreamSpec, Vocabulary

IMAGE = StreamSpec(
    stream="image", space="ab" * 32, modality="image", codebook_sizes=(100,), axes=("H", "W")
)
SPEECH = StreamSpec(
    stream="speech",
    space="cd" * 32,
    modality="audio",
    codebook_sizes=(8, 16, 4),
    axes=("codebook", "frame"),
)


@given(order=st.sampled_from(FLATTENINGS), a=st.integers(1, 6), b=st.integers(1, 9))
def test_every_order_takes_every_id_once(order: str, a: int, b: int) -> None:
    found = positions(order, (a, b))  # type: ignore[arg-type]
    assert len(found) == a * b + extra_tokens(order, a)  # type: ignore[arg-type]
    assert sorted(found[found >= 0].tolist()) == list(range(a * b))


def test_orders_are_the_ones_of_their_names() -> None:
    assert positions("raster", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert positions("columns", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert positions("columns", (2, 2, 2)).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]  # frame by frame
    assert positions("morton", (4, 4)).tolist()[:8] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert positions("interleaved", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    # codebook 1 comes one frame later; what lies outside is fill
    assert positions("delayed", (2, 3)).tolist() == [0, -1, 1, 3, 2, 4, -1, 5]


def test_every_token_knows_its_codebook() -> None:
    assert codebook_of("raster", (2, 3), 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert codebook_of("interleaved", (2, 3), 2).tolist() == [0, 1] * 3
    assert codebook_of("delayed", (2, 3), 2).tolist() == [0, 1] * 4
    assert codebook_of("raster", (2, 3), 1).tolist() == [0] * 6


def test_orders_that_cannot_be_are_refused() -> None:
    for order, axes in (("delayed", ("H", "W")), ("columns", ("T",)), ("spiral", ("H", "W"))):
        with pytest.raises(JobError):
            check_flattening(order, axes, "s")  # type: ignore[arg-type]


def test_a_vocabulary_gives_every_id_of_every_codebook_its_own_place() -> None:
    vocabulary = Vocabulary.of([IMAGE, SPEECH], specials=["<|user|>"])
    assert vocabulary.size == 3 + 1 + 2 + 100 + 2 + 28
    found = [vocabulary.local(i) for i in range(vocabulary.size)]
    assert len(set(found)) == vocabulary.size
    assert vocabulary.local(vocabulary.stream("speech").offsets[1] + 5) == ("speech", 1, 5)
    assert vocabulary.local(vocabulary.special("<|image|>")) == "<|image|>"
    with pytest.raises(KeyError):
        vocabulary.local(vocabulary.size)


def test_extending_keeps_every_id() -> None:
    small = Vocabulary.of([IMAGE])
    large = small.extended([IMAGE, SPEECH], specials=["<|tool|>"])
    assert [large.local(i) for i in range(small.size)] == [
        small.local(i) for i in range(small.size)
    ]
    assert large.hash != small.hash


def test_a_stream_of_another_space_does_not_slip_in() -> None:
    """G7: the same name with other weights is another id space."""
    vocabulary = Vocabulary.of([IMAGE])
    other = StreamSpec(
        stream="image", space="ef" * 32, modality="image", codebook_sizes=(100,), axes=("H", "W")
    )
    with pytest.raises(JobError, match="another space"):
        vocabulary.extended([other])


def test_a_vocabulary_survives_its_bytes_and_strange_ones_are_refused() -> None:
    vocabulary = Vocabulary.of([IMAGE, SPEECH])
    again = Vocabulary.from_bytes(vocabulary.to_bytes(), where="here")
    assert again == vocabulary
    assert again.hash == vocabulary.hash
    for data in (b"", b"[]", b"{}", vocabulary.to_bytes()[:-2], b'{"format": 99}'):
        with pytest.raises(CorruptStore):
            Vocabulary.from_bytes(data, where="here")


def test_positions_are_shared_and_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        positions("raster", (2, 2))[0] = 9
    assert isinstance(positions("raster", (2, 2)), np.ndarray)
