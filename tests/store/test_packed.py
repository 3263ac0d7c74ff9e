"""Shards of packed ids: written, read, verified, exported, and seen by strangers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.built import Builder, doc, input_
from tests.store.test_shards import GRID, META, cut, expected, grids, read_back, rows, write
from tokenmill.schemas.errors import CorruptStore
from tokenmill.schemas.shard import FORMAT_VERSION, META_FORMAT, TokenRows, Verdict
from tokenmill.store import encoding as encodings
from tokenmill.store import shard_reader
from tokenmill.store.access import Access
from tokenmill.store.dataset import open_store
from tokenmill.store.encoding import measured
from tokenmill.store.export import export
from tokenmill.store.ledger import Ledger
from tokenmill.store.packed import width
from tokenmill.store.shards import ShardReader, ShardWriter, content_hash
from tokenmill.store.verify import verify


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


# -- what is written is what is read


def test_rows_come_back_whole_one_by_one_and_by_batch(access: Access) -> None:
    whole = rows(2500)
    files = write(access, *cut(whole, [3, 1500]), encoding="packed", roll_bytes=1)
    assert [f.encoding for f in files] == ["packed"] * 3
    assert read_back(access, files) == expected(whole)
    values = []
    for file in files:
        with ShardReader(access, file.path) as reader:
            assert reader.encoding == "packed"
            for batch in reader.batches():
                assert batch.schema.field("ids").type == pa.list_(pa.uint16())
                batch.validate(full=True)
                values.append(batch.column("ids").flatten().to_numpy())
    np.testing.assert_array_equal(np.concatenate(values), whole.values)


def test_shapes_spans_and_valid_lengths_stay(access: Access) -> None:
    whole = grids(60)
    files = write(access, whole, meta=replace(GRID, codebook_sizes=(1 << 18,)), encoding="packed")
    assert read_back(access, files) == expected(whole)


def _stream(draw: Any, dtype: str, bits: int) -> TokenRows:
    lengths = np.array(draw(st.lists(st.integers(0, 70), min_size=1, max_size=40)), np.int64)
    verdicts = np.array(
        draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))), np.uint8
    )
    lengths[verdicts != Verdict.TOKENS] = 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(0, (1 << bits) - 1, int(lengths.sum()), np.uint64, endpoint=True)
    return replace(
        rows(len(lengths)), verdicts=verdicts, lengths=lengths, values=values.astype(dtype)
    )


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_g6_any_dtype_and_width_has_the_content_hash_of_the_plain_shard(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    access = Access(str(tmp_path_factory.mktemp("store")))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "uint32", "uint64"]))
    bits = data.draw(st.integers(1, 8 * np.dtype(dtype).itemsize))
    whole = _stream(data.draw, dtype, bits)
    meta = replace(META, dtype=dtype, codebook_sizes=(3, 1 << bits))
    (plain,) = write(access, whole, meta=meta, encoding="plain")
    (small,) = write(access, whole, meta=meta, encoding="packed", attempt="a2")
    assert small.content_hash == plain.content_hash
    counts, digest = content_hash(access, small.path)
    assert digest == plain.content_hash
    assert (counts.rows, counts.tokens) == (plain.rows, plain.tokens)
    with ShardReader(access, small.path) as reader:
        for row in data.draw(st.lists(st.integers(0, whole.n - 1), max_size=9)):
            ids, wanted = reader.ids(row), expected(whole)[row][4]
            assert ids is None if wanted is None else ids is not None and ids.tolist() == wanted


def test_an_id_that_does_not_fit_is_refused_and_nothing_is_left(access: Access) -> None:
    writer = ShardWriter(
        access,
        meta=replace(META, codebook_sizes=(1000,)),
        folder="shards",
        attempt="a",
        encoding="packed",
    )
    with pytest.raises(ValueError, match="does not fit into 10 bits"):
        writer.append(rows(1500))
    writer.abort()
    assert list(access.list("shards", hidden=True)) == []


@pytest.mark.parametrize(
    "meta",
    [replace(META, codebook_sizes=()), replace(META, dtype="float32")],
    ids=["no codebook", "floats"],
)
def test_what_has_no_width_cannot_be_packed(access: Access, meta: Any) -> None:
    with pytest.raises(ValueError, match="cannot be packed"):
        ShardWriter(access, meta=meta, folder="shards", attempt="a", encoding="packed")


@pytest.mark.parametrize(
    ("sizes", "dtype", "bits"),
    [
        ((1 << 18,), "uint32", 18),
        ((1025,), "uint16", 11),
        ((1024, 16), "uint16", 10),
        ((1,), "uint8", 1),
        ((2**64,), "uint64", 64),
        ((), "uint16", None),
    ],
)
def test_a_width_is_what_the_largest_codebook_needs(
    sizes: tuple[int, ...], dtype: str, bits: int | None
) -> None:
    assert width(sizes, dtype) == bits


# -- chosen by measuring


def _block(bits: int, dtype: str, count: int = 30_000) -> bytes:
    return np.random.default_rng(0).integers(0, 1 << bits, count).astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("what", "bits", "dtype", "chosen"),
    [
        ("video", 18, "uint32", "packed"),
        ("audio", 11, "uint16", "packed"),
        ("image", 14, "uint16", "plain"),
        ("bytes", 8, "uint8", "plain"),
    ],
)
def test_packed_is_chosen_where_it_saves_enough(
    what: str, bits: int, dtype: str, chosen: str
) -> None:
    meta = replace(META, dtype=dtype, codebook_sizes=(1 << bits,))
    assert measured(_block(bits, dtype), meta) == chosen


def test_zstd_wins_on_text_and_ids_beyond_the_codebook_stay_for_verify() -> None:
    meta = replace(META, dtype="uint32", codebook_sizes=(100_000,))
    words = [_block(17, "uint32", 12)[i : i + 20] for i in range(0, 48, 4)]
    text = b"".join(words[i % 7] for i in range(3000))
    assert measured(text, meta) == "zstd"
    assert measured(_block(20, "uint32"), meta) == "plain"


def test_a_recipe_is_judged_once_whoever_comes_later(access: Access) -> None:
    video = replace(META, dtype="uint32", codebook_sizes=(1 << 18,))
    noise = replace(rows(3000, length=90), values=np.zeros(0, np.uint32))
    ids = np.random.default_rng(1).integers(0, 1 << 18, int(noise.lengths.sum()), np.uint32)
    noise, zeros = replace(noise, values=ids), replace(noise, values=np.zeros_like(ids))
    assert {f.encoding for f in write(access, noise, meta=video)} == {"packed"}
    # alone, zeros would be zstd: now they are not, in this run or the next
    assert measured(zeros.values.tobytes(), video) == "zstd"
    assert {f.encoding for f in write(access, zeros, meta=video, attempt="a2")} == {"packed"}
    other = replace(video, recipe="8" * 64)
    assert {f.encoding for f in write(access, zeros, meta=other, attempt="a3")} == {"zstd"}
    told = write(access, zeros, meta=video, attempt="a4", encoding="plain")
    assert {f.encoding for f in told} == {"plain"}


def test_a_block_too_small_to_judge_decides_nothing(access: Access) -> None:
    write(access, rows(3))
    assert list(access.list("leases")) == []


def test_two_who_measure_at_once_agree(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    block, meta = _block(11, "uint16"), replace(META, codebook_sizes=(1 << 11,))
    assert encodings.decided(access, meta, block) == "packed"
    (listed,) = access.list("leases")

    class Late(Access):
        """Sees nothing at first: the other one's object came after it looked."""

        looked = False

        def read(self, path: str, *, version: str | None = None) -> bytes:
            if not self.looked:
                self.looked = True
                raise FileNotFoundError(path)
            return super().read(path, version=version)

    monkeypatch.setattr(encodings, "measured", lambda block, meta: "plain")
    assert encodings.decided(Late(access.uri), meta, block) == "packed"
    access.delete([listed.path])
    access.create(listed.path, b'{"encoding": "of-the-future"}')
    assert encodings.decided(access, meta, block) == "plain"


# -- everything above a shard


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The same samples plain and packed, in two shards a stream."""
    content = {
        input_("a.tar"): [
            doc("0", text=range(700), video=range(6), shape=(2, 3)),
            doc("1", text=None, video=range(4), shape=(2, 2)),
            doc("2", text="invalid-utf8", video="decoder-refused"),
        ],
        input_("b.tar"): [
            doc(f"b{i}", text=[i] * (i % 9), video=range(i), shape=(1, i)) for i in range(1500)
        ],
    }
    made = {}
    for encoding in ("plain", "packed"):
        built = Builder(str(tmp_path / encoding))
        for stream in ("text", "video"):
            for one, docs in content.items():
                built.encode("clips", stream, {one: docs}, encoding=encoding)
        made[encoding] = built
    yield made


def _seen(uri: str) -> list[Any]:
    return [
        (row.id, row.key, *(None if (ids := row[s]) is None else ids.tolist() for s in "tv"))
        for row in (_Short(r) for r in open_store(uri))
    ]


class _Short:
    def __init__(self, row: Any) -> None:
        self._row = row
        self.id, self.key = row.id, row.key

    def __getitem__(self, name: str) -> Any:
        return self._row[{"t": "text", "v": "video"}[name]]


def test_a_dataset_of_packed_shards_reads_as_a_plain_one(stores: dict[str, Builder]) -> None:
    plain, small = stores["plain"].uri, stores["packed"].uri
    assert _seen(plain) == _seen(small)
    columns = [list(open_store(uri).columns("video")) for uri in (plain, small)]
    for one, other in zip(*columns, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.offsets, other.offsets)
        assert one.values.dtype == other.values.dtype and not other.values.flags.writeable
    report = open_store(small).sql("select distinct encoding from shards").to_pylist()
    assert report == [{"encoding": "packed"}]


def test_packed_shards_verify_and_export(stores: dict[str, Builder], tmp_path: Path) -> None:
    report = verify(Access(stores["packed"].uri), Ledger.open(Access(stores["packed"].uri)))
    assert report.ok and report.read == 4
    tables = []
    for name, built in stores.items():
        out = tmp_path / f"out-{name}"
        (file,) = export(open_store(built.uri), "parquet", str(out)).files
        tables.append(pq.read_table(out / file).replace_schema_metadata({}))
    assert tables[0].equals(tables[1])


# -- strangers


def documented() -> str:
    text = (Path(__file__).parents[2] / "docs" / "packed.md").read_text(encoding="utf-8")
    return text.partition("```python\n")[2].partition("```")[0]


def test_plain_pyarrow_reads_the_bits_by_the_documented_lines(access: Access) -> None:
    whole = rows(1000)
    (file,) = write(access, whole, encoding="packed")
    code = documented().replace("SHARD.arrow", access.full(file.path))
    code = code.replace("print(", "print(*") + "assert 'tokenmill' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], check=True, capture_output=True, text=True
    )
    found = [[int(x) for x in line.split()] for line in done.stdout.splitlines()]
    assert found == [ids for row in expected(whole) if (ids := row[4]) is not None]
    field = pa.ipc.open_file(access.full(file.path)).schema.field("ids")
    assert field.metadata[b"ARROW:extension:name"] == b"tokenmill.packed"


class _Registered(pa.ExtensionType):
    def __init__(self, storage: pa.DataType, about: bytes = b"{}") -> None:
        self._about = about
        super().__init__(storage, "tokenmill.packed")

    def __arrow_ext_serialize__(self) -> bytes:
        return self._about

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, about: bytes) -> _Registered:
        return cls(storage, about)


def test_a_process_that_registered_the_type_sees_it_and_we_read_on(access: Access) -> None:
    whole = rows(300)
    (file,) = write(access, whole, encoding="packed")
    pa.register_extension_type(_Registered(pa.list_(pa.list_(pa.bool_(), 16))))
    try:
        kind = pa.ipc.open_file(access.full(file.path)).schema.field("ids").type
        assert isinstance(kind, _Registered)
        assert json.loads(kind.__arrow_ext_serialize__()) == {
            "bits": 16,
            "dtype": "uint16",
            "order": "least significant bit first",
        }
        assert read_back(access, [file]) == expected(whole)
        assert content_hash(access, file.path)[1] == file.content_hash
    finally:
        pa.unregister_extension_type("tokenmill.packed")


def test_an_older_reader_refuses_packed_shards_by_name_and_reads_the_others(
    access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small,) = write(access, rows(9), encoding="packed")
    (plain,) = write(access, rows(9), encoding="plain", attempt="a2")
    with pa.ipc.open_file(access.read(small.path)) as found:
        assert found.schema.metadata[META_FORMAT] == str(FORMAT_VERSION).encode()
    monkeypatch.setattr(shard_reader, "FORMAT_VERSION", 1)
    with pytest.raises(CorruptStore, match="format_version 2, newer than 1"):
        ShardReader(access, small.path)
    assert read_back(access, [plain]) == expected(rows(9))


def _ids_field(change: Callable[[pa.Field], pa.Field]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("ids")
        new = change(table.schema.field("ids"))
        return table.set_column(at, new, table["ids"].cast(new.type))

    return changed


@pytest.mark.parametrize(
    "change",
    [
        _ids_field(lambda field: field.remove_metadata()),
        _ids_field(lambda field: pa.field("ids", pa.list_(pa.list_(pa.bool_())))),
        lambda table: table.replace_schema_metadata(
            {**table.schema.metadata, b"tokenmill.encoding": b"plain"}
        ),
        lambda table: table.replace_schema_metadata(
            {
                **table.schema.metadata,
                b"tokenmill.shard": table.schema.metadata[b"tokenmill.shard"].replace(
                    b"uint16", b"uint8"
                ),
            }
        ),
    ],
    ids=["no name", "no width", "said to be plain", "wider than its dtype"],
)
def test_packed_ids_that_cannot_be_believed_are_named(
    access: Access, change: Callable[[pa.Table], pa.Table]
) -> None:
    (file,) = write(access, rows(20), encoding="packed")
    path = Path(access.full(file.path))
    with pa.memory_map(str(path)) as source:
        table = change(pa.ipc.open_file(source).read_all().unify_dictionaries().combine_chunks())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    path.write_bytes(sink.getvalue())
    with pytest.raises(CorruptStore, match="'ids'"), ShardReader(access, file.path) as reader:
        list(reader.batches())


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    access = Access(str(tmp_path_factory.mktemp("store")))
    meta = replace(META, codebook_sizes=(9,))
    (file,) = write(access, rows(300, length=40, vocabulary=9), meta=meta, encoding="packed")
    return Path(access.full(file.path))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_g9_damaged_bytes_never_end_in_anything_but_corrupt_store(
    tmp_path_factory: pytest.TempPathFactory, whole_file: Path, data: st.DataObject
) -> None:
    damaged = bytearray(whole_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "x.arrow").write_bytes(damaged)
    try:
        with ShardReader(Access(str(folder)), "x.arrow") as reader:
            for n in range(reader.rows):
                reader.row(n)
            list(reader.batches())
    except CorruptStore:
        pass


@pytest.mark.s3
def test_packed_shards_are_read_by_ranges(s3: Callable[[], str]) -> None:
    access = Access(s3())
    whole = rows(2500, length=30)
    files = write(access, whole, encoding="packed", roll_bytes=40_000)
    assert read_back(access, files) == expected(whole)
    assert content_hash(access, files[0].path)[1] == files[0].content_hash


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_loader_gives_the_batches_of_the_plain_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    docs = [doc(str(i), text=range(i % 60)) for i in range(300)]
    seen = []
    for encoding in ("plain", "packed"):
        root = str(tmp_path / encoding)
        built = Builder(request.getfixturevalue("s3")() if place == "s3" else root)
        for number in range(3):
            built.encode("docs", "text", {input_(f"f{number}"): docs}, encoding=encoding)
        loader = open_store(built.uri).loader("text", batch=4, sequence=64, tensors="numpy")
        seen.append([batch.tokens.tolist() for batch in loader])
    assert len(seen[0]) > 30 and seen[0] == seen[1]
