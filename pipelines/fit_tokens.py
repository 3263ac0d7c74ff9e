"""Learning from tokens instead of media: merges from a committed stream, or from files of grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError, TokenizerError
from tokenmill.schemas.tokenizer import Fields, Fits
from tokenmill.store.access import Access
from tokenmill.store.choosing import choose_snapshot
from tokenmill.store.dataset import Dataset
from tokenmill.store.rows import Column
from tokenmill.store.shards import ShardReader
from tokenmill.workers import registry


def fit_from_store(
    name: str,
    store: str,
    stream: str,
    out: str,
    config: Mapping[str, Any],
    *,
    pipeline: str | None = None,
    tag: str | None = None,
    snapshot: str | None = None,
) -> Mapping[str, Any]:
    """Let the plug-in `name` learn from a stream's tokens; its lineage, which names the snapshot.

    pipeline: only this one's; left out, all pipelines' that have the stream.
    Raises TokenizerError where the plug-in does not learn from tokens, StoreError, JobError for
    unknown names, SpaceMismatch where the stream holds tokens of two spaces.
    """
    cls, role = _learner(name)
    access = Access(store)
    dataset = Dataset(access, choose_snapshot(access, tag, snapshot, pin=True))
    dataset = dataset.select(pipeline=pipeline, streams=[stream])
    dataset.check_spaces([stream])
    lineage = {
        "store": access.uri,
        "stream": stream,
        "snapshot": dataset.snapshot,
        "pipelines": list(dataset.pipelines),
        "codes_space": dataset.spaces[stream][0],
        "codes_recipes": sorted(dataset.recipes[stream]),
        "codebook_sizes": list(_codebooks(access, dataset)),
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    return cls.fit(_tokens(dataset, stream, role), out, {**config, "lineage": lineage})


def fit_from_files(
    name: str, files: Sequence[str], out: str, config: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Let the plug-in learn from .npy files of codes: [H, W], or [n, H, W] for n grids each.

    Raises TokenizerError where the plug-in does not learn from tokens, JobError for a file.
    """
    cls, role = _learner(name)
    for file in files:
        _opened(file)  # a mistake is found before the first of them is read
    lineage = {"files": [Path(file).name for file in files]}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    return cls.fit(_grids(files, role), out, {**config, "lineage": lineage})


def _learner(name: str) -> tuple[type[Fits], str]:
    """The class, and what it calls its parent's tokens."""
    cls = registry.tokenizer_class(name)
    role = cls.describe({}).parent
    if role is None or not (isinstance(cls, type) and issubclass(cls, Fits)):
        raise TokenizerError(
            f"{name} does not learn from tokens",
            remedy="learn from a job's source: --job, without --store, --stream and --grids",
        )
    return cls, role


def _codebooks(access: Access, dataset: Dataset) -> tuple[int, ...]:
    path = dataset.snapshot_table()["path"][0].as_py()
    with ShardReader(access, path) as reader:
        return reader.meta.codebook_sizes


def _tokens(dataset: Dataset, stream: str, role: str) -> Iterator[Fields]:
    """Ids of every sample with their axes, in the snapshot's order."""
    for column in dataset.columns(stream):
        for ids in _samples(column):
            yield {role: ids}


def _samples(column: Column) -> Iterator[NDArray[Any]]:
    shapes = None if column.shapes is None else column.shapes.tolist()
    for i, ((start, stop), code) in enumerate(
        zip(pairwise(column.bounds), column.codes, strict=True)
    ):
        if code == 0:
            ids = column.values[start:stop]
            yield ids if shapes is None else ids.reshape(shapes[i])


def _grids(files: Sequence[str], role: str) -> Iterator[Fields]:
    for file in files:
        array = _opened(file)
        for grid in array if array.ndim == 3 else [array]:
            yield {role: np.asarray(grid)}


def _opened(file: str) -> NDArray[Any]:
    """Mapped, not read. Raises JobError."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise JobError("a file of grids cannot be read", where=file, why=str(error)) from None
    if (
        not isinstance(array, np.ndarray)
        or array.ndim not in (2, 3)
        or array.dtype.kind not in "ui"
    ):
        kind = getattr(array, "shape", type(array).__name__)
        raise JobError(
            "this is no file of grids",
            where=file,
            why=f"found {getattr(array, 'dtype', '')}{kind}",
            remedy="save whole numbers of the shape [n, H, W] or [H, W] with numpy.save",
        )
    return array
