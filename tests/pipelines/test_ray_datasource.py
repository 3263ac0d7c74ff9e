"""A snapshot read by Ray Data, on a real local cluster."""

from __future__ import annotations

import builtins
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import tokenmill
from tests.store.built import Builder, doc, input_
from tests.workers.conftest import ray_cluster
from tokenmill.schemas.errors import JobError, SpaceMismatch

__all__ = ["ray_cluster"]  # the fixture

pytestmark = pytest.mark.ray
A, B, C, D = (input_(f"{name}.tar") for name in "abcd")


def docs(name: str, count: int) -> list[Any]:
    return [
        doc(
            f"{name}/{i}",
            text=None if i % 7 == 3 else [i] * (i % 9),
            image="decoder-refused" if i % 5 == 1 else range(2 * (i % 4 + 1)),
            shape=(2, i % 4 + 1),
        )
        for i in range(count)
    ]


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    """Rolled shards, packed ones, and streams that were cut differently (joined by id)."""
    built = Builder(str(tmp_path / "store"))
    built.encode("docs", "text", {A: docs("a", 3000)}, roll_bytes=1)
    built.encode("docs", "image", {A: docs("a", 3000)}, encoding="packed")
    built.encode("docs", "text", {B: docs("b", 20), C: docs("c", 20)})
    built.encode("docs", "image", {B: docs("b", 20)})
    built.encode("docs", "image", {C: docs("c", 20)})
    built.encode("other", "text", {D: docs("d", 30)}, encoding="zstd")
    return built


def seen(rows: Any, streams: tuple[str, ...] = ("text", "image")) -> list[tuple[Any, ...]]:
    def ids(row: Any, stream: str) -> Any:
        found = row.get(stream)
        return None if found is None else [int(i) for i in found]

    return sorted((bytes(r["id"]), r["pipeline"], *(ids(r, s) for s in streams)) for r in rows)


def wanted(uri: str, streams: tuple[str, ...] = ("text", "image")) -> list[tuple[Any, ...]]:
    return sorted(
        (r.id, r.pipeline, *(None if (i := r.get(s)) is None else i.tolist() for s in streams))
        for r in tokenmill.open(uri)
    )


def test_every_sample_comes_once_with_its_streams(ray_cluster: Any, built: Builder) -> None:
    dataset = tokenmill.ray_dataset(built.uri, override_num_blocks=4)
    rows = dataset.take_all()
    assert seen(rows) == wanted(built.uri)
    assert dataset.count() == 3070
    by_key = {row["key"]: row for row in rows}
    assert list(by_key["a/2"]["image.shape"]) == [2, 3]
    assert by_key["b/2"]["source"] == B.uri
    kinds = dict(zip(dataset.schema().names, dataset.schema().types, strict=True))
    assert kinds["text"] == pa.list_(pa.uint16()) and kinds["id"] == pa.binary(16)


def test_rows_keep_their_streams_through_a_map_on_workers(ray_cluster: Any, built: Builder) -> None:
    def lengths(batch: pa.Table) -> pa.Table:
        text = batch["text"].combine_chunks()
        return batch.select(["key"]).append_column("n", pa.array(map(len, text.to_pylist())))

    dataset = tokenmill.ray_dataset(built.uri, pipeline="other", streams=["text"])
    rows = dataset.filter(lambda row: row["text"] is not None).map_batches(
        lengths, batch_format="pyarrow"
    )
    found = {row["key"]: row["n"] for row in rows.take_all()}
    assert found == {f"d/{i}": i % 9 for i in range(30) if i % 7 != 3}


def test_a_named_snapshot_stays_what_it_was(ray_cluster: Any, built: Builder) -> None:
    before = tokenmill.open(built.uri)
    built.encode("other", "text", {input_("e.tar"): docs("e", 10)})
    old = tokenmill.ray_dataset(built.uri, snapshot=before.snapshot, pipeline="other")
    new = tokenmill.ray_dataset(built.uri, pipeline="other")
    assert (old.count(), new.count()) == (30, 40)


def test_tokens_of_two_spaces_are_refused_before_anything_runs(
    ray_cluster: Any, built: Builder
) -> None:
    built.encode("new", "text", {A: docs("a", 3)}, space="two")
    with pytest.raises(SpaceMismatch):
        tokenmill.ray_dataset(built.uri)


def test_parts_are_disjoint_whole_and_small_enough_to_send(built: Builder) -> None:
    dataset = tokenmill.open(built.uri)
    parts = dataset.parts()
    # three rolled files of A, the text of B and C with images joined, the other pipeline
    assert len(parts) == 5 and sum(part.join is not None for part in parts) == 1
    rows = [
        (row.id, row.pipeline, *(None if (i := row.get(s)) is None else i.tolist() for s in st))
        for part in (pickle.loads(pickle.dumps(part)) for part in parts)
        for batch in part.batches()
        for row in batch.rows()
        if (st := ("text", "image"))
    ]
    assert [(row.id, row.pipeline) for row in dataset] == [row[:2] for row in rows]
    assert sorted(rows) == wanted(built.uri)
    assert sum(part.rows for part in parts) == len(dataset)


def test_read_tasks_share_the_bytes(built: Builder) -> None:
    from tokenmill.pipelines.ray_datasource import SnapshotDatasource  # noqa: PLC0415

    source = SnapshotDatasource(tokenmill.open(built.uri))
    for parallelism in (1, 2, 3, 100):
        tasks = source.get_read_tasks(parallelism)
        assert len(tasks) <= parallelism
        assert sum(task.metadata.num_rows for task in tasks) == 3070
        total = sum(task.metadata.size_bytes for task in tasks)
        assert total == source.estimate_inmemory_data_size()
    assert len(source.get_read_tasks(2)) == 2


def test_without_ray_data_the_remedy_is_named(
    built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name == "ray.data":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(name, *args, **more)

    monkeypatch.delitem(sys.modules, "tokenmill.pipelines.ray_datasource", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(JobError, match=r"tokenmill\[data\]"):
        tokenmill.ray_dataset(built.uri)


def test_the_documented_lines_read_every_id(
    ray_cluster: Any, built: Builder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
    code = text.partition("## ray data")[2].partition("```python\n")[2].partition("```")[0]
    exec(compile(code.replace("STORE", built.uri), "docs/exports.md", "exec"), {})
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    for row in tokenmill.open(built.uri):
        ids = row.get("text")
        assert lines[row.key] == str(None if ids is None else ids.tolist())
