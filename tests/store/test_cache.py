from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from tokenmill.schemas.errors import CorruptStore, InputChanged
from tokenmill.store.access import Access
from tokenmill.store.cache import LocalCache

pytestmark = pytest.mark.s3


class Counted(Access):
    downloads = 0

    def open(self, path: str, *, version: str | None = None) -> BinaryIO:
        self.downloads += 1
        return super().open(path, version=version)


@pytest.fixture
def access(s3: Callable[[], str]) -> Counted:
    return Counted(s3())


def test_an_object_is_downloaded_once_by_many_threads(access: Counted, tmp_path: Path) -> None:
    access.create("a.arrow", b"bytes")
    cache = LocalCache(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: cache.fetch(access, "a.arrow"), range(8)))
    assert [file.read_bytes() for file in found] == [b"bytes"]
    assert access.downloads == 1


def test_a_replaced_object_is_another_file(access: Counted, tmp_path: Path) -> None:
    cache = LocalCache(tmp_path)
    access.create("a", b"one")
    version = access.stat("a").version
    first = cache.fetch(access, "a")
    access.replace("a", b"two", version)
    assert cache.fetch(access, "a").read_bytes() == b"two"
    assert cache.fetch(access, "a", version=version) == first
    first.unlink()
    with pytest.raises(InputChanged):
        cache.fetch(access, "a", version=version)


def test_a_wrong_hash_is_refused_and_leaves_nothing(access: Counted, tmp_path: Path) -> None:
    access.create("a", b"one")
    cache = LocalCache(tmp_path)
    with pytest.raises(CorruptStore, match="hash"):
        cache.fetch(access, "a", sha256="0" * 64)
    assert [f for f in cache.root.iterdir() if not f.name.startswith(".tm-lock")] == []
    good = hashlib.sha256(b"one").hexdigest().upper()
    assert cache.fetch(access, "a", sha256=good).read_bytes() == b"one"


def test_what_was_used_longest_ago_goes_first(access: Counted, tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, max_bytes=250)
    files = []
    for n in range(3):
        access.create(f"{n}", bytes(100))
        files.append(cache.fetch(access, f"{n}"))
        os.utime(files[-1], (n, n))
    cache.fetch(access, "0")
    access.create("3", bytes(100))
    kept = cache.fetch(access, "3")
    assert [file.exists() for file in files] == [True, False, True] and kept.exists()


def test_a_missing_object_is_file_not_found(access: Counted, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalCache(tmp_path).fetch(access, "nothing")


def test_a_local_store_is_its_own_cache(tmp_path: Path) -> None:
    access = Access(str(tmp_path / "store"))
    access.create("a", b"one")
    cache = LocalCache(tmp_path / "cache")
    assert cache.fetch(access, "a") == tmp_path / "store" / "a"
    assert not cache.root.exists()
    with pytest.raises(CorruptStore):
        cache.fetch(access, "a", sha256="0" * 64)
    with pytest.raises(FileNotFoundError):
        cache.fetch(access, "b")


def test_the_environment_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "here"))
    assert LocalCache().root.is_relative_to(tmp_path / "here")
