"""Listing: places to inputs, however they are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tokenmill.schemas.errors import SourceError
from tokenmill.schemas.work import Input
from tokenmill.workers.sources import open_source
from tokenmill.workers.sources.listing import list_inputs

from .reading import config, read_all


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def listed(uri: object, format: str = "text", **settings: object) -> list[Input]:
    return list(open_source(config(uri, format, **settings)).list())  # type: ignore[arg-type]


def keys(uri: object, format: str = "text", **settings: object) -> list[str]:
    return [found.key for found in listed(uri, format, **settings)]


def test_a_folder_is_listed_recursively_in_the_order_of_uris(tmp_path: Path) -> None:
    make(tmp_path, "a/b.txt", "a.txt", "a-b.txt", "a0.txt", "a/c/d.txt", "b")
    found = listed(tmp_path)
    assert [f.key for f in found] == [
        "a-b.txt",
        "a.txt",
        "a/b.txt",
        "a/c/d.txt",
        "a0.txt",
        "b",
    ]
    assert [f.uri for f in found] == sorted(f.uri for f in found)


def test_the_spelling_of_the_root_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "da ta"
    make(data, "x/a.txt", "b.txt")
    monkeypatch.chdir(tmp_path)
    expected = listed(data)
    spelt = [
        f"{data}/",
        "da ta",
        "./da ta//",
        "da ta/x/..",
        f"file://{data}",
        f"file://{str(data).replace(' ', '%20')}/",
        f"/{data}",
    ]
    for uri in spelt:
        assert listed(uri) == expected, uri
    ids = {tuple(row.id for row in read_all(config(uri, "text"), "text").rows) for uri in spelt}
    assert len(ids) == 1


def test_versions_are_size_time_and_inode(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    status = (tmp_path / "a.txt").stat()
    [found] = listed(tmp_path)
    assert found.version == f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
    assert found.size == 5


def test_hidden_files_and_folders_are_passed_over_unless_asked_for(tmp_path: Path) -> None:
    make(tmp_path, ".a", "x/.b", ".git/config", "c")
    assert keys(tmp_path) == ["c"]
    assert keys(f"{tmp_path}/.git/*") == ["config"]
    assert keys(f"{tmp_path}/**/.*") == [".a", "x/.b"]


def test_a_hidden_folder_above_the_root_does_not_matter(tmp_path: Path) -> None:
    make(tmp_path / ".cache" / "data", "a")
    assert keys(tmp_path / ".cache" / "data") == ["a"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "x/b.txt", "x/y/c.txt"]),
        ("x/*.txt", ["b.txt"]),
        ("*/*.txt", ["x/b.txt"]),
        ("x/**", ["b.txt", "y/c.txt", "y/d.bin"]),
        ("[a-z].txt", ["a.txt"]),
        ("?.txt", ["a.txt"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    make(tmp_path, "a.txt", "x/b.txt", "x/y/c.txt", "x/y/d.bin")
    assert keys(f"{tmp_path}/{pattern}") == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "a[1].txt", "a1.txt")
    assert keys(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_include_and_exclude_match_relative_paths(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "x/b.py", "x/c.txt", "test/d.py")
    assert keys(tmp_path, include=["**/*.py"], exclude=["test/**"]) == ["a.py", "x/b.py"]
    assert keys(tmp_path, include=["*.py"]) == ["a.py"]


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("jsonl", ["a.jsonl", "b.ndjson", "c.jsonl.gz", "d.json.zst"]),
        ("parquet", ["e.parquet"]),
        ("webdataset", ["f.tar", "g.tar.gz", "h.TGZ", "i.tar.zst"]),
    ],
)
def test_a_folder_is_searched_for_the_formats_own_names(
    tmp_path: Path, format: str, expected: list[str]
) -> None:
    make(tmp_path, "a.jsonl", "b.ndjson", "c.jsonl.gz", "d.json.zst", "e.parquet", "README.md")
    make(tmp_path, "f.tar", "g.tar.gz", "h.TGZ", "i.tar.zst", "_SUCCESS")
    assert keys(tmp_path, format) == expected


def test_include_replaces_the_formats_own_names(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.data")
    assert keys(tmp_path, "jsonl", include=["*.data"]) == ["b.data"]


def test_one_uri_of_several_places_is_listed_once(tmp_path: Path) -> None:
    make(tmp_path, "x/a.txt", "x/b.txt", "y/c.txt")
    found = listed([f"{tmp_path}/y", f"{tmp_path}/x/*.txt", str(tmp_path / "x" / "b.txt")])
    assert [f.uri for f in found] == [f"{tmp_path}/{n}" for n in ("x/a.txt", "x/b.txt", "y/c.txt")]


@pytest.mark.parametrize("name", ["none", "none/*.txt", "x/*.parquet", "empty", "x/a.txt/b"])
def test_nothing_there_names_the_place_and_the_remedy(tmp_path: Path, name: str) -> None:
    make(tmp_path, "x/a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as raised:
        listed([str(tmp_path / "x"), f"{tmp_path}/{name}"])
    assert name.removesuffix("/*.txt") in raised.value.what
    assert raised.value.remedy


def test_links_to_files_and_folders_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "b.txt", "sub/c.txt")
    make(tmp_path / "data", "a.txt", "x/y.txt")
    data = tmp_path / "data"
    (data / "link.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (data / "folder").symlink_to(tmp_path / "elsewhere" / "sub")
    (data / "x" / "up").symlink_to(data)
    (data / "dangling").symlink_to(data / "nowhere")
    (data / "itself").symlink_to(data / "itself")
    assert keys(data) == ["a.txt", "folder/c.txt", "link.txt", "x/y.txt"]


def test_devices_and_fifos_are_no_inputs(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "fifo")
    assert keys(tmp_path) == ["a.txt"]
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        listed(tmp_path / "fifo")


def test_a_name_that_is_not_utf8_is_refused_until_it_is_excluded(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    with pytest.raises(SourceError, match="not UTF-8"):
        listed(tmp_path)
    assert keys(tmp_path, exclude=["caf*"]) == ["a.txt"]


def test_an_unread_compression_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl.xz")
    with pytest.raises(SourceError, match=r"a\.jsonl\.xz.*not read"):
        listed(f"{tmp_path}/*", "jsonl")


def test_identity_by_path_outlives_a_change_and_by_content_a_touch(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    path = tmp_path / "a.txt"

    def ids(mode: str) -> bytes:
        [found] = listed(tmp_path, identity=mode)
        return found.id

    before = {mode: ids(mode) for mode in ("version", "content", "path")}
    os.utime(path, ns=(1, 1))
    touched = {mode: ids(mode) for mode in before}
    path.write_text("other")
    after = {mode: ids(mode) for mode in before}
    assert touched["version"] != before["version"]
    assert touched["content"] == before["content"] != after["content"]
    assert before["path"] == touched["path"] == after["path"]


def test_content_identity_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    [found] = listed(tmp_path, identity="content")
    assert found.identity == hashlib.sha256(b"a.txt").hexdigest()


def test_listing_is_streamed(tmp_path: Path) -> None:
    make(tmp_path, "a/1", "b/1")
    inputs = list_inputs(config(tmp_path, "text"))
    assert next(inputs).key == "a/1"
    make(tmp_path, "b/2")
    assert [found.key for found in inputs] == ["b/1", "b/2"]
