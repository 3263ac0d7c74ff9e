"""Packed ids against plain ones, read from an object store (SeaweedFS) and from a local folder.

    python benchmarks/packed.py [--tokens 40000000] [--rounds 7]

The same synthetic grids as design section 12: video 5x32x32 of 18 bits in uint32, audio 8x250 of 11
bits in uint16, written twice, plain and packed. Each round reads both stores, from end to end
(record batches of ids, which iteration and export go through) and one row in 16, in alternating
order; printed are ratios packed / plain of the same round: median, lowest and highest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import s3 as s3_fixture
from tokenmill.schemas.shard import ShardMeta, TokenRows
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader, ShardWriter

STREAMS = {"video": ((5, 32, 32), 18, "uint32"), "audio": ((8, 250), 11, "uint16")}
ROWS = 512


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tokens", type=int, default=40_000_000)
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, seaweed(Path(folder)) as remote:
        for place, root in (("seaweedfs", remote()), ("folder", f"{folder}/local")):
            for stream in STREAMS:
                compare(place, f"{root}/{stream}", stream, given.tokens, given.rounds)


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Callable[[], str]]:
    class Factory:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

    yield from s3_fixture.__wrapped__(Factory())  # the tests' own server, without pytest


def compare(place: str, root: str, stream: str, tokens: int, rounds: int) -> None:
    size = {name: written(f"{root}/{name}", stream, name, tokens) for name in ("plain", "packed")}
    print(f"\n{place}, {stream}: {tokens / 1e6:.0f} M tokens, {STREAMS[stream][1]} bits")
    print(f"  bytes   {size['packed'] / size['plain']:.3f} x plain")
    for kind, read in (("whole", whole), ("one row in 16", some)):
        wall, cpu, speed = [], [], []
        for turn in range(rounds + 1):
            names = ["plain", "packed"] if turn % 2 else ["packed", "plain"]
            took = {name: read(f"{root}/{name}") for name in names}
            if turn:  # the first round warms connections and caches
                wall.append(took["plain"][0] / took["packed"][0])
                cpu.append(took["plain"][1] / took["packed"][1])
                speed.append(took["packed"][2] / took["packed"][0] / 1e6)
        print(f"  {kind}: {median(speed):.0f} M tokens/s of wall time packed")
        print(f"    tokens/s of wall time  {spread(wall)} x plain")
        print(f"    tokens per CPU-second  {spread(cpu)} x plain")


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def written(root: str, stream: str, encoding: str, tokens: int) -> int:
    """Bytes of the shards."""
    shape, bits, dtype = STREAMS[stream]
    meta = ShardMeta(
        pipeline="clips",
        stream=stream,
        unit="ab" * 16,
        modality=stream,
        tokenizer="synthetic",
        output="ids",
        space="0" * 64,
        recipe="0" * 64,
        dtype=dtype,
        axes=tuple("abc"[: len(shape)]),
        codebook_sizes=(1 << bits,),
    )
    rng = np.random.default_rng(0)
    length = int(np.prod(shape))
    writer = ShardWriter(Access(root), meta=meta, folder="shards", attempt="a", encoding=encoding)
    for number in range(-(-tokens // (length * ROWS))):
        values = rng.integers(0, 1 << bits, ROWS * length).astype(dtype)
        writer.append(
            TokenRows(
                ids=rng.bytes(16 * ROWS),
                keys=[f"{number}/{i}" for i in range(ROWS)],
                sources=["s3://raw/clips.tar"] * ROWS,
                verdicts=np.zeros(ROWS, np.uint8),
                values=values,
                lengths=np.full(ROWS, length, np.int64),
                shapes=np.tile(np.array(shape, np.int32), (ROWS, 1)),
            )
        )
    return sum(f.size for f in writer.close())


def whole(root: str) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds of this process, tokens."""
    return timed(root, lambda reader: sum(touched(batch) for batch in reader.batches()))


def touched(batch: object) -> int:
    """Every id looked at once, as a trainer's copy would."""
    values = batch.column("ids").values.to_numpy()  # type: ignore[attr-defined]
    int(values.max())
    return len(values)


def some(root: str) -> tuple[float, float, int]:
    def rows(reader: ShardReader) -> int:
        ids = (reader.ids(row) for row in range(7, reader.rows, 16))
        return sum(len(i) for i in ids if i is not None and i.max() >= 0)

    return timed(root, rows)


def timed(root: str, read: Callable[[ShardReader], int]) -> tuple[float, float, int]:
    access, tokens = Access(root), 0
    wall, cpu = time.perf_counter(), time.process_time()
    for file in access.list("shards"):
        with ShardReader(access, file.path) as reader:
            tokens += read(reader)
    return time.perf_counter() - wall, time.process_time() - cpu, tokens


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
