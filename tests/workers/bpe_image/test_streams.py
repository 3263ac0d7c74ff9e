"""Pictures through the real worker: its children, its shards, every format, and their captions."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workers import bpe_files
from tests.workers.bpe_image.hostile import hostile
from tests.workers.bpe_image.vectors import weights
from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Span, Task, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.workers.one_off import LoadedTokenizer
from tokenmill.workers.registry import load
from tokenmill.workers.sources import open_source
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene
from tokenmill.workers.worker import StreamWorker

CONFIG = {"size": 32}
GOOD = {
    "a.jpg": saved(scene(90, 60, 1), "JPEG"),
    "b.png": saved(scene(50, 80, 2), "PNG"),
    "c.webp": saved(scene(64, 64, 3), "WEBP"),
    "d.png": saved(scene(60, 60, 4), "JPEG"),  # the wrong extension
}
CAPTIONS = {"a": "waves in the sun", "b": "", "c": "a caption – with more", "d": "wrong name"}


def make_job(folder, format, *, image, caption=None, required=False):
    streams = {
        "image": {
            "tokenizer": "bpe-image", "checkpoint": str(weights("taming_attn_tiny")),
            "config": CONFIG, "field": image, "required": required,
        }
    }  # fmt: skip
    if caption:
        streams["caption"] = {
            "tokenizer": "bpe", "checkpoint": bpe_files.fitted(), "field": caption
        }  # fmt: skip
    source = {"uri": str(folder / "in"), "format": format}
    return Job.model_validate(
        {
            "name": "pictures",
            "store": str(folder / "store"),
            "pipelines": {"p": {"source": source, "streams": streams}},
        }
    )


def run(job, stream="image"):
    """The stream's result, and per row its ids or None."""
    source = open_source(job.pipelines["p"].source)
    unit = WorkUnit(
        pipeline="p", spans=tuple(Span(input=i, start=0, end=i.extent) for i in source.list())
    )
    worker = StreamWorker(job, "p", stream)
    try:
        recipe = worker.facts().identity.recipe
        result = worker.run(Task(unit=unit, stream=stream, recipe=recipe, attempt=0, run="r"))
    finally:
        worker.close()
    assert isinstance(result, TaskResult), result
    found = []
    for shard in result.shards:
        with ShardReader(Access(job.store), shard.path) as reader:
            found += [reader.ids(row) for row in range(reader.rows)]
    return result, found


def alone(values):
    """The ids of each picture by itself, in this process."""
    tokenizer = LoadedTokenizer(load("bpe-image", str(weights("taming_attn_tiny")), CONFIG))
    return [e["vq"].ids for e in tokenizer.encode_samples(values)]


def files(folder, named):
    (folder / "in").mkdir(exist_ok=True)
    for name, raw in named.items():
        (folder / "in" / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())


def same(found, wanted):
    return len(found) == len(wanted) and all(
        np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)
    )


def test_hostile_files_end_as_rows_with_a_reason_and_cost_no_neighbour(tmp_path):
    """G1, G9: through `format: files`; what is sound between them keeps its ids."""
    bad = hostile()
    named = {f"{n:02d}-{name.split('.')[0]}.img": raw for n, (name, (raw, _)) in
             enumerate(bad.items())}  # fmt: skip
    reasons = [reason for _, reason in bad.values()]
    sound = {
        f"{n:02d}-good.img": raw for n, raw in zip((1, 50, 51, 52), GOOD.values(), strict=True)
    }
    files(tmp_path, named | sound)
    result, found = run(make_job(tmp_path, "files", image="img"))
    order = sorted(named | sound)
    assert result.enumerated == len(order) and result.with_tokens == len(GOOD)
    told = {q.row: q.reason for q in result.quarantined}
    assert told == {order.index(n): r for n, r in zip(named, reasons, strict=True)}
    assert all(q.message and q.stage == "prepare" for q in result.quarantined)
    assert same([f for f in found if f is not None], alone(list(GOOD.values())))


def test_webdataset_keeps_pictures_and_captions_aligned(tmp_path):
    """G8: two streams of one sample, row by row, with a picture missing and one damaged."""
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:

        def member(name, raw):
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))

        for n, (key, caption) in enumerate(CAPTIONS.items()):
            picture = list(GOOD.values())[n]
            if key != "c":
                member(f"{key}.jpg", b"damaged" if key == "b" else picture)
            member(f"{key}.txt", caption.encode())
    job = make_job(tmp_path, "webdataset", image="jpg", caption="txt")
    result, pictures = run(job)
    texts, captions = run(job, "caption")
    assert result.order_hash == texts.order_hash
    assert (result.with_tokens, result.absent, len(result.quarantined)) == (2, 1, 1)
    assert [p is None for p in pictures] == [False, True, True, False]
    assert same([pictures[0], pictures[3]], alone([GOOD["a.jpg"], GOOD["d.png"]]))
    bpe = load("bpe", bpe_files.fitted())
    wanted = [bpe.encode_flat([text]).values for text in CAPTIONS.values()]
    assert same(captions, wanted)


def test_parquet_with_image_bytes_in_a_struct(tmp_path):
    """As the `datasets` library writes pictures: {bytes, path}, a caption beside."""
    (tmp_path / "in").mkdir()
    rows = [{"bytes": raw, "path": name} for name, raw in GOOD.items()]
    rows[1] = None
    captions = list(CAPTIONS.values())
    pq.write_table(pa.table({"image": rows, "text": captions}), tmp_path / "in" / "a.parquet")
    job = make_job(tmp_path, "parquet", image="image.bytes", caption="text", required=True)
    result, found = run(job)
    assert [q.reason for q in result.quarantined] == ["missing-field"]
    good = [raw for n, raw in enumerate(GOOD.values()) if n != 1]
    assert same([f for f in found if f is not None], alone(good))
    assert result.order_hash == run(job, "caption")[0].order_hash


def test_a_folder_of_mixed_formats_is_one_stream(tmp_path):
    """`field: jpg;png;webp`: the first that a sample has; here one sample has two."""
    files(tmp_path, GOOD | {"a.png": b"not looked at"})
    result, found = run(make_job(tmp_path, "files", image="jpg;png; webp"))
    assert result.with_tokens == 4 and same(found, alone(list(GOOD.values())))


@pytest.mark.parametrize("aspect", ["square", "keep"])
def test_shapes_lie_beside_the_ids(tmp_path, aspect):
    files(tmp_path, {name.split(".")[0] + ".img": raw for name, raw in GOOD.items()})
    job = make_job(tmp_path, "files", image="img")
    changed = job.model_dump()
    changed["pipelines"]["p"]["streams"]["image"]["config"] = {"size": 32, "aspect": aspect}
    job = Job.model_validate(changed)
    result, found = run(job)
    shapes = []
    for shard in result.shards:
        with ShardReader(Access(job.store), shard.path) as reader:
            assert reader.meta.axes == ("H", "W") and reader.meta.modality == "image"
            batch = reader.batch(0)
            shapes += batch.column("shape").to_pylist()
    wanted = [[16, 24], [25, 16], [16, 16], [16, 16]] if aspect == "keep" else [[16, 16]] * 4
    assert shapes == wanted
    assert [f.size for f in found] == [h * w for h, w in wanted]
