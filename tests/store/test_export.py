from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tests.store.built import Builder, Doc, doc, input_
from tokenmill.schemas.errors import JobError, SpaceMismatch
from tokenmill.store import export_parquet
from tokenmill.store.access import Access
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.export import export

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
    built.encode("docs", "image", CONTENT)
    return built


@pytest.fixture
def dataset(built: Builder) -> Dataset:
    return open_store(built.uri)


def test_parquet_holds_every_sample_with_its_streams(dataset: Dataset, tmp_path: Path) -> None:
    report = export(dataset, "parquet", str(tmp_path / "out"))
    (path,) = (tmp_path / "out" / f for f in report.files)
    table = pq.read_table(path)
    assert table.column_names == ["id", "key", "source", "pipeline", "image", "image.shape", "text"]
    assert table["text"].to_pylist() == [[1, 2, 3], None, None, []]
    assert table["image"].to_pylist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3], None, [0, 1]]
    assert table["image.shape"].to_pylist() == [[2, 3], [2, 2], None, [1, 2]]
    assert table["id"].to_pylist() == [row.id for row in dataset]
    assert table["key"].to_pylist() == ["a/0", "a/1", "a/2", "b/0"]
    assert table["source"].to_pylist() == [A.uri] * 3 + [B.uri]
    assert table.schema.field("text").type == pa.list_(pa.uint16())
    assert (report.rows, report.tokens) == (4, 15)
    facts = json.loads(table.schema.metadata[b"tokenmill"])
    assert facts["snapshot"] == dataset.snapshot
    assert facts["spaces"]["text"] == list(dataset.spaces["text"])


def test_parquet_ids_are_split_into_byte_streams_under_zstd(
    dataset: Dataset, tmp_path: Path
) -> None:
    report = export(dataset, "parquet", str(tmp_path / "out"))
    group = pq.read_metadata(tmp_path / "out" / report.files[0]).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("text.list.element", "image.list.element"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings
        assert columns[name].compression == "ZSTD"
    assert report.notes == ()


def test_parquet_goes_on_without_byte_streams_and_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_parquet, "_can_split", lambda dtype: False)
    report = export(dataset, "parquet", str(tmp_path / "out"))
    assert len(report.notes) == 2 and "BYTE_STREAM_SPLIT" in report.notes[0]
    assert pq.read_table(tmp_path / "out" / report.files[0]).num_rows == 4


def test_parquet_row_groups_and_files_are_cut_by_tokens_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_parquet, "ROW_GROUP_TOKENS", 1000)
    monkeypatch.setattr(export_parquet, "ROW_GROUP_ROWS", 100)
    built = Builder(str(tmp_path / "store"))
    rng = np.random.default_rng(0)
    docs = [doc(str(i), text=rng.integers(0, 60_000, i % 90)) for i in range(1500)]
    docs += [doc(f"empty{i}", text=[]) for i in range(500)]
    built.encode("docs", "text", {A: docs})
    report = export(open_store(built.uri), "parquet", str(tmp_path / "out"), file_bytes=20_000)
    assert len(report.files) > 3
    keys, texts = [], []
    for name in report.files:
        file = pq.ParquetFile(tmp_path / "out" / name)
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            keys += group["key"].to_pylist()
            texts += group["text"].to_pylist()
            tokens = sum(map(len, group["text"].to_pylist()))
            assert group.num_rows <= 100 and tokens < 1000 + 90
        assert (tmp_path / "out" / name).stat().st_size < 40_000
    assert keys == [d.key for d in docs]
    assert texts == [list(d.streams["text"]) for d in docs]
    assert report.bytes == sum((tmp_path / "out" / f).stat().st_size for f in report.files)


def test_a_stream_that_is_called_like_a_column_of_ours_keeps_its_ids(tmp_path: Path) -> None:
    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "key", {A: [Doc(key="k", streams={"key": [1]}, shape=(1, 1))]})
    export(open_store(built.uri), "parquet", str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "data-00000.parquet")
    assert table["key.ids"].to_pylist() == [[1]] and table["key"].to_pylist() == ["k"]


def test_webdataset_reads_an_export_back(dataset: Dataset, tmp_path: Path) -> None:
    report = export(dataset, "webdataset", str(tmp_path / "out"))
    urls = [str(tmp_path / "out" / f) for f in report.files]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    rows = list(dataset)
    assert [s["__key__"] for s in samples] == [row.id.hex() for row in rows]
    assert samples[0]["text.npy"].tolist() == [1, 2, 3]
    assert samples[0]["text.npy"].dtype == np.uint16
    assert samples[0]["image.npy"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert samples[0]["json"]["key"] == "a/0" and samples[0]["json"]["source"] == A.uri
    assert "text.npy" not in samples[1] and samples[1]["json"]["verdicts"]["text"] == "absent"
    assert samples[2]["json"]["verdicts"] == {"image": "quarantined", "text": "quarantined"}
    assert samples[3]["text.npy"].shape == (0,)


def test_webdataset_bytes_depend_on_the_samples_alone(dataset: Dataset, tmp_path: Path) -> None:
    first = export(dataset, "webdataset", str(tmp_path / "one"))
    second = export(dataset, "webdataset", str(tmp_path / "two"))
    assert first.files == second.files
    for name in first.files:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname, member.pax_headers) == (
                    0,
                    0,
                    "",
                    {},
                )


def test_webdataset_tars_are_rolled_and_hold_one_pipeline_each(
    built: Builder, tmp_path: Path
) -> None:
    docs = [doc(str(i), text=[i] * 100, image=[1], shape=(1, 1)) for i in range(200)]
    built.encode("more", "text", {A: docs})
    built.encode("other", "text", {A: docs})
    dataset = open_store(built.uri)
    report = export(dataset, "webdataset", str(tmp_path / "out"), file_bytes=40_000)
    assert len(report.files) > 6
    keys = []
    for name in report.files:
        with tarfile.open(tmp_path / "out" / name) as tar:
            metas = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
        assert {m["pipeline"] for m in metas} == {name.rpartition("-")[0]}
        keys += [m["key"] for m in metas]
    assert keys == [row.key for row in dataset]


@pytest.mark.parametrize("to", ["parquet", "webdataset"])
def test_an_export_is_marked_whole_at_its_very_end(
    dataset: Dataset, tmp_path: Path, to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    put = Access.put

    def fails(self: Access, *args: Any, **more: Any) -> Any:
        put(self, *args, **more)
        raise OSError("the power failed")

    monkeypatch.setattr(Access, "put", fails)
    with pytest.raises(OSError, match="power"):
        export(dataset, to, str(out))
    assert not (out / "_SUCCESS").exists()
    monkeypatch.undo()
    report = export(dataset, to, str(out), force=True)
    manifest = json.loads((out / "_SUCCESS").read_text())
    assert manifest["snapshot"] == dataset.snapshot and manifest["rows"] == 4
    assert [f["path"] for f in manifest["files"]] == list(report.files)


def test_a_target_that_is_not_empty_is_refused_unless_forced(
    built: Builder, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    earlier = export(dataset, "webdataset", str(out))
    (out / "mine.txt").write_text("precious")
    with pytest.raises(JobError, match="must be empty"):
        export(dataset, "parquet", str(out))
    assert (out / earlier.files[0]).exists()
    report = export(dataset, "parquet", str(out), force=True)
    left = sorted(p.name for p in out.iterdir())
    assert left == sorted([*report.files, "_SUCCESS", "mine.txt"])


def test_a_manifest_cannot_make_force_delete_files_elsewhere(
    dataset: Dataset, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    manifest = {"tokenmill_export": 1, "files": [{"path": "../victim"}]}
    (tmp_path / "out" / "_SUCCESS").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"\.\."):
        export(dataset, "parquet", str(tmp_path / "out"), force=True)
    assert victim.exists()


def test_mixed_spaces_and_unknown_formats_are_refused_before_anything_is_written(
    built: Builder, tmp_path: Path
) -> None:
    built.encode("new", "text", {A: CONTENT[A]}, space="two")
    dataset = open_store(built.uri)
    with pytest.raises(SpaceMismatch):
        export(dataset, "parquet", str(tmp_path / "out"))
    with pytest.raises(JobError, match="parquet, webdataset"):
        export(dataset.select(pipeline="new"), "lance", str(tmp_path / "out"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    assert export(dataset.select(pipeline="new"), "parquet", str(tmp_path / "out")).rows == 3


@pytest.mark.s3
def test_an_export_to_s3(s3: Any, dataset: Dataset) -> None:
    out = s3()
    report = export(dataset, "parquet", out)
    table = pq.read_table(io.BytesIO(Access(out).read(report.files[0])))
    assert table["key"].to_pylist() == ["a/0", "a/1", "a/2", "b/0"]
    with pytest.raises(JobError, match="must be empty"):
        export(dataset, "parquet", out)
