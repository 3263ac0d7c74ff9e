"""Pictures per CPU-second through the pipeline against a bare loop of the same model, paired.

    python benchmarks/image.py [--pictures 48] [--rounds 5] [--checkpoint FILE] [--size 256]

Both sides decode, crop and encode the same JPEG files with one thread and give the same ids
(checked). The bare loop is the least that does the work: Pillow, the crop, the network, a list of
arrays. The pipeline is the real worker: source, decode child, batches, joins, shards with hashes.
Neither side's start (import, weights, forking children) is counted: one picture goes before.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import spread
from PIL import Image

from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Span, Task, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.workers.registry import load
from tokenmill.workers.sources import open_source
from tokenmill.workers.tokenizers.bpe_image.exact import exact
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene
from tokenmill.workers.tokenizers.bpe_image.presets import Crop, to_float
from tokenmill.workers.worker import StreamWorker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--checkpoint", default="starter")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    write(folder / "in", options.pictures)
    checkpoint = None if options.checkpoint == "starter" else options.checkpoint
    tokenizer = load("bpe-image", checkpoint, {"size": options.size})
    files = sorted((folder / "in").glob("*.jpg"))
    crop = tokenizer.preparer().crop
    job = job_of(folder, options)
    worker = StreamWorker(job, "p", "image")
    units = [unit_of(job, slice(0, 1)), unit_of(job, slice(None))]
    recipe = worker.facts().identity.recipe
    bare(tokenizer, crop, files[:1])
    run(worker, units[0], recipe, 0)
    ratios, wall_ratios, shares, rates = [], [], [], []
    for number in range(1, options.rounds + 1):
        sides: list[tuple[str, Callable[[], object]]] = [
            ("bare", lambda: bare(tokenizer, crop, files)),
            ("worker", lambda n=number: run(worker, units[1], recipe, n)),
        ]
        made, cost = {}, {}
        for side, call in sides if number % 2 else sides[::-1]:
            made[side], cost[side] = timed(call, worker)
        result = made["worker"]
        check(job, result, made["bare"])
        ratios.append(cost["bare"][1] / cost["worker"][1])
        wall_ratios.append(cost["bare"][0] / cost["worker"][0])
        shares.append(result.stats.encode / result.stats.wall)
        rates.append(len(files) / cost["worker"][1])
    worker.close()
    print(f"{len(files)} JPEG of 640 x 480, size {options.size}, {options.rounds} paired rounds")
    print(f"pictures per CPU-second            {spread(rates)}")
    print(f"against the bare loop, CPU         {spread(ratios)}")
    print(f"against the bare loop, wall        {spread(wall_ratios)}")
    print(f"share of the wall in the encoder   {spread(shares)}")


def write(folder: Path, count: int) -> None:
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:04d}.jpg").write_bytes(saved(scene(640, 480, n), "JPEG", quality=90))


def job_of(folder: Path, options: argparse.Namespace) -> Job:
    stream = {
        "tokenizer": "bpe-image",
        "checkpoint": options.checkpoint,
        "config": {"size": options.size},
        "field": "jpg",
    }
    source = {"uri": str(folder / "in"), "format": "files"}
    return Job.model_validate(
        {
            "name": "bench",
            "store": str(folder / "store"),
            "pipelines": {"p": {"source": source, "streams": {"image": stream}}},
        }
    )


def unit_of(job: Job, which: slice) -> WorkUnit:
    inputs = list(open_source(job.pipelines["p"].source).list())[which]
    return WorkUnit(pipeline="p", spans=tuple(Span(input=i, start=0, end=i.extent) for i in inputs))


def bare(tokenizer: object, crop: Crop, files: list[Path]) -> list[np.ndarray]:
    model = tokenizer._loaded.model  # type: ignore[attr-defined]
    found = []
    with exact(1):
        for file in files:
            with Image.open(file) as image:
                pixels = crop(image.convert("RGB"))
            nchw = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().float()
            found.append(model.encode(to_float(nchw, crop.preset))[0].numpy().astype(np.uint16))
    return found


def run(worker: StreamWorker, unit: WorkUnit, recipe: str, attempt: int) -> TaskResult:
    task = Task(unit=unit, stream="image", recipe=recipe, attempt=attempt, run="bench")
    result = worker.run(task)
    assert isinstance(result, TaskResult), result
    return result


def timed(call: Callable[[], object], worker: StreamWorker) -> tuple[object, tuple[float, float]]:
    """(its answer, (wall seconds, CPU seconds of this process and its decode children))."""
    children = [pid for pool in worker._pools._free for pid in pool.pids()]
    before, began = cpu(children), time.perf_counter()
    answer = call()
    return answer, (time.perf_counter() - began, cpu(children) - before)


def cpu(children: list[int]) -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for pid in children:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / 100  # clock ticks
    return total


def check(job: Job, result: TaskResult, wanted: list[np.ndarray]) -> None:
    found = []
    for shard in result.shards:
        with ShardReader(Access(job.store), shard.path) as reader:
            found += [reader.ids(row) for row in range(reader.rows)]
    assert len(found) == len(wanted)
    for ids, grid in zip(found, wanted, strict=True):
        assert np.array_equal(ids, grid.reshape(-1)), "other ids than the bare loop's"


if __name__ == "__main__":
    main()
