"""A snapshot of very many shards: what opening it, its order and its first batch cost.

    python stream_snapshot.py FOLDER SNAPSHOT     one JSON line; run by stream.py

Every shard is a link to one real file of 1,000 grids, so that any of them can be opened.
"""

from __future__ import annotations

import json
import os
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

import tokenmill
from tests.store.built import Builder, doc, input_
from tests.store.stream.stores import simulated
from tokenmill.store.dataset import open_store
from tokenmill.store.snapshot import SNAPSHOT_SCHEMA, snapshot_bytes
from tokenmill.store.stream.blocks import epoch_order
from tokenmill.store.stream.mixture import Mixture, Stretch

SAMPLES = 1000
PER_FOLDER = 1000


def make(root: Path, count: int) -> str:
    """A store at `root` with `count` shards in one snapshot. -> its hash"""
    if (root / "snapshot").exists():
        return (root / "snapshot").read_text()
    state = np.random.RandomState(0)
    docs = [
        doc(f"{i}", (16, 16), image=state.randint(0, 16_384, 256).astype(np.uint16))
        for i in range(SAMPLES)
    ]
    builder = Builder(str(root))
    builder.encode("pics", "image", {input_("one"): docs}, encoding="plain")
    one = open_store(str(root)).snapshot_table().to_pylist()[0]
    table = simulated(count, samples=SAMPLES)
    paths = table["path"].to_pylist()
    if count <= 20_000:  # a link each; a larger snapshot is opened, its shards are not
        for path in paths:
            os.link(root / one["path"], root / path)
    same = pa.repeat(pa.scalar(one["content_hash"], pa.binary()), count)
    at = SNAPSHOT_SCHEMA.get_field_index("content_hash")
    table = table.set_column(at, SNAPSHOT_SCHEMA.field("content_hash"), same)
    if count > 20_000:  # each names the one real file, for the codebooks and the first batch
        paths = [one["path"]] * count
        at = SNAPSHOT_SCHEMA.get_field_index("path")
        table = table.set_column(at, SNAPSHOT_SCHEMA.field("path"), pa.array(paths))
    data = snapshot_bytes(table)
    name = sha256(data).hexdigest()
    (root / "snapshots" / f"{name}.arrow").write_bytes(data)
    (root / "snapshot").write_text(name)
    return name


def measured(root: str, snapshot: str) -> dict[str, float]:
    found: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        found[name], clock = now - clock, now

    dataset = tokenmill.open(root, snapshot=snapshot)
    lap("open")
    loader = dataset.loader("image", batch=256)
    lap("loader")
    next(iter(loader))
    lap("first")
    found["first"] += found["open"] + found["loader"]
    state = loader.state_dict()
    state["slot"] = int(loader.sequences[0] * 0.9) // 256 * 256
    clock = time.perf_counter()
    again = tokenmill.open(root, snapshot=snapshot).loader("image", batch=256)
    again.load_state_dict(state)
    next(iter(again))
    lap("resume")
    found["private_mb"] = psutil.Process().memory_full_info().uss / 1e6
    count = loader.sequences[0] // SAMPLES
    clock = time.perf_counter()
    order = epoch_order(np.full(count, SAMPLES), group=16, seed=1, part=0, epoch=9, shuffled=True)
    lap("order")
    slots = np.arange(10**12, 10**12 + 1000)
    _, draws = Mixture([Stretch(start=0, weights=(1,))], 1).draws(slots)
    order.block_of(draws % order.length)
    lap("locate_ms")
    found["locate_ms"] *= 1e3
    return found


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])), flush=True)
