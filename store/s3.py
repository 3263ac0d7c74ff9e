"""A bucket prefix as a store: conditional writes, conditional reads, parallel uploads."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from tokenmill.schemas.errors import InputChanged, StoreError
from tokenmill.store import s3client
from tokenmill.store.paths import HIDDEN, Listed
from tokenmill.store.ranges import RangeFile

# One request up to here; above, parts in parallel (S3 wants parts of 5 MiB and more).
SINGLE_PUT = 16 << 20
PART = 16 << 20
UPLOADS = 4
DELETE_BATCH = 1000  # S3's limit


class S3Prefix:
    """The operations of an Access on `bucket`/`prefix`; paths are relative, already checked.

    Holds no connection: they belong to the process (see s3client), so it pickles and forks.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(path)}

    def _where(self, path: str) -> str:
        return f"s3://{self.bucket}/{self._key(path)}"

    def read(self, path: str, version: str | None) -> bytes:
        return self._get(path, version, {})

    def _get(self, path: str, version: str | None, extra: dict[str, str]) -> bytes:
        if version is not None:
            extra = {**extra, "IfMatch": f'"{version}"'}

        def attempt(client: Any) -> bytes:
            with client.get_object(**self._at(path), **extra)["Body"] as body:
                return cast(bytes, body.read())

        try:
            return s3client.call(attempt, self._where(path), "read")
        except s3client.Refused as error:
            raise self._changed(path, version) from error

    def _changed(self, path: str, version: str | None) -> InputChanged:
        return InputChanged(
            "the object is no longer the version that was planned",
            uri=self._where(path),
            where=self._where(path),
            why=f"its ETag is no longer {version}",
        )

    def open(self, path: str, version: str | None) -> BinaryIO:
        found = self.stat(path)
        if version is not None and version != found.version:
            raise self._changed(path, version)

        def fetch(start: int, end: int) -> bytes:
            data = self._get(path, found.version, {"Range": f"bytes={start}-{end - 1}"})
            if len(data) != end - start:
                raise StoreError(
                    "the object store answered a range request with another range",
                    where=self._where(path),
                    why=f"{len(data)} bytes instead of {end - start}",
                )
            return data

        return cast(BinaryIO, io.BufferedReader(RangeFile(fetch, found.size), 256 << 10))

    def stat(self, path: str) -> Listed:
        head = s3client.call(
            lambda client: client.head_object(**self._at(path)), self._where(path), "look up"
        )
        return Listed(
            path=path,
            size=head["ContentLength"],
            version=_etag(head),
            modified=head["LastModified"].timestamp(),
        )

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._put_bytes(path, data, IfNoneMatch="*")
        except s3client.Refused as lost:
            # A try whose answer was lost may have been the one that won; then the bytes are ours.
            return lost.unsure and self._holds(path, data) is not None
        return True

    def replace(self, path: str, data: bytes, version: str) -> str | None:
        try:
            return _etag(self._put_bytes(path, data, IfMatch=f'"{version}"'))
        except FileNotFoundError:
            return None  # deleted meanwhile
        except s3client.Refused as lost:
            return self._holds(path, data) if lost.unsure else None

    def _holds(self, path: str, data: bytes) -> str | None:
        """The version of the object if its bytes are `data`."""
        try:
            found = self.stat(path)
            return found.version if self.read(path, found.version) == data else None
        except (FileNotFoundError, InputChanged):
            return None

    def _put_bytes(self, path: str, data: bytes, **conditions: str) -> Any:
        return s3client.call(
            lambda client: client.put_object(**self._at(path), Body=data, **conditions),
            self._where(path),
            "write",
        )

    def put(self, local: Path, path: str, move: bool) -> Listed:
        size = local.stat().st_size
        if size <= SINGLE_PUT:
            self._put_bytes(path, local.read_bytes())
        else:
            self._put_parts(local, path, size)
        found = self.stat(path)
        if found.size != size:
            raise StoreError(
                "the object store did not keep what was written",
                where=self._where(path),
                why=f"{found.size} bytes instead of {size}",
            )
        if move:
            local.unlink(missing_ok=True)
        return found

    def _put_parts(self, local: Path, path: str, size: int) -> None:
        where, at = self._where(path), self._at(path)
        begun = s3client.call(lambda client: client.create_multipart_upload(**at), where, "write")
        upload = {**at, "UploadId": begun["UploadId"]}
        length = max(PART, -(-size // 9_000))  # S3 takes at most 10,000 parts

        def send(number: int) -> dict[str, Any]:
            with local.open("rb") as file:
                file.seek((number - 1) * length)
                data = file.read(length)
            sent = s3client.call(
                lambda client: client.upload_part(**upload, PartNumber=number, Body=data),
                where,
                "write",
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            with ThreadPoolExecutor(UPLOADS) as pool:
                parts = list(pool.map(send, range(1, -(-size // length) + 1)))
            self._complete(upload, parts, where)
        except BaseException:
            # also on Ctrl-C: parts of an upload that nobody ends are paid for and listed nowhere
            s3client.call(lambda client: client.abort_multipart_upload(**upload), where, "write")
            raise

    def _complete(self, upload: dict[str, str], parts: list[dict[str, Any]], where: str) -> None:
        s3client.call(
            lambda client: client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}
            ),
            where,
            "write",
        )

    def delete(self, paths: Iterable[str]) -> None:
        keys = (self._key(path) for path in paths)
        while batch := list(islice(keys, DELETE_BATCH)):
            self._delete_batch(batch)

    def _delete_batch(self, keys: list[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = s3client.call(
            lambda client: client.delete_objects(Bucket=self.bucket, Delete=wanted),
            f"s3://{self.bucket}/{keys[0]}",
            "delete",
        )
        for fault in answer.get("Errors", ()):
            if fault.get("Code") not in ("NoSuchKey", "404"):
                raise StoreError(
                    "cannot delete",
                    where=f"s3://{self.bucket}/{fault.get('Key')}",
                    why=f"{fault.get('Code')}: {fault.get('Message')}",
                )

    def list(self, prefix: str, hidden: bool) -> Iterator[Listed]:
        found = self._list_pages(prefix, hidden)
        # AWS lists in the order of keys. Look-alikes that are file trees underneath, and express
        # buckets, do not; there the whole listing is held in memory to be sorted.
        if s3client.endpoint() is None and not self.bucket.endswith("--x-s3"):
            return found
        return iter(sorted(found, key=lambda listed: listed.path))

    def _list_pages(self, prefix: str, hidden: bool) -> Iterator[Listed]:
        root = len(self.prefix) + 1 if self.prefix else 0
        for item in self._items(prefix):
            key = item["Key"]
            if key.endswith("/") or (f"/{HIDDEN}" in f"/{key}" and not hidden):
                continue
            yield Listed(
                path=key[root:],
                size=item["Size"],
                version=_etag(item),
                modified=item["LastModified"].timestamp(),
            )

    def _items(self, prefix: str) -> Iterator[dict[str, Any]]:
        folder = self._key(prefix)
        request: dict[str, str] = {"Bucket": self.bucket, "Prefix": f"{folder}/" if folder else ""}

        def page(client: Any) -> dict[str, Any]:
            return cast(dict[str, Any], client.list_objects_v2(**request))

        while True:
            answer = s3client.call(page, self._where(prefix), "list")
            yield from answer.get("Contents", ())
            if not answer.get("IsTruncated"):
                return
            request["ContinuationToken"] = answer["NextContinuationToken"]

    def now(self, path: str) -> float:
        self._put_bytes(path, b"")
        return self.stat(path).modified


def _etag(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')
