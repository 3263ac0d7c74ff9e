"""Video: readers against each other, the pipeline against its bare loop, memory against length.

    python benchmarks/video.py [readers] [loop] [memory] [--rounds 5] [--frames 4096]

readers: CPU time to read H.264, HEVC and VP9 of 640 x 360 to RGB frames, decord as a multiple of
PyAV, paired in one process. loop: frames per CPU-second of a worker (source, decode child, shards)
as a share of a bare loop over the same files with the same model (open, resize, encode), both as
processes of their own on one thread, start-up included; and the encoder's share of the worker's
wall time. memory: the largest resident set of worker and child for videos of growing length, as
whole files and cut into clips. Media and weights are made here (random weights, width 16).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import measure
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Span, Task, TaskResult, WorkUnit
from tokenmill.workers.media.video import Reader, VideoReader
from tokenmill.workers.sources import open_source
from tokenmill.workers.worker import StreamWorker

SIZE = 64
LONG_SIZE, LONG_RATE = 16, 5  # 18,000 frames are an hour
OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=error"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("parts", nargs="*", default=["readers", "loop", "memory"])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--frames", type=int, default=18_000)
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        print(json.dumps({"bare": bare, "worker": worker}[given.child[0]](Path(given.child[1]))))
        return
    print(f"{measure.machine()}; load {measure.load():.1f}; {time.strftime('%Y-%m-%d')}")
    parts: dict[str, Callable[[], None]] = {
        "readers": lambda: readers(given.rounds),
        "loop": lambda: loop(given.rounds),
        "memory": lambda: memory(given.frames),
    }
    for name in given.parts:
        parts[name]()


def made(path: Path, codec: str, frames: int, size: tuple[int, int], rate: int = 25) -> None:
    """A moving pattern with a little noise."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (8, height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=OPTIONS[codec])
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = 50
        for n in range(frames):
            picture = np.stack([x + 3 * n, y + 2 * n, x + y + n], -1).astype(np.uint8) // 2
            frame = av.VideoFrame.from_ndarray(picture + noise[n % 8], format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def readers(rounds: int) -> None:
    print("\nreaders: CPU time, decord as a multiple of PyAV (640 x 360, 100 frames)")
    with tempfile.TemporaryDirectory() as folder:
        for codec, suffix in (("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm")):
            path = Path(folder) / f"{codec}.{suffix}"
            made(path, codec, 100, (360, 640))
            data = path.read_bytes()
            ratios = []
            for _ in range(rounds):
                seconds = {name: _read(data, name) for name in ("pyav", "decord")}
                ratios.append(seconds["decord"] / seconds["pyav"])
            print(f"  {codec:11} {measure.spread(ratios)}")


def _read(data: bytes, reader: Reader) -> float:
    began = time.process_time()
    with VideoReader(data, reader=reader) as video:
        assert sum(frame.rgb().size > 0 for frame in video.frames()) == 100
    return time.process_time() - began


def weights(path: Path) -> None:
    import torch  # noqa: PLC0415 - where it is wanted alone

    from tokenmill.workers.tokenizers.vidtok.model import VidTok  # noqa: PLC0415
    from tokenmill.workers.tokenizers.vidtok.variants import VARIANTS  # noqa: PLC0415
    from tokenmill.workers.tokenizers.vidtok.weights import save  # noqa: PLC0415

    torch.manual_seed(0)
    save(VidTok(replace(VARIANTS["fsq_causal_488_32768_v1_1"], ch=16)), path)


def job_of(folder: Path, **source: object) -> Job:
    size = LONG_SIZE if (folder / "long").exists() else SIZE
    uri = {"uri": str(folder / "in"), "format": "files", "max_sample_bytes": 1 << 30, **source}
    stream = {
        "field": None if "clips" in source else "mp4",
        "tokenizer": "vidtok",
        "checkpoint": str(folder / "w.safetensors"),
        "config": {"size": size, "device": "cpu", "batch": 1},
    }
    pipeline = {"source": uri, "streams": {"video": stream}}
    store = tempfile.mkdtemp(dir=folder)
    return Job.model_validate({"name": "b", "store": store, "pipelines": {"p": pipeline}})


def worker(folder: Path) -> dict[str, float]:
    """One task through a worker: {frames, encode share, cpu of the task itself}."""
    cut = (folder / "clips").exists()
    clips = {"clips": {"field": "mp4", "size": LONG_SIZE}} if cut else {}
    job = job_of(folder, **clips)
    source = open_source(job.pipelines["p"].source)
    spans = tuple(Span(input=i, start=0, end=i.extent) for i in source.list())
    stream = StreamWorker(job, "p", "video")
    try:
        recipe = stream.facts().identity.recipe
        unit = WorkUnit(pipeline="p", spans=spans)
        result = stream.run(Task(unit=unit, stream="video", recipe=recipe, attempt=0, run="r"))
    finally:
        stream.close()
    assert isinstance(result, TaskResult) and not result.quarantined, result
    return {"tokens": result.tokens, "encode_share": result.stats.encode / result.stats.wall}


def bare(folder: Path) -> dict[str, float]:
    """The plainest loop: open, resize, encode in windows; nothing is kept."""
    from tokenmill.workers.registry import load  # noqa: PLC0415 - torch

    stream = job_of(folder).pipelines["p"].streams["video"]
    tokenizer = load("vidtok", stream.checkpoint, stream.config)
    tokens = 0
    for path in sorted((folder / "in").glob("*.mp4")):
        fields = {"video": path.read_bytes()}
        prepared = tokenizer.preparer().prepare(fields, np.random.default_rng(0))
        carry = None
        for window in prepared:
            (piece,) = tokenizer.encode([replace(window, carry=carry)])
            carry, tokens = piece.carry, tokens + piece.ids["ids"].size
    return {"tokens": tokens}


def loop(rounds: int, files: int = 4, frames: int = 97) -> None:
    print(f"\nloop: {files} videos of {frames} frames, 320 x 240 to {SIZE} x {SIZE}, one thread")
    with tempfile.TemporaryDirectory() as name:
        folder = _folder(Path(name))
        for n in range(files):
            made(folder / "in" / f"{n}.mp4", "libx264", frames, (240, 320))
        shares, ratios, rates = [], [], []
        for _ in range(rounds):
            cost = {mode: _child(mode, folder) for mode in ("bare", "worker")}
            told = json.loads(cost["worker"].out)
            assert told["tokens"] == json.loads(cost["bare"].out)["tokens"]
            ratios.append(cost["bare"].cpu / cost["worker"].cpu)
            rates.append(files * frames / cost["worker"].cpu)
            shares.append(told["encode_share"])
        print(f"  frames per CPU-second, worker / bare  {measure.spread(ratios)}")
        print(f"  frames per CPU-second, worker         {measure.spread(rates, 0)}")
        print(f"  encoder's share of the task's wall    {measure.spread(shares)}")


def memory(frames: int) -> None:
    print("\nmemory: peak MB of one process by length of one video, 160 x 120")
    for clips in (True, False):
        for count in (64, 1024, frames):
            with tempfile.TemporaryDirectory() as name:
                folder = _folder(Path(name))
                (folder / "long").touch()
                if clips:
                    (folder / "clips").touch()
                made(folder / "in" / "0.mp4", "libx264", count, (120, 160), LONG_RATE)
                cost = _child("worker", folder)
                kind = "clips of 17" if clips else "whole file"
                seconds = count / LONG_RATE
                print(
                    f"  {kind}, {seconds:5.0f} s: {cost.peak / 1e6:.0f} MB, {cost.cpu:.0f} CPU-s",
                    flush=True,
                )


def _folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    weights(folder / "w.safetensors")
    return folder


def _child(mode: str, folder: Path) -> measure.Cost:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return measure.run([sys.executable, __file__, "--child", mode, str(folder)], env)


if __name__ == "__main__":
    main()
