from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pickle
import posixpath
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from tests.store.fake_s3 import FakeS3, fake_s3
from tokenmill.schemas.errors import InputChanged, StoreError, StoreUnavailable
from tokenmill.schemas.identity import canonical_uri
from tokenmill.store import retry
from tokenmill.store.access import Access
from tokenmill.store.local import write_errors
from tokenmill.store.paths import HIDDEN, parse_root, relative, without_secrets
from tokenmill.store.ranges import LARGEST, RangeFile


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def access(request: pytest.FixtureRequest, tmp_path: Path) -> Access:
    if request.param == "local":
        return Access(str(tmp_path / "store"))
    return Access(request.getfixturevalue("s3")())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    with fake_s3() as server:
        _use(server, monkeypatch)
        yield server


def _use(server: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)


# -- the contract, on both kinds of store


def test_second_creator_is_refused_and_changes_nothing(access: Access) -> None:
    assert access.create("a/b", b"first")
    assert not access.create("a/b", b"second")
    assert access.read("a/b") == b"first"


def test_of_many_creators_at_once_one_wins(access: Access) -> None:
    bids = [str(n).encode() for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda bid: access.create("race", bid), bids))
    assert sum(won) == 1
    assert access.read("race") == bids[won.index(True)]


def test_replace_needs_the_current_version(access: Access) -> None:
    access.create("lease", b"one")
    first = access.stat("lease").version
    second = access.replace("lease", b"two", first)
    assert second == access.stat("lease").version != first
    assert access.replace("lease", b"three", first) is None
    assert access.read("lease") == b"two"


def test_replace_of_what_is_not_there_loses(access: Access) -> None:
    assert access.replace("nothing/here", b"x", "0-0-0") is None


def test_read_of_a_version_that_is_gone_is_input_changed(access: Access) -> None:
    access.create("a", b"one")
    version = access.stat("a").version
    assert access.read("a", version=version) == b"one"
    assert access.open("a", version=version).read() == b"one"
    access.replace("a", b"two", version)
    for attempt in (access.read, access.open):
        with pytest.raises(InputChanged) as caught:
            attempt("a", version=version)
        assert caught.value.uri == access.full("a")


def test_what_is_not_there_is_file_not_found(access: Access) -> None:
    access.create("folder/file", b"x")
    for path in ("nothing", "folder", "folder/file/below"):
        for attempt in (access.read, access.open, access.stat):
            with pytest.raises(FileNotFoundError):
                attempt(path)


def test_list_is_recursive_sorted_and_agrees_with_stat(access: Access) -> None:
    names = ["x.txt", "x/a", "x/b c%é+&", "x/z/q", "xy/a", "x-1/a"]
    for name in names:
        access.create(name, name.encode())
    assert [found.path for found in access.list()] == sorted(names)
    assert [found.path for found in access.list("x")] == ["x/a", "x/b c%é+&", "x/z/q"]
    assert list(access.list("x")) == [access.stat(f.path) for f in access.list("x")]
    assert list(access.list("nothing")) == []


def test_unfinished_files_are_listed_only_on_request(access: Access) -> None:
    access.create(f"shards/{HIDDEN}left-behind", b"")
    assert list(access.list()) == []
    assert [f.path for f in access.list(hidden=True)] == [f"shards/{HIDDEN}left-behind"]


def test_delete_forgives_what_is_missing(access: Access) -> None:
    access.create("a", b"")
    access.create("b", b"")
    access.delete(["a", "never/was"])
    assert [found.path for found in access.list()] == ["b"]


@pytest.mark.parametrize("move", [False, True])
def test_put_of_a_large_file_keeps_every_byte(access: Access, tmp_path: Path, move: bool) -> None:
    local = tmp_path / "large"
    data = random.Random(0).randbytes(17 << 20) + b"end"  # two parts
    local.write_bytes(data)
    access.create("large", b"was there before")
    listed = access.put(local, "large", move=move)
    assert listed == access.stat("large")
    assert listed.size == len(data)
    assert access.read("large") == data
    assert local.exists() is not move


def test_open_can_be_read_by_pyarrow(access: Access, tmp_path: Path) -> None:
    table = pa.table({"n": range(300_000), "s": [str(n) for n in range(300_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=50_000)
    access.put(tmp_path / "t.parquet", "t.parquet")
    with access.open("t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(3, ["s"])["s"][0].as_py() == "150000"
        assert pq.read_table(file).equals(table)


def test_clock_is_the_stores_and_goes_forward(access: Access) -> None:
    before = access.now()
    access.create("a", b"")
    assert before <= access.stat("a").modified <= access.now()
    assert [found.path for found in access.list("leases")] == ["leases/clock"]


def test_check_passes_and_leaves_nothing(access: Access) -> None:
    access.check()
    assert list(access.list(hidden=False)) == []


def test_access_is_picklable_and_holds_no_secret(access: Access) -> None:
    access.create("a", b"1")
    pickled = pickle.dumps(access)
    assert b"secret" not in pickled
    assert pickle.loads(pickled).read("a") == b"1"


def test_access_works_after_a_fork_and_from_threads(access: Access) -> None:
    access.create("a", b"1")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: access.read("a"), range(8))) == {b"1"}
    child = multiprocessing.get_context("fork").Process(target=_create, args=(access, "b"))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert access.read("b") == b"from the child"


def _create(access: Access, path: str) -> None:
    os._exit(0 if access.create(path, b"from the child") else 1)


def test_deltalake_reaches_the_same_place(access: Access) -> None:
    uri, options = access.delta("ledger")
    write_deltalake(uri, pa.table({"a": [1, 2]}), storage_options=options)
    assert DeltaTable(uri, storage_options=options).version() == 0
    assert any(f.path.startswith("ledger/_delta_log/") for f in access.list("ledger"))


@pytest.mark.parametrize(
    "path", ["..", "a/../b", "/etc/passwd", "s3://other/x", "a\\b", "file:///x", "a\0b"]
)
def test_paths_that_could_leave_the_root_are_refused(tmp_path: Path, path: str) -> None:
    access = Access(str(tmp_path))
    for attempt in (access.read, access.open, access.stat, access.full, access.list):
        with pytest.raises(StoreError):
            attempt(path)
    with pytest.raises(StoreError):
        access.delete([path])


@given(st.text(alphabet="./\\ab:\0", max_size=12))
def test_what_is_accepted_stays_below_the_root(path: str) -> None:
    try:
        accepted = relative(path)
    except StoreError:
        return
    full = posixpath.normpath(posixpath.join("/root/store", accepted))
    assert full == "/root/store" or full.startswith("/root/store/")
    assert relative(accepted) == accepted


def test_other_peoples_names_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd\\name").write_bytes(b"x")
    access = Access(str(tmp_path), any_names=True)
    assert [access.read(found.path) for found in access.list()] == [b"x"]
    with pytest.raises(StoreError):
        access.read("../odd")


# -- roots


def test_roots_are_canonical_and_hold_no_secrets(tmp_path: Path) -> None:
    assert Access(f"file://{tmp_path}/a/../b/").uri == f"{tmp_path}/b"
    signed = Access("s3://user:hidden@bucket/a//b/?X-Amz-Signature=hidden")
    assert signed.uri == "s3://bucket/a/b"
    assert signed.full("c/./d") == "s3://bucket/a/b/c/d"
    assert "hidden" not in repr(signed) and b"hidden" not in pickle.dumps(signed)
    assert Access("s3://bucket").full("k") == "s3://bucket/k"


@pytest.mark.parametrize("uri", ["/a/b", "s3://bucket/a/b", "s3://bucket", "file:///a/./b/"])
def test_roots_agree_with_the_identity_of_inputs(uri: str) -> None:
    assert parse_root(uri).uri == canonical_uri(uri)


@pytest.mark.parametrize("uri", ["gs://b/x", "https://h/x", "s3://", "s3:///key", "s3://b/../x"])
def test_places_we_cannot_use_are_refused_with_a_remedy(uri: str) -> None:
    with pytest.raises(StoreError) as caught:
        Access(uri)
    assert caught.value.remedy


def test_secrets_are_taken_out_of_messages() -> None:
    text = "at http://user:pass@host:9000/b/k?X-Amz-Signature=abc was refused"
    assert without_secrets(text) == "at http://host:9000/b/k was refused"


# -- places that must be refused before a run begins


def test_check_refuses_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in ("file", "file/below"):
        with pytest.raises(StoreError, match="in the way") as caught:
            Access(str(tmp_path / root)).check()
        assert caught.value.remedy


def test_check_refuses_a_place_that_cannot_be_written() -> None:
    # tests run as root, whom permissions do not bind; the kernel's own tree refuses everybody
    with pytest.raises(StoreError):
        Access("/sys/tokenmill-store").check()


def test_a_full_disk_is_unavailable_not_a_fault() -> None:
    with pytest.raises(StoreUnavailable, match="no space"), write_errors(Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="not allowed"), write_errors(Path("x")):
        raise OSError(errno.EROFS, "Read-only file system")


def test_check_names_a_missing_bucket(fake: FakeS3) -> None:
    # SeaweedFS makes a bucket on the first write; AWS says this
    fake.faults = ["no bucket"] * 9
    with pytest.raises(StoreError, match="no such bucket"):
        Access("s3://nobody-made-this/x").check()


def test_a_profile_that_does_not_exist_is_a_store_error(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="settings") as caught:
        Access("s3://bucket").read("a")
    assert caught.value.remedy


@pytest.mark.s3
def test_wrong_credentials_are_a_store_error(
    s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access(s3())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(StoreError, match="not allowed") as caught:
        access.check()
    assert "wrong-secret" not in str(caught.value)


def test_check_refuses_a_store_that_lets_a_second_writer_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_s3(honest=False) as server:
        _use(server, monkeypatch)
        with pytest.raises(StoreError, match="conditional create"):
            Access("s3://bucket/x").check()
        assert server.objects == {}


def test_check_accepts_the_honest_twin_of_that_store(fake: FakeS3) -> None:
    Access("s3://bucket/x").check()


class StaleReplace(Access):
    def replace(self, path: str, data: bytes, version: str) -> str | None:
        return super().replace(path, data, self.stat(path).version)


def test_check_refuses_a_store_that_ignores_if_match(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="conditional replace"):
        StaleReplace(str(tmp_path)).check()


# -- what may pass by itself, and answers that got lost


@pytest.mark.parametrize("fault", ["503", "reset", "expired"])
def test_passing_faults_are_waited_out(fake: FakeS3, fault: str) -> None:
    fake.objects["bucket/a"] = b"1"
    fake.faults = [fault, fault]
    assert Access("s3://bucket").read("a") == b"1"


@pytest.mark.parametrize("fault", ["503", "reset", "expired"])
def test_faults_that_do_not_pass_are_store_unavailable(fake: FakeS3, fault: str) -> None:
    fake.faults = [fault] * retry.ATTEMPTS
    with pytest.raises(StoreUnavailable):
        Access("s3://bucket").read("a")
    assert len(fake.requests) == retry.ATTEMPTS


def test_a_create_whose_answer_was_lost_is_still_ours(fake: FakeS3) -> None:
    fake.faults = ["lost"]
    assert Access("s3://bucket").create("a", b"mine")
    assert fake.objects == {"bucket/a": b"mine"}


def test_a_create_that_lost_after_a_failure_is_not_ours(fake: FakeS3) -> None:
    fake.objects["bucket/a"] = b"theirs"
    fake.faults = ["503"]
    assert not Access("s3://bucket").create("a", b"mine")
    assert fake.objects == {"bucket/a": b"theirs"}


def test_a_replace_whose_answer_was_lost_is_still_ours(fake: FakeS3) -> None:
    access = Access("s3://bucket")
    access.create("a", b"one")
    version = access.stat("a").version
    fake.faults = ["lost"]
    assert access.replace("a", b"two", version) == access.stat("a").version
    assert access.replace("a", b"three", version) is None


def test_an_object_replaced_in_the_middle_of_a_read_is_input_changed(fake: FakeS3) -> None:
    access = Access("s3://bucket")
    fake.objects["bucket/a"] = bytes(20 << 20)
    with access.open("a") as file:
        file.read(1000)
        fake.objects["bucket/a"] = bytes(20 << 20)[:-1] + b"x"
        with pytest.raises(InputChanged):
            file.read()


# -- remote files


class Remote:
    """An object of random bytes that counts the requests for it."""

    def __init__(self, size: int) -> None:
        self.data = random.Random(size).randbytes(size)
        self.asked: list[tuple[int, int]] = []

    def fetch(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data)
        self.asked.append((start, end))
        return self.data[start:end]

    def open(self) -> io.BufferedReader:
        return io.BufferedReader(RangeFile(self.fetch, len(self.data)), 4096)


@given(st.lists(st.tuples(st.integers(0, 1_100_000), st.integers(-1, 400_000)), max_size=12))
def test_a_remote_file_reads_as_a_local_one(moves: list[tuple[int, int]]) -> None:
    remote = Remote(1_000_000)
    with remote.open() as file, io.BytesIO(remote.data) as local:
        for position, count in moves:
            assert file.seek(position) == local.seek(position)
            assert file.read(count) == local.read(count)
            assert file.tell() == local.tell()


def test_a_forward_read_asks_for_every_byte_once_in_large_blocks() -> None:
    remote = Remote(5 * LARGEST + 17)
    with remote.open() as file:
        while file.read(60_000):
            pass
    asked = sorted(remote.asked)
    assert [start for start, _ in asked] == [0, *(end for _, end in asked[:-1])]
    assert asked[-1][1] == len(remote.data)
    assert len(asked) < 12


def test_a_jump_asks_for_little() -> None:
    remote = Remote(5 * LARGEST)
    with remote.open() as file:
        file.seek(-8, io.SEEK_END)
        file.read(8)
        file.seek(3 * LARGEST)
        file.read(1000)
    assert sum(end - start for start, end in remote.asked) < 1 << 20


# -- local durability


def test_local_versions_never_repeat_though_inodes_do(tmp_path: Path) -> None:
    access = Access(str(tmp_path))
    access.create("lease", b"0")
    seen = [access.stat("lease").version]
    for n in range(1, 200):
        version = access.replace("lease", str(n % 10).encode(), seen[-1])
        assert version is not None and version == access.stat("lease").version
        seen.append(version)
    assert len(set(seen)) == len(seen)


def test_local_writers_leave_no_temporary_files(tmp_path: Path) -> None:
    access = Access(str(tmp_path))
    access.create("a", b"1")
    access.create("a", b"2")
    access.replace("a", b"3", "stale")
    left = [f.path for f in access.list(hidden=True)]
    assert left == [f"{HIDDEN}lock-a", "a"]


def test_a_link_that_leads_back_up_does_not_trap_the_listing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert [f.path for f in Access(str(tmp_path)).list()] == ["a/f"]


def test_a_moved_file_counts_as_written_when_it_became_visible(tmp_path: Path) -> None:
    local = tmp_path / "scratch"
    local.write_bytes(b"x")
    os.utime(local, (0, 0))
    start = time.time() - 1
    assert Access(str(tmp_path / "store")).put(local, "a", move=True).modified > start
