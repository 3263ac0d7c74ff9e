"""A very small S3 on loopback, for what a good server never does.

`honest=False` ignores If-None-Match and If-Match: the model of a store to refuse (as npm's
`s3rver` is). `faults` is a list of what happens to the next requests: "503" answers so without
doing anything, "lost" does the work and then drops the connection, "expired" says that the
credentials are, "no bucket" that there is none, "reset" drops the connection before doing anything.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeS3(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *, honest: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.honest = honest
        self.objects: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def fake_s3(*, honest: bool = True) -> Iterator[FakeS3]:
    server = FakeS3(honest=honest)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    server: FakeS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        if self.fault == "lost":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, b"" if self.command == "HEAD" else text.encode())

    def _begin(self) -> tuple[str, bytes, bool]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = unquote(urlsplit(self.path).path).lstrip("/")
        with self.server.lock:
            self.server.requests.append(f"{self.command} {key}")
            self.fault = self.server.faults.pop(0) if self.server.faults else ""
        if self.fault == "503":
            self._error(503, "SlowDown")
        elif self.fault == "no bucket":
            self._error(404, "NoSuchBucket")
        elif self.fault == "expired":
            self._error(400, "ExpiredToken")
        elif self.fault == "reset":
            self.close_connection = True
        return key, body, self.fault in ("", "lost")

    def do_PUT(self) -> None:
        key, body, go_on = self._begin()
        if not go_on:
            return
        with self.server.lock:
            current = self.server.objects.get(key)
            match = self.headers.get("If-Match")
            refused = self.headers.get("If-None-Match") == "*" and current is not None
            refused |= match is not None and (current is None or _etag(current) != match)
            if not (refused and self.server.honest):
                self.server.objects[key] = body
        if refused and self.server.honest:
            self._error(412, "PreconditionFailed")
        else:
            self._answer(200, ETag=_etag(body))

    def do_GET(self) -> None:
        key, _, go_on = self._begin()
        data = self.server.objects.get(key)
        if not go_on:
            return
        if data is None:
            return self._error(404, "NoSuchKey")
        match = self.headers.get("If-Match")
        if match is not None and match != _etag(data):
            return self._error(412, "PreconditionFailed")
        facts = {"ETag": _etag(data), "Last_Modified": formatdate(usegmt=True)}
        if self.command == "HEAD":
            return self._answer(200, Content_Length=str(len(data)), **facts)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if span is None:
            return self._answer(200, data, **facts)
        start, end = int(span[1]), int(span[2]) + 1
        where = f"bytes {start}-{end - 1}/{len(data)}"
        return self._answer(206, data[start:end], Content_Range=where, **facts)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        _, body, go_on = self._begin()
        if not go_on:
            return
        bucket = urlsplit(self.path).path.strip("/")
        for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            self.server.objects.pop(f"{bucket}/{key}", None)
        self._answer(200, b"<DeleteResult/>")
