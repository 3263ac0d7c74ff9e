"""Stores for loader tests: made by the real writer and ledger, every token of a stream distinct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.store.built import Builder, Doc, doc, input_
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.snapshot import SNAPSHOT_SCHEMA

GRID = (4, 4)


def text_store(
    uri: str | Path, *, files: int = 7, docs: int = 20, encoding: str = "zstd"
) -> Builder:
    """`files` shards of documents of 0 to 60 ids; ids count up through the store."""
    builder = Builder(str(uri))
    state, token = np.random.RandomState(1), 0
    for number in range(files):
        made: list[Doc] = []
        for i in range(docs + number % 3):
            length = int(state.randint(0, 60))
            made.append(doc(f"d{number}-{i}", text=np.arange(token, token + length)))
            token += length
        builder.encode("docs", "text", {input_(f"f{number}"): made}, encoding=encoding)
    return builder


def grid_store(uri: str | Path, *, files: int = 5, grids: int = 23) -> Builder:
    """`files` shards of grids of 16 ids; grid i holds 16 i … 16 i + 15."""
    builder, number = Builder(str(uri)), 0
    for file in range(files):
        made = []
        for i in range(grids + file):
            made.append(doc(f"g{file}-{i}", GRID, image=np.arange(number * 16, number * 16 + 16)))
            number += 1
        builder.encode("pics", "image", {input_(f"p{file}"): made}, encoding="plain")
    return builder


def pair_store(uri: str | Path, *, files: int = 4, pairs: int = 11) -> Builder:
    """Images with captions; some captions are missing, some images refused."""
    builder = grid_store(uri, files=0)
    number = token = 0
    state = np.random.RandomState(2)
    for file in range(files):
        made = []
        for i in range(pairs):
            length = int(state.randint(1, 9))
            image = "bad-image" if i == 5 else np.arange(number * 16, number * 16 + 16)
            caption = None if i == 7 else np.arange(token, token + length)
            made.append(doc(f"c{file}-{i}", GRID, image=image, text=caption))
            number, token = number + 1, token + length
        source = input_(f"c{file}")
        builder.encode("pairs", "image", {source: made}, encoding="plain")
        builder.encode("pairs", "text", {source: made}, encoding="zstd", roll_bytes=1)
    return builder


def opened(builder: Builder) -> Dataset:
    return open_store(builder.uri)


def simulated(shards: int, *, samples: int = 1000, width: int = 256) -> pa.Table:
    """The rows of a snapshot of many shards, SNAPSHOT_SCHEMA; nothing lies under its paths."""
    number = np.arange(shards)
    units = number.astype(">u8").view("S8").tolist()
    constant = {
        "pipeline": "pics",
        "stream": "image",
        "encoding": "plain",
        "tokenizer": "grid",
        "modality": "image",
        "space": "ab" * 32,
        "recipe": "cd" * 32,
    }
    columns = {
        "unit": pa.array([u.rjust(16, b"\0") for u in units], pa.binary()),
        "path": pa.array([f"shards/pics/image/{n:032x}-0000-000.arrow" for n in range(shards)]),
        "first_row": np.zeros(shards, np.int64),
        "rows": np.full(shards, samples),
        "samples": np.full(shards, samples),
        "tokens": np.full(shards, samples * width),
        "bytes": np.full(shards, samples * width * 2),
        "content_hash": pa.array([u.rjust(32, b"\1") for u in units], pa.binary()),
        "order_hash": pa.array([u.rjust(16, b"\2") for u in units], pa.binary()),
        "exclude": pa.array([[]] * shards, SNAPSHOT_SCHEMA.field("exclude").type),
        **{k: pa.repeat(pa.scalar(v, pa.string()), shards) for k, v in constant.items()},
    }
    return pa.table({name: columns[name] for name in SNAPSHOT_SCHEMA.names}, SNAPSHOT_SCHEMA)
