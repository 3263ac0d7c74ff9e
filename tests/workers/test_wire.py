from __future__ import annotations

import fractions
import os
import pickle
import socket
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.workers.wire import _HEAD, BadMessage, Hangup, Wire, pack

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=3000),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@pytest.fixture
def ends():
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        yield Wire(a), Wire(b)


def through(ends, payload):
    ends[0].send(b"t", payload)
    tag, got, _ = ends[1].receive()
    assert tag == b"t"
    return got


@settings(max_examples=60, deadline=None)
@given(payload=values)
def test_plain_values_cross_unchanged(payload):
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        assert through((Wire(a), Wire(b)), payload) == payload


@pytest.mark.parametrize("size", [0, 7, 100_000])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool", ">u2"])
def test_arrays_cross_with_dtype_and_shape(ends, size, dtype):
    array = np.arange(size * 2).reshape(size, 2).astype(dtype)
    got = through(ends, {"a": array, "b": array.T})
    assert got["a"].dtype == array.dtype
    np.testing.assert_array_equal(got["a"], array)
    np.testing.assert_array_equal(got["b"], array.T)
    got["a"][...] = 0  # writable, as torch.from_numpy wants it


def test_numpy_scalars_and_big_bytes_cross(ends):
    raw = os.urandom(1 << 20)
    got = through(ends, (np.float32(1.5), raw))
    assert (float(got[0]), got[1]) == (1.5, raw)


@pytest.mark.parametrize("payload", [object(), fractions.Fraction(1, 3), len, np.array([None])])
def test_what_may_not_cross_is_refused_by_the_sender(payload):
    with pytest.raises(TypeError, match="cannot cross"):
        pack(b"t", payload)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/tokenmill-pwned",)


def packet(header, *, size=None, tag=b"w"):
    return _HEAD.pack(tag, False, len(header), len(header) if size is None else size) + header


@pytest.mark.parametrize(
    "raw",
    [
        packet(pickle.dumps(Evil())),
        packet(pickle.dumps(fractions.Fraction(1, 3))),
        packet(b"not a pickle"),
        packet(b""),
        b"x",
        _HEAD.pack(b"w", True, 4, 4),  # says a buffer comes, and none does
    ],
)
def test_a_hostile_child_runs_nothing_in_the_worker(ends, raw):
    ends[0].sock.send(raw)
    with pytest.raises(BadMessage):
        ends[1].receive()


def test_an_array_beyond_its_buffer_is_refused(ends):
    packed = pack(b"w", np.zeros(100, dtype=np.uint8))
    ends[0].sock.sendmsg([packed.head, packed.parts[0]])  # the buffer left out
    with pytest.raises(BadMessage):
        ends[1].receive()


def test_a_buffer_that_could_shrink_under_the_reader_is_refused(ends):
    header = pickle.dumps(None)
    fd = os.memfd_create("unsealed")
    os.write(fd, header)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", fd))]
    ends[0].sock.sendmsg([_HEAD.pack(b"w", True, len(header), len(header))], rights)
    os.close(fd)
    with pytest.raises(BadMessage, match="unsealed"):
        ends[1].receive()


def test_what_the_dead_had_still_sent_is_heard_first(ends):
    ends[1].send(b"q", "never read")
    ends[0].send(b"d", "last words")
    ends[0].sock.close()
    message = ends[1].receive()
    assert message is not None and message[1] == "last words"
    with pytest.raises(Hangup):
        ends[1].receive()


def test_no_descriptor_is_left_open(ends):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    for _ in range(20):
        through(ends, np.zeros(100_000, dtype=np.uint8))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count


def test_a_full_socket_is_no_reason_to_wait(ends):
    count = 0
    while ends[0].send(b"t", b"x" * 1000, wait=False) is not None:
        count += 1
    assert 0 < count < 10_000
    assert ends[1].receive(wait=False) is not None
