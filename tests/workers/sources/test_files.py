"""`format: files`: objects of one stem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenmill.schemas.errors import InputChanged
from tokenmill.workers.sources import open_source

from .reading import config, read_all, read_spans, whole


def make(root: Path, **files: bytes) -> None:
    for name, body in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def test_objects_of_one_stem_are_one_sample(tmp_path: Path) -> None:
    make(tmp_path, a_JPG=b"j", a_txt=b"t", a_b_jpg=b"k", x__a_txt=b"u", LICENSE=b"l")
    (tmp_path / "a-b.txt").write_bytes(b"v")
    cfg = config(tmp_path, "files")
    read = read_all(cfg, "jpg", "txt")
    assert read.keys == ["LICENSE", "a", "a-b", "a.b", "x/a"]
    assert read.values("jpg") == [None, b"j", None, b"k", None]
    assert read.values("txt") == [None, b"t", b"v", None, b"u"]
    inputs = list(open_source(cfg).list())
    assert [i.uri for i in inputs] == sorted(i.uri for i in inputs)
    assert [p.suffix for p in inputs[1].parts] == ["JPG", "txt"]
    assert inputs[1].size == 2
    assert open_source(cfg).fields(inputs[1]) == ["jpg", "txt"]


def test_the_version_of_a_sample_is_that_of_all_its_parts(tmp_path: Path) -> None:
    make(tmp_path, a_jpg=b"j", a_txt=b"t", b_txt=b"t")

    def ids(mode: str) -> list[bytes]:
        return [i.id for i in open_source(config(tmp_path, "files", identity=mode)).list()]

    before = {mode: ids(mode) for mode in ("version", "content", "path")}
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    touched = {mode: ids(mode) for mode in before}
    (tmp_path / "a.jpg").write_bytes(b"new")
    after = {mode: ids(mode) for mode in before}
    assert touched["version"][0] != before["version"][0]
    assert touched["content"] == before["content"]
    assert after["content"][0] != before["content"][0]
    assert before["path"] == after["path"]
    assert all(x[1] == before[mode][1] for mode, x in after.items())


def test_one_field_in_two_spellings_is_ambiguous(tmp_path: Path) -> None:
    make(tmp_path, a_jpg=b"1", a_JPG=b"2", a_txt=b"t")
    read = read_all(config(tmp_path, "files"), "jpg", "txt")
    assert read.values("jpg") == [("!", "ambiguous-field")]
    assert read.values("txt") == [b"t"]


def test_a_part_over_the_limit_is_not_read(tmp_path: Path) -> None:
    make(tmp_path, a_mp4=b"x" * 100, a_txt=b"t")
    read = read_all(config(tmp_path, "files", max_sample_bytes=50), "mp4", "txt")
    assert read.values("mp4") == [("!", "too-large")]
    assert read.values("txt") == [b"t"]


def test_a_part_that_changed_goes_back_to_planning(tmp_path: Path) -> None:
    make(tmp_path, a_txt=b"t")
    cfg = config(tmp_path, "files")
    [input_] = open_source(cfg).list()
    (tmp_path / "a.txt").write_bytes(b"longer")
    with pytest.raises(InputChanged) as raised:
        read_spans(cfg, [whole(input_)], ["txt"])
    assert raised.value.uri == str(tmp_path / "a.txt")
