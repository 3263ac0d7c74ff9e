"""Reading exactly the version that was planned."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenmill.schemas.errors import InputChanged, SourceError, StoreUnavailable
from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.work import Input
from tokenmill.workers.sources import open_source

from .reading import config, read_spans, whole
from .test_webdataset import tar

MANY = 20_000


def text_by_line(path: Path) -> SourceConfig:
    path.write_bytes(b"".join(b"%015d\n" % n for n in range(MANY)))
    return config(path, "text", by="line")


def jsonl(path: Path) -> SourceConfig:
    path.write_bytes(b"".join(b'{"text":"%015d"}\n' % n for n in range(MANY)))
    return config(path, "jsonl")


def jsonl_gz(path: Path) -> SourceConfig:
    path = path.with_name("a.jsonl.gz")
    path.write_bytes(gzip.compress(b"".join(b'{"text":"%d"}\n' % n for n in range(MANY)), 1))
    return config(path, "jsonl")


def parquet(path: Path) -> SourceConfig:
    pq.write_table(pa.table({"text": [f"{n:015}" for n in range(50_000)]}), path)
    return config(path, "parquet")


def webdataset(path: Path) -> SourceConfig:
    path.write_bytes(tar(*((f"{n}.text", b"x" * 1000) for n in range(3000))))
    return config(path, "webdataset")


MAKERS = [text_by_line, jsonl, jsonl_gz, parquet, webdataset]


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"?")
    os.utime(path, ns=(1, 1))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replaced(path: Path) -> None:
    new = path.with_name(".new")
    new.write_bytes(path.read_bytes())
    new.replace(path)


def removed(path: Path) -> None:
    path.unlink()


CHANGES = [in_place, cut_short, replaced, removed]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", MAKERS)
def test_a_change_before_the_first_or_while_reading_goes_back_to_planning(
    tmp_path: Path, make: Callable[[Path], SourceConfig], change: Callable[[Path], None]
) -> None:
    cfg = make(tmp_path / "a")
    source = open_source(cfg)
    [input_] = source.list()
    reading = iter(source.read([whole(input_)], ["text"]))
    assert len(next(reading))  # type: ignore[arg-type]
    change(Path(input_.uri))
    with pytest.raises(InputChanged) as raised:
        list(reading)
    assert raised.value.uri == input_.uri
    with pytest.raises(InputChanged):
        list(source.read([whole(input_)], ["text"]))


def test_a_fifo_in_the_files_place_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    cfg = config(path, "text")
    [input_] = open_source(cfg).list()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputChanged):
        read_spans(cfg, [whole(input_)], ["text"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    cfg = config(path, "text")
    [input_] = open_source(cfg).list()
    path.chmod(0)
    with pytest.raises(SourceError, match=r"a\.txt"):
        read_spans(cfg, [whole(input_)], ["text"])


def test_a_disk_that_fails_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        """The file, whose disk stops answering after the opening."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    real = os.fdopen
    for make in MAKERS:
        cfg = make(tmp_path / make.__name__)
        [input_] = open_source(cfg).list()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdopen", lambda *a, **k: Failing(real(*a, **k)))
            with pytest.raises(StoreUnavailable):
                read_spans(cfg, [whole(input_)], ["text"])


def test_sources_are_picklable_and_open_no_input_for_planning(tmp_path: Path) -> None:
    cfg = jsonl(tmp_path / "a")
    source = pickle.loads(pickle.dumps(open_source(cfg)))
    [input_] = source.list()
    Path(input_.uri).unlink()
    assert source.splittable(input_)
    assert pickle.loads(pickle.dumps(input_)) == input_


def test_reading_may_stop_early(tmp_path: Path) -> None:
    cfg = jsonl(tmp_path / "a")
    source = open_source(cfg)
    [input_] = source.list()
    reading: Iterator[Any] = iter(source.read([whole(input_)], ["text"]))
    next(reading)
    Path(input_.uri).unlink()
    reading.close()  # type: ignore[attr-defined]


def test_a_missing_root_of_an_input_is_its_folder(tmp_path: Path) -> None:
    cfg = config(tmp_path / "a.txt", "text")
    (tmp_path / "a.txt").write_text("x")
    [listed] = open_source(cfg).list()
    bare = Input(uri=listed.uri, version=listed.version, size=listed.size)
    assert read_spans(cfg, [whole(bare)], ["text"]).values("text") == ["x"]
