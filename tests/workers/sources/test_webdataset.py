"""`format: webdataset`: honest, damaged and hostile archives."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.workers.sources import open_source

from .reading import Read, config, read_all

Change = Callable[[tarfile.TarInfo], None]


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def read(
    tmp_path: Path, body: bytes, *fields: str, name: str = "a.tar", **settings: object
) -> Read:
    path = tmp_path / name
    path.write_bytes(body)
    return read_all(config(path, "webdataset", **settings), *fields)


def test_members_of_one_key_are_one_sample(tmp_path: Path) -> None:
    body = tar(
        ("./x/1.jpg", b"j1"),
        ("./x/1.seg.PNG", b"s1"),
        ("./x/1.txt", b"one"),
        ("x/2.txt", b"two"),
        ("y/2.jpg", b"j3"),
        ("README", b"r"),
    )
    found = read(tmp_path, body, "jpg", "txt", "seg.png", "")
    assert found.keys == ["x/1", "x/2", "y/2", "README"]
    assert found.values("jpg") == [b"j1", None, b"j3", None]
    assert found.values("txt") == [b"one", b"two", None, None]
    assert found.values("seg.png") == [b"s1", None, None, None]
    assert found.values("") == [None, None, None, b"r"]
    assert found.faults == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_dialect_with_long_and_odd_names(tmp_path: Path, format: int) -> None:
    long = "d" * 60 + "/" + "e" * 60 + "/f"
    names = [long, "ünïcode", "plain"]
    if format != tarfile.USTAR_FORMAT:
        names.append("l" * 300)
    body = tar(*((f"{n}.txt", n.encode()) for n in names), format=format)
    found = read(tmp_path, body, "txt")
    assert found.keys == names
    assert found.values("txt") == [n.encode() for n in names]


def test_folders_and_hidden_members_are_passed_over(tmp_path: Path) -> None:
    body = tar(special("x", tarfile.DIRTYPE), ("x/._1.txt", b"mac"), ("x/1.txt", b"a"), (".x", b""))
    assert read(tmp_path, body, "txt").keys == ["x/1"]


def test_a_key_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    body = tar(
        ("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3"), ("a.txt", b"4"), ("a#2.txt", b"5")
    )
    found = read(tmp_path, body, "txt")
    assert found.keys == ["a", "b", "a#2", "a#3", "a#2"]
    assert found.values("txt") == [b"1", b"2", b"3", b"4", b"5"]
    assert len({row.id for row in found.rows}) == 5


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.txt", b"x"),
        ("a/../../evil.txt", b"x"),
        ("/etc/passwd.txt", b"x"),
        special("link.txt", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.txt", tarfile.LNKTYPE, "before.txt"),
        special("dev.txt", tarfile.CHRTYPE),
        special("block.txt", tarfile.BLKTYPE),
        special("fifo.txt", tarfile.FIFOTYPE),
        special("odd.txt", b"Z"),
        ("x" * 5000 + ".txt", b"x"),
    ],
)
def test_an_unsafe_member_costs_only_its_sample(
    tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo
) -> None:
    found = read(tmp_path, tar(("before.txt", b"1"), member, ("behind.txt", b"2")), "txt")
    assert found.verdicts("txt") == [b"1", ("!", "unsafe-member"), b"2"]
    assert found.faults == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar"]


def test_a_link_condemns_its_whole_sample(tmp_path: Path) -> None:
    body = tar(("a.txt", b"1"), special("a.jpg", tarfile.SYMTYPE, "x"), ("b.txt", b"2"))
    assert read(tmp_path, body, "txt").verdicts("txt") == [("!", "unsafe-member"), b"2"]


def test_sparse_files_are_refused_and_read_past(tmp_path: Path) -> None:
    old = bytearray(tar(("s.txt", b"x" * 600), format=tarfile.GNU_FORMAT)[: 3 * 512])
    old[156:157] = tarfile.GNUTYPE_SPARSE
    old[483:495] = b"%011o\0" % (1 << 32)  # the size it would unfold to
    old[482] = 1  # one more block of its map
    old[148:156] = b"        "
    old[148:156] = b"%06o\0 " % sum(old[:512])
    old[512:512] = bytes(512)
    pax = tarfile.TarInfo("p.txt")
    pax.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
    body = tar(("a.txt", b"1"))[:1024] + bytes(old) + tar(pax, ("b.txt", b"2"))
    found = read(tmp_path, body, "txt")
    assert found.keys == ["a", "s", "p", "b"]
    assert found.verdicts("txt") == [b"1", ("!", "unsafe-member"), ("!", "unsafe-member"), b"2"]


def test_a_member_over_the_limit_is_sought_past(tmp_path: Path) -> None:
    body = tar(("a.txt", b"x" * 5000), ("a.jpg", b"j"), ("b.txt", b"x" * 4000))
    found = read(tmp_path, body, "txt", "jpg", max_sample_bytes=4000)
    assert found.values("txt") == [("!", "too-large"), b"x" * 4000]
    assert found.values("jpg") == [b"j", None]


def test_only_the_wanted_fields_are_read(tmp_path: Path) -> None:
    body = tar(("a.mp4", b"x" * 1_000_000), ("a.txt", b"one"))
    [batch] = read(tmp_path, body, "txt").batches
    assert batch.bytes_read == 3


def test_a_size_that_lies_is_an_archive_that_ends_early(tmp_path: Path) -> None:
    body = bytearray(tar(("a.txt", b"1"), ("b.txt", b"2")))
    body[1024 + 124 : 1024 + 136] = b"%011o\0" % (1 << 32)
    body[1024 + 148 : 1024 + 156] = b"        "
    body[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(body[1024:1536])
    for fields in (["txt"], ["jpg"]):
        found = read(tmp_path, bytes(body), *fields, max_sample_bytes=1 << 40)
        assert [row.fault for row in found.rows] == [None, "truncated"]
        assert [fault.reason for fault in found.faults] == ["truncated"]


def test_huge_extended_headers_are_not_read_into_memory(tmp_path: Path) -> None:
    size = 64 << 20
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, size
    bomb = head.tobuf(tarfile.GNU_FORMAT) + b"n" * size
    body = gzip.compress(tar(("a.txt", b"1"))[:1024] + bomb + tar(("b.txt", b"2"), ("c.txt", b"3")))
    tracemalloc.start()
    found = read(tmp_path, body, "txt", name="a.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.verdicts("txt") == [b"1", ("!", "unsafe-member"), b"3"]
    assert peak < 16 << 20


def test_malformed_extended_headers_cost_only_their_member(tmp_path: Path) -> None:
    for records in (b"99 path=x\n", b"path=x\n", b"0 a=b\n", b"8 path=x", b"\xff" * 10):
        head = tarfile.TarInfo("pax")
        head.type, head.size = tarfile.XHDTYPE, len(records)
        block = head.tobuf() + records + bytes(-len(records) % 512)
        body = tar(("a.txt", b"1"))[:1024] + block + tar(("b.txt", b"2"), ("c.txt", b"3"))
        found = read(tmp_path, body, "txt")
        assert found.verdicts("txt") == [b"1", ("!", "unsafe-member"), b"3"], records


def test_negative_sizes_and_broken_checksums_end_the_archive(tmp_path: Path) -> None:
    good = tar(("a.txt", b"1"), ("b.txt", b"2"), ("c.txt", b"3"))
    bad = bytearray(good)
    bad[1024 + 5] ^= 1
    found = read(tmp_path, bytes(bad), "txt")
    assert found.verdicts("txt") == [("!", "corrupt")]
    assert "byte 1024" in found.faults[0].message
    negative = bytearray(good)
    negative[1024 + 124 : 1024 + 136] = b"\xff" * 12
    negative[1024 + 148 : 1024 + 156] = b"        "
    negative[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(negative[1024:1536])
    assert read(tmp_path, bytes(negative), "txt").faults[0].reason == "corrupt"


ARCHIVE = tar(*((f"{n // 2:03}.{'ab'[n % 2]}", b"%d" % n * 300) for n in range(20)))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(ARCHIVE)), st.sampled_from(["", ".gz", ".zst"]))
def test_a_cut_archive_keeps_its_whole_samples_and_says_where_it_ends(
    tmp_path_factory: pytest.TempPathFactory, at: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    packed = {"": ARCHIVE, ".gz": gzip.compress(ARCHIVE), ".zst": zstandard.compress(ARCHIVE)}[kind]
    at = at * len(packed) // len(ARCHIVE)
    path = folder / f"a.tar{kind}"
    path.write_bytes(packed[:at])
    full = [(f"{n:03}", b"%d" % (2 * n) * 300, b"%d" % (2 * n + 1) * 300) for n in range(10)]
    cfg = config(path, "webdataset")
    found = read_all(cfg, "a", "b")
    rows = [(row.key, row.values["a"], row.values["b"]) for row in found.rows if not row.fault]
    assert rows == full[: len(rows)]
    # a sample that may lack members is never taken for a whole one, whatever fields are asked for
    assert [row.fault for row in found.rows] == [None] * len(rows) + ["truncated"] * (
        len(found.rows) - len(rows)
    )
    assert len(found.rows) - len(rows) <= 1
    if len(rows) < 10:
        assert [fault.reason for fault in found.faults] == ["truncated"]
    for fields in ((), ("a",)):
        other = read_all(cfg, *fields)
        assert [(r.id, r.fault) for r in other.rows] == [(r.id, r.fault) for r in found.rows]
        assert other.faults == found.faults


def test_archives_that_were_concatenated_are_read_to_the_end(tmp_path: Path) -> None:
    body = tar(("a.txt", b"1")) + tar(("b.txt", b"2"))
    found = read(tmp_path, body, "txt")
    assert found.values("txt") == [b"1", b"2"]
    assert found.faults == []


def test_an_empty_archive_is_fine_and_an_empty_file_is_not(tmp_path: Path) -> None:
    assert read(tmp_path, tar(), "txt").faults == []
    [fault] = read(tmp_path, b"", "txt").faults
    assert fault.reason == "truncated"
    assert read(tmp_path, b"hello" * 500, "txt").faults[0].reason == "corrupt"


def test_a_compressed_bomb_costs_its_sample_and_the_rest_of_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.workers.sources.bounded.BOMB_BYTES", 8 << 20)
    monkeypatch.setattr("tokenmill.workers.sources.bounded.BOMB_RATIO", 100)
    body = zstandard.compress(tar(("a.txt", b"1"), ("b.txt", bytes(64 << 20)), ("c.txt", b"3")))
    found = read(tmp_path, body, "txt", name="a.tar.zst", max_sample_bytes=1 << 20)
    assert found.verdicts("txt") == [b"1", ("!", "decompression-bomb")]
    assert found.faults[0].reason == "decompression-bomb"


def test_many_tiny_members_are_not_all_held(tmp_path: Path) -> None:
    count = 10_000
    block = tarfile.TarInfo("0000000.txt").tobuf()
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for n in range(count):
            head = bytearray(block)
            head[:7] = b"%07d" % n
            head[148:156] = b"        "
            head[148:156] = b"%06o\0 " % sum(head)
            file.write(head)
        file.write(bytes(1024))
    source = open_source(config(path, "webdataset"))
    [input_] = source.list()
    from tokenmill.schemas.work import Span  # noqa: PLC0415 - used here only

    tracemalloc.start()
    total = sum(
        len(getattr(item, "ids", ()))
        for item in source.read([Span(input=input_, start=0, end=input_.extent)], ["txt"])
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == count
    assert peak < count * 300  # tarfile's own list would be about 1,000 bytes a member


def test_a_million_fields_of_one_key_are_one_refused_sample(tmp_path: Path) -> None:
    body = tar(*((f"a.{n}", b"") for n in range(5000)), ("b.1", b"x"), format=tarfile.USTAR_FORMAT)
    found = read(tmp_path, body, "1")
    assert found.verdicts("1") == [("!", "too-large"), b"x"]


def test_fields_are_the_names_of_the_first_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar(("a.JPG", b""), ("a.seg.png", b""), ("b.jpg", b"")))
    source = open_source(config(path, "webdataset"))
    [input_] = source.list()
    assert list(source.fields(input_)) == ["jpg", "seg.png"]
    assert not source.splittable(input_)
