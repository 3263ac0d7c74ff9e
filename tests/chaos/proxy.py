"""A loopback HTTP proxy before an S3 server that misbehaves as told: 503, slow, reset, lost
answers, expired credentials. Signatures stay whole: a request goes on as it came, Host included."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("503", "slow", "reset", "lost", "expired")
SLOW_SECONDS = 0.5
_EXPIRED = (
    b'<?xml version="1.0"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)
_BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>busy</Message></Error>'


class Proxy(ThreadingHTTPServer):
    """`shares`: kind -> the share of requests that meet it, from now on; {}: an honest proxy."""

    daemon_threads = True

    def __init__(self, upstream: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.shares: dict[str, float] = {}
        self.injected: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> str | None:
        with self._lock:
            at = self._random.random()
            for kind, share in self.shares.items():
                if at < share:
                    self.injected[kind] += 1
                    return kind
                at -= share
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that were killed hang up


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *args: object) -> None:
        pass

    def _any(self) -> None:
        body = self._body()
        fault = self.server.draw()
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if fault == "reset":
            return self._reset()
        if fault == "503":
            return self._answer(503, [("Content-Type", "application/xml")], _BUSY)
        if fault == "expired":
            return self._answer(403, [("Content-Type", "application/xml")], _EXPIRED)
        try:
            status, headers, answer = self._forward(body)
        except (OSError, HTTPException):  # the server is down
            return self._reset()
        if fault == "lost":
            return self._reset()
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    there.putheader(name, value)
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                there.putheader("Content-Length", str(len(body)))
            there.endheaders(body)
            answer: HTTPResponse = there.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            there.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = {n.lower(): v for n, v in headers}.get("content-length")
        size = length if self.command == "HEAD" and length is not None else str(len(body))
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """RST instead of FIN: what a crashed load balancer sends."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.rfile.close()
