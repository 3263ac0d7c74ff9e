from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenmill.store.bits import _PASS, pack, packed_size, unpack

DTYPES = [np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")]
WIDTHS = [(dtype, width) for dtype in DTYPES for width in range(1, 8 * dtype.itemsize + 1)]


def ids(dtype: np.dtype, width: int, count: int, seed: int = 0) -> NDArray:
    """Random ids with the largest and the smallest among them."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, (1 << width) - 1, count, np.uint64, endpoint=True)
    values[::7], values[3::11] = (1 << width) - 1, 0
    return values.astype(dtype)


def bits_one_by_one(values: NDArray, width: int) -> NDArray[np.uint8]:
    """The layout by its definition: bit b of the buffer is bit b % 8 of byte b // 8."""
    each = values.view(np.uint8).reshape(len(values), values.itemsize)
    flags = np.unpackbits(each, axis=1, bitorder="little")[:, :width]
    return np.packbits(flags.ravel(), bitorder="little")


@pytest.mark.parametrize(("dtype", "width"), WIDTHS)
def test_every_width_of_every_dtype_is_laid_out_as_defined(dtype: np.dtype, width: int) -> None:
    for count in (0, 1, 7, 64, 65, 1000):
        values = ids(dtype, width, count)
        bits = pack(values, width)
        assert len(bits) == packed_size(count, width)
        np.testing.assert_array_equal(bits, bits_one_by_one(values, width))
        back = unpack(bits, start=0, count=count, width=width, dtype=dtype)
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, values)


cases = st.sampled_from(WIDTHS).flatmap(
    lambda case: st.tuples(
        st.just(case), st.integers(0, 700), st.integers(0, 2**32), st.integers(0, 2**32)
    )
)


@settings(max_examples=300, deadline=None)
@given(cases)
def test_any_range_is_read_alone(case: tuple[tuple[np.dtype, int], int, int, int]) -> None:
    (dtype, width), count, a, b = case
    values = ids(dtype, width, count, seed=a)
    start = a % (count + 1)
    length = b % (count - start + 1)
    bits = pack(values, width)
    found = unpack(bits, start=start, count=length, width=width, dtype=dtype)
    np.testing.assert_array_equal(found, values[start : start + length])


def test_longer_than_one_pass() -> None:
    values = ids(np.dtype("uint32"), 18, 5 * _PASS + 3)
    bits = pack(values, 18)
    back = unpack(bits, start=1, count=len(values) - 1, width=18, dtype=values.dtype)
    np.testing.assert_array_equal(back, values[1:])


def test_ids_too_large_for_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="id 1024 does not fit into 10 bits"):
        pack(np.array([5, 1024], np.uint16), 10)


@pytest.mark.parametrize(("dtype", "width"), [("uint16", 0), ("uint16", 17), ("float32", 8)])
def test_widths_that_a_dtype_cannot_have_are_refused(dtype: str, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width} bits"):
        pack(np.zeros(3, dtype), width)


def test_a_buffer_that_ends_early_is_refused() -> None:
    bits = pack(np.arange(100, dtype=np.uint16), 10)[:-1]
    with pytest.raises(ValueError, match="hold no ids up to 100"):
        unpack(bits, start=90, count=10, width=10, dtype=np.dtype("uint16"))
