from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.schemas.errors import CorruptStore, StoreError, StoreUnavailable
from tokenmill.schemas.identity import canonical_json
from tokenmill.schemas.shard import (
    BATCH_ROWS,
    BATCH_ROWS_ZSTD,
    FORMAT_VERSION,
    META_ENCODING,
    META_FORMAT,
    ShardMeta,
    TokenRows,
    Verdict,
    order_hash,
)
from tokenmill.schemas.work import ShardFile
from tokenmill.store import shard_writer
from tokenmill.store.access import Access
from tokenmill.store.cache import LocalCache
from tokenmill.store.paths import Listed
from tokenmill.store.shards import ShardReader, ShardWriter, content_hash

META = ShardMeta(
    pipeline="p",
    stream="text",
    unit="ab" * 16,
    modality="text",
    tokenizer="bpe",
    output="ids",
    space="5" * 64,
    recipe="7" * 64,
    dtype="uint16",
    axes=("T",),
    codebook_sizes=(50_000,),
)
GRID = replace(META, stream="video", modality="video", dtype="uint32", axes=("T", "H", "W"))


def rows(n: int, *, seed: int = 0, length: int = 9, vocabulary: int = 50_000) -> TokenRows:
    """n rows of up to `length` ids; every fifth is quarantined, every seventh absent."""
    rng = np.random.default_rng(seed)
    verdicts = np.zeros(n, np.uint8)
    verdicts[4::5] = Verdict.QUARANTINED
    verdicts[6::7] = Verdict.ABSENT
    lengths = np.where(verdicts == Verdict.TOKENS, rng.integers(0, length + 1, n), 0)
    return TokenRows(
        ids=rng.bytes(16 * n),
        keys=[f"{seed}/{i:06d}" for i in range(n)],
        sources=[f"s3://b/part-{i * 3 // max(n, 1)}" for i in range(n)],
        verdicts=verdicts,
        values=rng.integers(0, vocabulary, int(lengths.sum())).astype(np.uint16),
        lengths=lengths.astype(np.int64),
    )


def grids(n: int) -> TokenRows:
    flat = rows(n, length=0)
    present = flat.verdicts == Verdict.TOKENS
    shapes = np.stack([1 + np.arange(n) % 3, np.full(n, 2), np.full(n, 2)], axis=1)
    lengths = np.where(present, shapes.prod(axis=1), 0)
    return replace(
        flat,
        shapes=shapes.astype(np.int32),
        lengths=lengths.astype(np.int64),
        values=np.arange(lengths.sum(), dtype=np.uint32),
        spans=[f"{i}.0/{i + 1}.0" if i % 2 else None for i in range(n)],
        n_valid=np.full(n, 2, np.int32),
    )


def cut(whole: TokenRows, at: Sequence[int]) -> Iterator[TokenRows]:
    ends = np.concatenate([[0], np.cumsum(whole.lengths)])
    for start, stop in pairwise([0, *sorted(min(a, whole.n) for a in at), whole.n]):
        yield TokenRows(
            ids=whole.ids[16 * start : 16 * stop],
            keys=whole.keys[start:stop],
            sources=whole.sources[start:stop],
            verdicts=whole.verdicts[start:stop],
            values=whole.values[ends[start] : ends[stop]],
            lengths=whole.lengths[start:stop],
            shapes=None if whole.shapes is None else whole.shapes[start:stop],
            spans=None if whole.spans is None else whole.spans[start:stop],
            n_valid=None if whole.n_valid is None else whole.n_valid[start:stop],
        )


def write(
    access: Access, *portions: TokenRows, meta: ShardMeta = META, **options: Any
) -> tuple[ShardFile, ...]:
    options = {"folder": "shards/p", "attempt": "a1", **options}
    writer = ShardWriter(access, meta=meta, **options)
    for portion in portions:
        writer.append(portion)
    files = writer.close()
    assert writer.order_hash == order_hash([b"".join(portion.ids for portion in portions)])
    return files


def read_back(access: Access, files: Sequence[ShardFile]) -> list[tuple[Any, ...]]:
    found = []
    for file in files:
        with ShardReader(access, file.path) as reader:
            assert reader.rows == file.rows
            assert reader.meta.first_row == file.first_row == len(found)
            for n in range(reader.rows):
                row = reader.row(n)
                ids = None if row.ids is None else row.ids.tolist()
                found.append((row.id, row.key, row.source, row.verdict, ids, row.shape, row.span))
    return found


def expected(whole: TokenRows) -> list[tuple[Any, ...]]:
    ends = np.concatenate([[0], np.cumsum(whole.lengths)])
    found = []
    for i in range(whole.n):
        present = whole.verdicts[i] == Verdict.TOKENS
        ids = whole.values[ends[i] : ends[i + 1]].tolist() if present else None
        shape = tuple(whole.shapes[i]) if whole.shapes is not None and present else None
        span = whole.spans[i] if whole.spans is not None else None
        key = (whole.ids[16 * i : 16 * i + 16], whole.keys[i], whole.sources[i])
        found.append((*key, Verdict(whole.verdicts[i]), ids, shape, span))
    return found


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


# -- what is written is what is read


@pytest.mark.parametrize("encoding", ["plain", "zstd"])
def test_rows_come_back_as_they_were(access: Access, encoding: str) -> None:
    whole = rows(2 * BATCH_ROWS + 100)
    files = write(access, whole, encoding=encoding)
    assert read_back(access, files) == expected(whole)
    assert [f.encoding for f in files] == [encoding]


def test_shapes_spans_and_valid_lengths_come_back(access: Access) -> None:
    whole = grids(50)
    files = write(access, whole, meta=GRID)
    assert read_back(access, files) == expected(whole)
    with ShardReader(access, files[0].path) as reader:
        assert [reader.row(n).n_valid for n in (0, 4)] == [2, None]
        assert reader.meta == GRID


def test_columns_that_nobody_gave_are_not_there(access: Access) -> None:
    (file,) = write(access, rows(3))
    with ShardReader(access, file.path) as reader:
        assert reader.batch(0).schema.names == ["id", "key", "source", "verdict", "ids"]


def test_no_tokens_is_null_and_no_ids_is_empty(access: Access) -> None:
    three = replace(
        rows(3),
        verdicts=np.array([Verdict.TOKENS, Verdict.QUARANTINED, Verdict.ABSENT], np.uint8),
        lengths=np.zeros(3, np.int64),
        values=np.empty(0, np.uint16),
    )
    (file,) = write(access, three)
    with ShardReader(access, file.path) as reader:
        empty = reader.ids(0)
        assert empty is not None and empty.dtype == np.uint16 and len(empty) == 0
        assert reader.ids(1) is None and reader.ids(2) is None
    assert (file.rows, file.samples, file.tokens) == (3, 1, 0)


def test_a_writer_without_rows_writes_nothing(access: Access) -> None:
    assert write(access) == ()
    assert write(access, rows(0)) == ()
    assert list(access.list(hidden=True)) == []


def test_files_are_named_by_unit_attempt_and_number(access: Access) -> None:
    files = write(access, rows(3 * BATCH_ROWS), encoding="plain", roll_bytes=1)
    assert [f.path for f in files] == [f"shards/p/{META.unit}-a1-{n:03d}.arrow" for n in range(3)]
    write(access, rows(5, seed=1), attempt="a2")
    assert len(list(access.list("shards", hidden=True))) == 4


def test_rolled_files_number_their_rows_on(access: Access) -> None:
    whole = rows(2500)
    meta = replace(META, first_row=0)
    files = write(access, whole, meta=meta, encoding="plain", roll_bytes=1)
    assert [(f.first_row, f.rows) for f in files] == [(0, 1024), (1024, 1024), (2048, 452)]
    assert read_back(access, files) == expected(whole)


def test_sizes_and_times_are_the_stores(access: Access) -> None:
    (file,) = write(access, rows(10))
    listed = access.stat(file.path)
    assert (file.size, file.written_at) == (listed.size, listed.modified)


# -- batches


@pytest.mark.parametrize(("encoding", "n"), [("plain", BATCH_ROWS), ("zstd", BATCH_ROWS_ZSTD)])
def test_every_batch_but_the_last_has_n_rows(access: Access, encoding: str, n: int) -> None:
    (file,) = write(access, *cut(rows(2500), [1, 700, 1999]), encoding=encoding)
    with ShardReader(access, file.path) as reader:
        sizes = [batch.num_rows for batch in reader.batches()]
        assert reader.batch_rows == n
    assert sizes == [n] * (2500 // n) + [2500 % n]


def test_no_batch_passes_the_limit_unless_it_is_one_row(
    access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "BATCH_BYTES", 4000)
    lengths = np.array([30] * 50 + [900] * 20 + [5] * 300 + [4000, 3, 3], np.int64)
    whole = replace(
        rows(len(lengths)),
        verdicts=np.zeros(len(lengths), np.uint8),
        lengths=lengths,
        values=np.zeros(lengths.sum(), np.uint16),
    )
    files = write(access, *cut(whole, [40, 90]), encoding="plain")
    assert read_back(access, files) == expected(whole)
    for file in files:
        with ShardReader(access, file.path) as reader:
            for batch in reader.batches():
                assert batch.num_rows == 1 or batch.column("ids").values.nbytes <= 4000


@settings(max_examples=25, deadline=None)
@given(at=st.lists(st.integers(0, 2300), max_size=8), encoding=st.sampled_from(["auto", "zstd"]))
def test_the_bytes_do_not_depend_on_the_portions(
    tmp_path_factory: pytest.TempPathFactory, at: list[int], encoding: str
) -> None:
    access = Access(str(tmp_path_factory.mktemp("store")))
    whole = rows(2300)
    first = write(access, whole, encoding=encoding, roll_bytes=20_000)
    second = write(access, *cut(whole, at), encoding=encoding, roll_bytes=20_000, attempt="a2")
    assert [f.content_hash for f in first] == [f.content_hash for f in second]
    for one, other in zip(first, second, strict=True):
        assert access.read(one.path) == access.read(other.path)


def test_auto_takes_zstd_only_where_it_pays(access: Access) -> None:
    text = rows(3000, length=200, vocabulary=40)
    codes = rows(3000, length=200, vocabulary=50_000)
    assert {f.encoding for f in write(access, text)} == {"zstd"}
    other = replace(META, recipe="8" * 64)
    assert {f.encoding for f in write(access, codes, meta=other, attempt="a2")} == {"plain"}


def test_known_sources_make_one_dictionary_and_others_are_added(access: Access) -> None:
    whole = rows(3000)
    known = list(dict.fromkeys(whole.sources))
    (one,) = write(access, whole, sources=known, encoding="plain")
    (two,) = write(access, whole, attempt="a2", encoding="plain")
    assert read_back(access, [one]) == read_back(access, [two]) == expected(whole)
    with ShardReader(access, one.path) as reader:
        assert all(b.column("source").dictionary.to_pylist() == known for b in reader.batches())


def test_undecodable_names_are_kept_readable(access: Access) -> None:
    odd = replace(rows(1), keys=["caf\udce9.txt"])
    (file,) = write(access, odd)
    with ShardReader(access, file.path) as reader:
        assert reader.row(0).key == "caf\\udce9.txt"


# -- faults of the caller


@pytest.mark.parametrize(
    "wrong",
    [
        replace(rows(9), values=np.zeros(3, np.uint16)),
        replace(rows(9), keys=["a"]),
        replace(rows(9), verdicts=np.full(9, Verdict.ABSENT, np.uint8)),
        replace(rows(9), values=rows(9).values.astype(np.uint32) + 70_000),
        replace(rows(9), values=rows(9).values.astype(np.int64) - 70_000),
    ],
)
def test_columns_that_disagree_are_refused(access: Access, wrong: TokenRows) -> None:
    writer = ShardWriter(access, meta=META, folder="shards", attempt="a")
    with pytest.raises(ValueError):
        writer.append(wrong)
    writer.abort()


def test_wider_ids_that_fit_are_narrowed(access: Access) -> None:
    whole = rows(20)
    (file,) = write(access, replace(whole, values=whole.values.astype(np.int64)))
    assert read_back(access, [file]) == expected(whole)


def test_abort_leaves_only_what_was_uploaded(access: Access) -> None:
    writer = ShardWriter(
        access, meta=META, folder="shards", attempt="a", encoding="plain", roll_bytes=1
    )
    writer.append(rows(BATCH_ROWS))
    writer.append(rows(10))
    writer.abort()
    left = [f.path for f in access.list(hidden=True)]
    assert all(path.endswith(".arrow") and ".tm-" not in path for path in left)


class Full(Access):
    def put(self, local: Path, path: str, *, move: bool = False) -> Listed:
        raise StoreError("no more")


def test_an_upload_that_fails_fails_the_writer(access: Access) -> None:
    writer = ShardWriter(Full(access.uri), meta=META, folder="shards", attempt="a")
    writer.append(rows(10))
    with pytest.raises(StoreError, match="no more"):
        writer.close()
    writer.abort()
    assert list(access.list("shards", hidden=True)) == []


# -- the content hash


def test_content_hash_is_recomputed_from_the_bytes(access: Access) -> None:
    (file,) = write(access, grids(40), meta=GRID)
    counts, digest = content_hash(access, file.path)
    assert digest == file.content_hash
    assert (counts.rows, counts.samples, counts.tokens) == (file.rows, file.samples, file.tokens)
    assert counts.size == file.size
    assert counts.order_hash == order_hash([grids(40).ids])


def test_content_hash_is_independent_of_encoding(access: Access) -> None:
    (plain,) = write(access, rows(500), encoding="plain")
    (packed,) = write(access, rows(500), encoding="zstd", attempt="a2")
    assert plain.content_hash == packed.content_hash
    assert content_hash(access, packed.path)[1] == plain.content_hash


def _other_id(whole: TokenRows) -> TokenRows:
    values = whole.values.copy()
    values[-1] ^= 1
    return replace(whole, values=values)


def _other_shape(whole: TokenRows) -> TokenRows:
    assert whole.shapes is not None
    return replace(whole, shapes=whole.shapes[:, ::-1].copy())


def _other_verdict(whole: TokenRows) -> TokenRows:
    swap = {Verdict.QUARANTINED: Verdict.ABSENT, Verdict.ABSENT: Verdict.QUARANTINED}
    return replace(
        whole, verdicts=np.array([swap.get(Verdict(v), v) for v in whole.verdicts], np.uint8)
    )


@pytest.mark.parametrize("change", [_other_id, _other_shape, _other_verdict])
def test_content_hash_sees_every_change(
    access: Access, change: Callable[[TokenRows], TokenRows]
) -> None:
    (one,) = write(access, grids(40), meta=GRID)
    (other,) = write(access, change(grids(40)), meta=GRID, attempt="a2")
    assert one.content_hash != other.content_hash


def test_all_rows_quarantined_still_has_a_hash_that_verifies(access: Access) -> None:
    whole = grids(4)
    nothing = replace(
        whole,
        verdicts=np.full(4, Verdict.QUARANTINED, np.uint8),
        lengths=np.zeros(4, np.int64),
        values=np.empty(0, np.uint32),
    )
    (file,) = write(access, nothing, meta=GRID)
    assert content_hash(access, file.path)[1] == file.content_hash
    assert (file.samples, file.tokens, file.encoding) == (0, 0, "plain")


# -- files of strangers


def _rewritten(access: Access, path: str, change: Callable[[pa.Table], pa.Table]) -> None:
    local = access.local_path(path)
    assert local is not None
    with pa.memory_map(str(local)) as source:
        table = change(pa.ipc.open_file(source).read_all().unify_dictionaries().combine_chunks())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    local.unlink()
    local.write_bytes(sink.getvalue())


def _metadata(**changes: str) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        extra = {f"tokenmill.{k}".encode(): v.encode() for k, v in changes.items()}
        return table.replace_schema_metadata({**table.schema.metadata, **extra})

    return change


def _described(**changes: object) -> str:
    return canonical_json({**asdict(META), **changes}).decode()


def _wild_offsets(table: pa.Table) -> pa.Table:
    lists = table["ids"].chunk(0)
    offsets = np.asarray(lists.offsets).copy()
    offsets[7] = 2**30
    wild = pa.Array.from_buffers(
        lists.type,
        len(lists),
        [lists.buffers()[0], pa.py_buffer(offsets)],
        children=[lists.values],
    )
    return table.set_column(table.schema.get_field_index("ids"), table.schema.field("ids"), wild)


def _wild_verdicts(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("verdict")
    other = pa.array(np.roll(table["verdict"].to_numpy(), 1))
    return table.set_column(index, table.schema.field("verdict"), other)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_metadata(format_version=str(FORMAT_VERSION + 1)), f"{FORMAT_VERSION + 1}.*newer than"),
        (_metadata(format_version="x"), "format_version"),
        (_metadata(batch_rows="0"), "rows per batch"),
        (_metadata(batch_rows="3"), "rows, not 3"),
        (_metadata(shard="{}"), "description"),
        (_metadata(shard="["), "description"),
        (_metadata(shard=_described(dtype="object")), "wrong kind"),
        (_metadata(shard=_described(pipeline=1)), "wrong kind"),
        (_metadata(shard=_described(first_row=-1)), "first row"),
        (_metadata(shard=_described(dtype="uint64")), "'ids'"),
        (lambda table: table.replace_schema_metadata({}), "not a shard"),
        (lambda table: table.drop_columns(["ids"]), "'ids'"),
        (_wild_offsets, "truncated or not"),
        (_wild_verdicts, "disagree"),
    ],
)
def test_a_shard_that_cannot_be_believed_is_named(
    access: Access, change: Callable[[pa.Table], pa.Table], names: str
) -> None:
    (file,) = write(access, rows(20), encoding="plain")
    _rewritten(access, file.path, change)
    with pytest.raises(CorruptStore, match=names) as caught, ShardReader(access, file.path) as r:
        list(r.batches())
    assert caught.value.where == access.full(file.path)


def test_a_missing_shard_is_corruption_not_a_traceback(access: Access) -> None:
    with pytest.raises(CorruptStore, match="missing"):
        ShardReader(access, "shards/nothing.arrow")


def test_metadata_names_the_version_for_other_readers(access: Access) -> None:
    (file,) = write(access, rows(1))
    with pa.ipc.open_file(access.read(file.path)) as found:
        assert found.schema.metadata[META_FORMAT] == b"1"
        assert found.schema.metadata[META_ENCODING] == file.encoding.encode()


@pytest.fixture(scope="module", params=["plain", "zstd"])
def whole_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    access = Access(str(tmp_path_factory.mktemp("store")))
    (file,) = write(access, rows(300, length=40, vocabulary=9), encoding=request.param)
    return Path(access.full(file.path))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_end_in_anything_but_corrupt_store(
    tmp_path_factory: pytest.TempPathFactory, whole_file: Path, data: st.DataObject
) -> None:
    damaged = bytearray(whole_file.read_bytes())
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "x.arrow").write_bytes(damaged)
    try:
        with ShardReader(Access(str(folder)), "x.arrow") as reader:
            for n in range(reader.rows):
                reader.row(n)
    except CorruptStore:
        pass


# -- remote shards


class Away(Access):
    """A remote store that goes away after the shard was opened."""

    local_path = staticmethod(lambda path: None)  # type: ignore[assignment]

    def open(self, path: str, *, version: str | None = None) -> BinaryIO:
        return _Vanishing(super().open(path))  # type: ignore[return-value]


class _Vanishing(io.BufferedReader):
    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 2000:
            raise StoreUnavailable("no answer")
        return super().read(size)


def test_a_store_that_goes_away_is_not_a_corrupt_shard(access: Access) -> None:
    (file,) = write(access, rows(2000), encoding="plain")
    with pytest.raises(StoreUnavailable), ShardReader(Away(access.uri), file.path) as reader:
        list(reader.batches())


@pytest.mark.s3
@pytest.mark.parametrize("encoding", ["plain", "zstd"])
def test_remote_shards_read_by_ranges_and_through_the_cache(
    s3: Callable[[], str], tmp_path: Path, encoding: str
) -> None:
    access = Access(s3())
    whole = rows(2500, length=30)
    files = write(access, whole, encoding=encoding, roll_bytes=40_000)
    assert read_back(access, files) == expected(whole)
    assert content_hash(access, files[0].path)[1] == files[0].content_hash
    with ShardReader(access, files[0].path, cache=LocalCache(tmp_path)) as reader:
        ids, wanted = reader.ids(0), expected(whole)[0][4]
        assert ids is not None and ids.tolist() == wanted


@pytest.mark.s3
def test_scratch_files_of_remote_stores_are_removed(s3: Callable[[], str], tmp_path: Path) -> None:
    write(Access(s3()), rows(2500), roll_bytes=1, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
