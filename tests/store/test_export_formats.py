"""What hf, mds, litdata and megatron exports hold.

Hugging Face's library opens its own here; the others' layouts are read by a few lines of struct
beside what is documented of them, and by the real libraries in tests/exports (`make test-exports`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.store.built import Builder, doc, facts, input_
from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.shard import ShardMeta, TokenRows
from tokenmill.schemas.work import Cell, Span, TaskResult, WorkUnit
from tokenmill.store import export as exports
from tokenmill.store.access import Access
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.export import DONE, FORMATS, UNFINISHED, export
from tokenmill.store.ledger import Entry
from tokenmill.store.shards import ShardWriter

A, B = input_("a.tar"), input_("b.tar")
CONTENT = {
    A: [
        doc("a/0", text=[1, 2, 3], image=range(6), shape=(2, 3)),
        doc("a/1", text=None, image=range(4), shape=(2, 2)),
        doc("a/2", text="invalid-utf8", image="decoder-refused"),
    ],
    B: [doc("b/0", text=[], image=range(2), shape=(1, 2))],
}


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT, encoding="packed")
    return built


@pytest.fixture
def dataset(built: Builder) -> Dataset:
    return open_store(built.uri)


def wide(built: Builder, stream: str, dtype: str, ids: list[list[int]]) -> None:
    """A stream of another dtype than the builder's uint16, one row per list."""
    unit = WorkUnit(pipeline="docs", spans=(Span(input=A, start=0, end=A.extent),))
    known = facts(f"text-{stream}")
    meta = ShardMeta(
        pipeline="docs",
        stream=stream,
        unit=unit.id.hex(),
        modality="text",
        tokenizer="bpe",
        output="ids",
        space=known.identity.space,
        recipe=known.identity.recipe,
        dtype=dtype,
        axes=("T",),
        codebook_sizes=(),
    )
    writer = ShardWriter(built.access, meta=meta, folder=f"shards/docs/{stream}", attempt="w")
    identify = sample_ids(A.uri)
    lengths = np.array([len(each) for each in ids], np.int64)
    keys = [f"a/{n}" for n in range(len(ids))]
    writer.append(
        TokenRows(
            ids=b"".join(identify(key) for key in keys),
            keys=keys,
            sources=[A.uri] * len(ids),
            verdicts=np.zeros(len(ids), np.uint8),
            values=np.array([i for each in ids for i in each], dtype),
            lengths=lengths,
        )
    )
    shards = writer.close()
    result = TaskResult(
        unit=unit.id,
        stream=stream,
        attempt=0,
        recipe=known.identity.recipe,
        space=known.identity.space,
        shards=shards,
        cells=(Cell(span=unit.spans[0], first_row=0, rows=len(ids)),),
        enumerated=len(ids),
        with_tokens=len(ids),
        absent=0,
        tokens=int(lengths.sum()),
        quarantined=(),
        input_faults=(),
        order_hash=writer.order_hash or bytes(16),
    )
    built.ledger.commit(
        "docs",
        [Entry(unit=unit, result=result)],
        run="r",
        planned_seq=built.ledger.seq("docs"),
        facts={stream: known},
        run_row={"job": "j", "host": "h", "job_json": "{}"},
    )


# -- hf


def test_hugging_face_opens_an_export_with_nulls_shapes_and_lineage(
    dataset: Dataset, tmp_path: Path
) -> None:
    import datasets  # noqa: PLC0415 - a second to import, for two tests

    report = export(dataset, "hf", str(tmp_path / "out"))
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert found["text"][:] == [[1, 2, 3], None, None, []]
    assert found["image"][:] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3], None, [0, 1]]
    assert found["image.shape"][:] == [[2, 3], [2, 2], None, [1, 2]]
    assert found["id"][:] == [row.id for row in dataset]
    assert found.features["text"].feature.dtype == "uint16"
    assert json.loads(found.info.description)["snapshot"] == dataset.snapshot
    assert (report.rows, report.tokens) == (4, 15)
    assert found.with_format("arrow")[0]["image"].type == pa.list_(pa.uint16())


def test_hugging_face_opens_many_files_as_one(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415

    built = Builder(str(tmp_path / "store"))
    docs = [doc(str(i), text=[i] * (i % 90)) for i in range(3000)]
    built.encode("docs", "text", {A: docs})
    report = export(open_store(built.uri), "hf", str(tmp_path / "out"), file_bytes=40_000)
    assert len([name for name in report.files if name.endswith(".arrow")]) == 3
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert [len(ids) for ids in found["text"]] == [i % 90 for i in range(3000)]


def test_a_store_without_a_row_is_an_empty_dataset(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415

    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "text", {A: []})
    report = export(open_store(built.uri), "hf", str(tmp_path / "out"))
    assert report.rows == 0
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert found.num_rows == 0 and found.column_names == ["id", "key", "source", "pipeline"]


# -- mds and litdata: chunks


def read_chunk(path: Path, columns: int) -> list[list[bytes]]:
    """The samples of a chunk, each as its columns' bytes."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    ends = struct.unpack_from(f"<{count + 1}I", data, 4)
    assert ends[-1] == len(data)
    found = []
    for begin, end in pairwise(ends):
        sizes = struct.unpack_from(f"<{columns}I", data, begin)
        at, parts = begin + 4 * columns, []
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        assert at == end
        found.append(parts)
    return found


def test_mds_chunks_are_laid_out_as_documented(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export(dataset, "mds", str(out))
    index = json.loads((out / "index.json").read_text())
    assert report.files[-1] == "index.json"
    (shard,) = index["shards"]
    assert shard["column_names"] == ["id", "image", "key", "meta", "text"]
    assert shard["column_encodings"] == [
        "bytes",
        "ndarray:uint16",
        "str",
        "json",
        "ndarray:uint16",
    ]
    assert (shard["samples"], shard["raw_data"]["bytes"]) == (4, report.bytes - _size(out))
    assert index["tokenmill"]["snapshot"] == dataset.snapshot
    samples = read_chunk(out / shard["raw_data"]["basename"], 5)
    assert [s[0] for s in samples] == [row.id for row in dataset]
    # two axes of one byte each, the dimensions, the ids
    assert samples[0][1] == bytes([2 << 2, 2, 3]) + np.arange(6, dtype="<u2").tobytes()
    assert samples[0][4] == bytes([1 << 2, 3]) + np.array([1, 2, 3], "<u2").tobytes()
    assert samples[1][4] == bytes([1 << 2, 0])
    metas = [json.loads(s[3]) for s in samples]
    assert metas[1]["verdicts"] == {"image": "tokens", "text": "absent"}
    assert metas[2]["verdicts"] == {"image": "quarantined", "text": "quarantined"}
    assert metas[3]["verdicts"]["text"] == "tokens" and metas[3]["source"] == B.uri


def _size(out: Path) -> int:
    return (out / "index.json").stat().st_size


def test_litdata_chunks_are_laid_out_as_documented(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(dataset, "litdata", str(out))
    index = json.loads((out / "index.json").read_text())
    (chunk,) = index["chunks"]
    assert chunk["chunk_size"] == 4
    assert chunk["chunk_bytes"] == (out / chunk["filename"]).stat().st_size
    assert index["config"]["data_format"] == ["bytes", "str", "str", "numpy", "numpy"]
    spec = json.loads(index["config"]["data_spec"])[1]
    assert json.loads(spec["context"]) == ["id", "key", "meta", "image", "text"]
    samples = read_chunk(out / chunk["filename"], 5)
    assert [s[1] for s in samples] == [b"a/0", b"a/1", b"a/2", b"b/0"]
    assert struct.unpack_from("<4I", samples[0][3]) == (5, 2, 2, 3)
    assert samples[0][3][16:] == np.arange(6, dtype="<u2").tobytes()
    assert struct.unpack("<3I", samples[1][4]) == (5, 1, 0)


@pytest.mark.parametrize("to", ["mds", "litdata"])
def test_chunks_stay_below_their_limit_and_hold_every_sample(tmp_path: Path, to: str) -> None:
    built = Builder(str(tmp_path / "store"))
    docs = [doc(str(i), text=[i] * (i % 90)) for i in range(700)]
    docs.append(doc("large", text=[7] * 9000))
    built.encode("docs", "text", {A: docs})
    out = tmp_path / "out"
    report = export(open_store(built.uri), to, str(out), file_bytes=10_000)
    chunks = [name for name in report.files if name != "index.json"]
    sizes = [(out / name).stat().st_size for name in chunks]
    assert len(chunks) > 10 and all(size <= 10_000 for size in sizes[:-1])
    found = [sample for name in chunks for sample in read_chunk(out / name, 4)]
    assert [s[1].decode() for s in found] == [d.key for d in docs]


# -- megatron


def read_index(path: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """dtype code, lengths, byte offsets, document index."""
    data = path.read_bytes()
    assert data[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, documents = struct.unpack_from("<QBQQ", data, 9)
    assert version == 1
    lengths = np.frombuffer(data, "<i4", sequences, 34)
    pointers = np.frombuffer(data, "<i8", sequences, 34 + 4 * sequences)
    index = np.frombuffer(data, "<i8", documents, 34 + 12 * sequences)
    assert len(data) == 34 + 12 * sequences + 8 * documents
    return code, lengths, pointers, index


def test_megatron_has_a_document_per_sample_and_stream(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export(dataset, "megatron", str(out))
    assert [Path(name).suffix for name in report.files] == [".bin", ".arrow", ".idx"] * 2
    code, lengths, pointers, documents = read_index(out / "docs-image-00000.idx")
    assert (code, lengths.tolist(), pointers.tolist()) == (8, [6, 4, 2], [0, 12, 20])
    assert documents.tolist() == [0, 1, 2, 3]
    ids = np.fromfile(out / "docs-image-00000.bin", "<u2")
    assert ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1]
    samples = pa.ipc.open_file(str(out / "docs-image-00000.samples.arrow")).read_all()
    assert samples["key"].to_pylist() == ["a/0", "a/1", "b/0"]
    assert samples["shape"].to_pylist() == [[2, 3], [2, 2], [1, 2]]
    rows = list(dataset)
    assert samples["id"].to_pylist() == [rows[0].id, rows[1].id, rows[3].id]
    assert json.loads(samples.schema.metadata[b"tokenmill"])["snapshot"] == dataset.snapshot
    assert (report.rows, report.tokens) == (4, 15)


def test_megatron_has_no_unsigned_words_so_ids_become_signed(
    built: Builder, tmp_path: Path
) -> None:
    wide(built, "long", "uint32", [[1, 2**31 - 1], [5]])
    wide(built, "longer", "uint64", [[1, 2**63 - 1], [5]])
    dataset = open_store(built.uri)
    export(dataset.select(streams=["long", "longer"]), "megatron", str(tmp_path / "out"))
    code, lengths, pointers, _ = read_index(tmp_path / "out" / "docs-long-00000.idx")
    assert (code, lengths.tolist(), pointers.tolist()) == (4, [2, 1], [0, 8])
    code, _, pointers, _ = read_index(tmp_path / "out" / "docs-longer-00000.idx")
    assert (code, pointers.tolist()) == (5, [0, 16])
    ids = np.fromfile(tmp_path / "out" / "docs-longer-00000.bin", "<i8")
    assert ids.tolist() == [1, 2**63 - 1, 5]


@pytest.mark.parametrize(
    ("dtype", "ids", "why"),
    [("uint32", [[2**31]], "2147483648 is too large"), ("float16", [[1]], "no dtype for float16")],
)
def test_what_megatron_cannot_hold_is_refused_and_left_visibly_unfinished(
    built: Builder, tmp_path: Path, dtype: str, ids: list[list[int]], why: str
) -> None:
    wide(built, "odd", dtype, ids)
    out = tmp_path / "out"
    with pytest.raises(JobError, match=why):
        export(open_store(built.uri).select(streams=["odd"]), "megatron", str(out))
    assert not list(out.glob("*.idx")) and not (out / DONE).exists()
    assert (out / UNFINISHED).exists()


def test_megatron_prefixes_are_rolled_and_kept_apart_by_pipeline(
    built: Builder, tmp_path: Path
) -> None:
    docs = [doc(str(i), text=[i] * 40) for i in range(3000)]
    built.encode("more", "text", {A: docs})
    report = export(open_store(built.uri), "megatron", str(tmp_path / "out"), file_bytes=90_000)
    prefixes = [name[: -len(".idx")] for name in report.files if name.endswith(".idx")]
    assert prefixes == ["docs-image-00000", "docs-text-00000"] + [
        f"more-text-0000{n}" for n in range(2)
    ]
    ids = []
    for prefix in prefixes[2:]:
        _, lengths, pointers, documents = read_index(tmp_path / "out" / f"{prefix}.idx")
        assert len(documents) == len(lengths) + 1 and set(lengths.tolist()) == {40}
        assert pointers.tolist() == list(range(0, 80 * len(lengths), 80))
        ids += np.fromfile(tmp_path / "out" / f"{prefix}.bin", "<u2")[::40].tolist()
    assert ids == list(range(3000))


# -- every format


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_a_killed_export_looks_unfinished_and_force_leaves_nothing_of_it(
    dataset: Dataset, built: Builder, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    placed: list[str] = []
    put = Access.put

    def dies(self: Access, local: Path, path: str, *, move: bool = False) -> Any:
        found = put(self, local, path, move=move)
        placed.append(path)
        if len(placed) == 2 or to in ("parquet", "webdataset"):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Access, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        export(dataset, to, str(out))
    monkeypatch.undo()
    assert (out / UNFINISHED).exists() and not (out / DONE).exists()
    with pytest.raises(JobError, match="must be empty"):
        export(dataset, to, str(out))
    (out / "mine.bin").write_text("precious")
    for name in placed:  # as if the next export had fewer files
        number = name.replace("00000", "00007").replace("chunk-0-0", "chunk-0-7")
        (out / number).write_bytes((out / name).read_bytes())
    report = export(dataset, to, str(out), force=True)
    assert sorted(p.name for p in out.iterdir()) == sorted([*report.files, DONE, "mine.bin"])
    manifest = json.loads((out / DONE).read_text())
    assert manifest["snapshot"] == dataset.snapshot
    assert manifest["spaces"] == {s: list(found) for s, found in dataset.spaces.items()}


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_equal_snapshots_give_equal_bytes(dataset: Dataset, tmp_path: Path, to: str) -> None:
    for name in ("one", "two"):
        report = export(dataset, to, str(tmp_path / name))
        assert all(
            any(Path(f).match(pattern) for pattern in FORMATS[to].names(dataset))
            for f in report.files
        )
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_two_exports_into_one_place_do_not_mix(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(exports, "_clear", lambda target, force: None)  # both looked at once
    Access(out).create(UNFINISHED, b"{}")
    with pytest.raises(StoreError, match="another export is at work"):
        export(dataset, "mds", out)


@pytest.mark.s3
@pytest.mark.parametrize("to", ["megatron", "hf", "mds", "litdata"])
def test_exports_to_s3_hold_the_bytes_of_local_ones(
    s3: Callable[[], str], dataset: Dataset, tmp_path: Path, to: str
) -> None:
    out = s3()
    report = export(dataset, to, out)
    local = export(dataset, to, str(tmp_path / "out"))
    assert report.files == local.files
    for name in report.files:
        assert Access(out).read(name) == (tmp_path / "out" / name).read_bytes()
    assert sorted(f.path for f in Access(out).list()) == sorted([*report.files, DONE])
