"""How many samples, tokens and packs each span gives, where the snapshot alone cannot say.

A split, a cut, whole-sample packing, superseded rows or missing streams need a look into the shards
(ids and lengths, not values), once per snapshot and selection: the result is kept in the store as
`census/<hash>.arrow`, so that other ranks, runs and epochs need not look again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenmill.schemas.errors import StoreError, StoreUnavailable
from tokenmill.store.access import Access

FOLDER = "census"
_SCHEMA = pa.schema([("samples", pa.int64()), ("tokens", pa.int64()), ("packs", pa.int64())])
_LOG = logging.getLogger("tokenmill.loader")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Census:
    """Per span int64: samples that take part, their tokens with specials, packs (0 if none)."""

    samples: NDArray[np.int64]
    tokens: NDArray[np.int64]
    packs: NDArray[np.int64]


def take_census(
    access: Access,
    key: str,
    spans: int,
    count: Callable[[int], tuple[int, int, int]],
    threads: int,
) -> Census:
    """The census called `key` (64 hex digits over all that it depends on), counted and kept if it
    is not there. count: (samples, tokens, packs) of one span; called from several threads.

    Raises what `count` raises, StoreUnavailable.
    """
    path = f"{FOLDER}/{key}.arrow"
    found = _read(access, path, spans)
    if found is not None:
        return found
    _LOG.info("counting the samples of %d runs of rows, once for this selection", spans)
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="tokenmill-census") as pool:
        rows = np.array(list(pool.map(count, range(spans))), np.int64).reshape(-1, 3)
    census = Census(samples=rows[:, 0], tokens=rows[:, 1], packs=rows[:, 2])
    try:
        access.create(path, _bytes(census))
    except StoreUnavailable:
        raise
    except StoreError as refused:
        _LOG.warning(
            "this store may not be written: the next start counts again (%s)", refused.what
        )
    return census


def _read(access: Access, path: str, spans: int) -> Census | None:
    """None where there is none, or none that can be believed: it is counted again then."""
    try:
        data = access.read(path)
    except FileNotFoundError:
        return None
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError):
        _LOG.warning("%s cannot be read: counting again", access.full(path))
        return None
    if table.schema != _SCHEMA or table.num_rows != spans or any(c.null_count for c in table):
        _LOG.warning("%s is not a census of this snapshot: counting again", access.full(path))
        return None
    samples, tokens, packs = (np.asarray(c.to_numpy(), np.int64) for c in table.columns)
    return Census(samples=samples, tokens=tokens, packs=packs)


def _bytes(census: Census) -> bytes:
    sink = io.BytesIO()
    table = pa.table([census.samples, census.tokens, census.packs], schema=_SCHEMA)
    with pa.ipc.new_file(
        sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(table)
    return sink.getvalue()
