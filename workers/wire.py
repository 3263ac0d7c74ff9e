"""Messages between a worker and its decode children, over one SOCK_SEQPACKET socket.

A packet is a tag, a header and, where the payload is small, its buffers; larger payloads lie in a
memfd that crosses by SCM_RIGHTS, so frames are mapped, not copied, and /dev/shm (64 MB in a pod)
is not used. The header is a pickle that may hold only None, numbers, text, bytes, tuples, lists,
dicts, sets and arrays: a child that a hostile file took over cannot make the worker run anything.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import pickle
import socket
import struct
from typing import Any

import numpy as np

INLINE_BYTES = 16 << 10
PACKET_BYTES = 32 << 10
_HEAD = struct.Struct("<cBIQ")  # tag, in a memfd?, header bytes, total bytes
_BYTES_ASIDE = 1 << 10  # larger bytes objects travel as buffers
_ALIGN = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class BadMessage(Exception):
    """The other side sent what no honest peer sends."""


class Hangup(Exception):
    """The other side is gone. Not EOFError: decoders raise that themselves."""


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.buffers: list[memoryview] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, np.generic):
            obj = np.asarray(obj)
        if isinstance(obj, np.ndarray):
            if obj.dtype.hasobject:
                raise TypeError("an array of Python objects cannot cross from a decode child")
            flat = np.ascontiguousarray(obj).reshape(-1).view(np.uint8)
            return "array", obj.dtype.str, obj.shape, self._aside(flat.data)
        if isinstance(obj, (bytes, bytearray)) and len(obj) > _BYTES_ASIDE:
            return "bytes", len(obj), self._aside(memoryview(obj))
        return None

    def reducer_override(self, obj: Any) -> Any:
        raise TypeError(
            f"a {type(obj).__name__} cannot cross from a decode child: windows may hold arrays, "
            "numbers, text, bytes, tuples, lists and dicts"
        )

    def _aside(self, buffer: memoryview) -> int:
        at = -(-self.size // _ALIGN) * _ALIGN
        self.buffers.append(memoryview(bytes(at - self.size)))
        self.buffers.append(buffer)
        self.size = at + len(buffer)
        return at


class _Unpacker(pickle.Unpickler):
    def __init__(self, header: bytes, body: Any) -> None:
        super().__init__(io.BytesIO(header))
        self._body = body

    def find_class(self, module: str, name: str) -> Any:
        raise BadMessage(f"a message names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "bytes":
            _, size, at = pid
            return bytes(self._body[at : at + size])
        _, kind, shape, at = pid
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._body, dtype=dtype, count=count, offset=at).reshape(shape)


class Wire:
    """One end of the socket. `credit`-keeping is the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, tag: bytes, payload: Any = None, *, wait: bool = True) -> int | None:
        """Bytes of the payload's buffers; None where `wait` is false and the socket is full.

        Raises TypeError for a payload that may not cross, Hangup where the peer is gone.
        """
        return send_packed(self.sock, pack(tag, payload), wait=wait)

    def receive(self, *, wait: bool = True) -> tuple[bytes, Any, int] | None:
        """(tag, payload, bytes); None where `wait` is false and nothing is there.

        Raises Hangup where the peer is gone, BadMessage where it sent nonsense.
        """
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            try:
                packet, fds = _receive(self.sock, flags)
            except ConnectionResetError:
                # it died with packets of ours unread: the kernel says so once, before it hands
                # out what the dead one had still sent
                packet, fds = _receive(self.sock, flags)
        except BlockingIOError:
            return None
        try:
            if not packet:
                raise Hangup
            return _unpack(packet, fds)
        finally:
            for fd in fds:
                os.close(fd)


class Packed:
    """A message ready to be sent, perhaps twice (to the child that replaces a dead one)."""

    def __init__(self, tag: bytes, header: bytes, buffers: list[memoryview], size: int) -> None:
        total = len(header) + size
        self.size = size
        self.aside = total > INLINE_BYTES
        self.head = _HEAD.pack(tag, self.aside, len(header), total)
        self.parts: list[Any] = [header, *buffers]


def pack(tag: bytes, payload: Any = None) -> Packed:
    """Raises TypeError for a payload that may not cross."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(payload)
    return Packed(tag, file.getvalue(), packer.buffers, packer.size)


def send_packed(sock: socket.socket, packed: Packed, *, wait: bool = True) -> int | None:
    """As `Wire.send`."""
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    try:
        if not packed.aside:
            sock.sendmsg([packed.head, *packed.parts], (), flags)
            return packed.size
        fd = _memfd(packed.parts)
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", fd))]
            sock.sendmsg([packed.head], rights, flags)
        finally:
            os.close(fd)
    except BlockingIOError:
        return None
    except ConnectionError:
        raise Hangup from None
    return packed.size


def _receive(sock: socket.socket, flags: int) -> tuple[bytes, list[int]]:
    # not socket.recv_fds: in Python 3.11 it and send_fds drop their flags
    packet, ancillary, _, _ = sock.recvmsg(PACKET_BYTES, socket.CMSG_SPACE(4), flags)
    fds = [
        fd
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in struct.iter_unpack("@i", data[: len(data) // 4 * 4])
    ]
    return packet, fds


def _memfd(parts: list[Any]) -> int:
    fd = os.memfd_create("tokenmill", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            view = memoryview(part)
            while len(view):
                view = view[os.write(fd, view) :]
        # sealed: a receiver that maps it cannot be made to fault by a later ftruncate
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unpack(packet: bytes, fds: list[int]) -> tuple[bytes, Any, int]:
    try:
        tag, aside, header_size, total = _HEAD.unpack_from(packet)
        body: Any
        if aside:
            if fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise BadMessage("an unsealed buffer")
            # private: the arrays are writable here, and writing reaches nobody else
            body = mmap.mmap(fds[0], total, flags=mmap.MAP_PRIVATE)
        else:
            body = bytearray(packet[_HEAD.size :])
        view = memoryview(body)
        header = bytes(view[:header_size])
        return tag, _Unpacker(header, view[header_size:]).load(), total - header_size
    except BadMessage:
        raise
    except Exception as error:  # noqa: BLE001 - a hostile pickle can raise anything: a verdict
        raise BadMessage(f"{type(error).__name__}: {error}") from None
