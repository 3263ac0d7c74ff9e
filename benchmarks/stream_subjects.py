"""One subject of stream.py in a process of its own: opens its loader, counts, prints one JSON line.

    python stream_subjects.py SUBJECT KIND WHAT FOLDER [STATE]

KIND: grids | text. WHAT: speed | save | resume | write. Run by stream.py, the peers with the
Python of their own environment; nothing of tokenmill is imported for them.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

GRID, LENGTH = 256, 4096
BATCH = {"grids": 256, "text": 16}
WIDTH = {"grids": GRID, "text": LENGTH}
SEED = 7
SHARE = 0.8  # of an epoch is measured, or what LONGEST CPU-seconds are enough for
LONGEST = 2.0
# Where the data lies in an object store; what is fetched goes to FETCHED, empty at the start.
REMOTE, FETCHED = os.environ.get("STREAM_REMOTE", ""), os.environ.get("STREAM_FETCHED", "")
Opened = tuple[Iterator[int], Callable[[], Any] | None]  # batch sizes, what saves the state


def _rows(folder: str, kind: str) -> np.ndarray[Any, Any]:
    """The samples as the peers hold them: grids, or text packed to 4,096 beforehand."""
    dtype = np.uint16 if kind == "grids" else np.uint32
    return np.memmap(f"{folder}/{kind}.raw", dtype, "r").reshape(-1, WIDTH[kind])


# -- subjects: each opens its loader as its documentation says


def memmap(folder: str, kind: str, state: Any) -> Opened:
    """The floor: one gather per batch from one memory map, a permutation in memory."""
    rows = _rows(folder, kind)
    order = np.random.default_rng(SEED).permutation(len(rows))
    seen = [state or 0]

    def batches() -> Iterator[int]:
        for start in range(seen[0], len(rows) - BATCH[kind] + 1, BATCH[kind]):
            found = rows[order[start : start + BATCH[kind]]]
            seen[0] = start + BATCH[kind]
            yield len(found)

    return batches(), lambda: seen[0]


def tokenmill(folder: str, kind: str, state: Any, **settings: Any) -> Opened:
    import tokenmill as library

    packed: dict[str, Any] = {"fields": ()}
    if kind == "text":  # int32, as many bytes as the others give
        packed = {"sequence": LENGTH, "fields": ("cu_seqlens",), "dtype": "int32"}
    dataset = library.open(f"{REMOTE or folder}/store-{kind}")
    stream = "image" if kind == "grids" else "text"
    loader = dataset.loader(
        stream, batch=BATCH[kind], seed=SEED, **{"threads": 0, **packed, **settings}
    )
    if state is not None:
        loader.load_state_dict(state)
    return (len(batch) for batch in loader), loader.state_dict


def tokenmill_torch(folder: str, kind: str, state: Any) -> Opened:
    return tokenmill(folder, kind, state, tensors="torch")


def tokenmill_threads(folder: str, kind: str, state: Any) -> Opened:
    return tokenmill(folder, kind, state, tensors="torch", threads=1)


def tokenmill_all_fields(folder: str, kind: str, state: Any) -> Opened:
    wanted: dict[str, Any] = {"fields": ("ids",)}
    if kind == "text":
        wanted["fields"] = ("ids", "documents", "positions", "loss_mask", "cu_seqlens")
    return tokenmill(folder, kind, state, tensors="torch", **wanted)


def tokenmill_whole(folder: str, kind: str, state: Any) -> Opened:
    packing: dict[str, Any] = {"packing": "whole"} if kind == "text" else {}
    return tokenmill(folder, kind, state, tensors="torch", **packing)


def litdata(folder: str, kind: str, state: Any) -> Opened:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    item: dict[str, Any] = {"item_loader": TokensLoader(LENGTH)} if kind == "text" else {}
    data = StreamingDataset(
        f"{folder}/litdata-{kind}", shuffle=True, seed=SEED, drop_last=False, **item
    )
    loader = StreamingDataLoader(data, batch_size=BATCH[kind], num_workers=0)
    if state is not None:
        loader.load_state_dict(state)
    return (len(b if kind == "text" else b["tokens"]) for b in loader), loader.state_dict


def mosaicml(folder: str, kind: str, state: Any) -> Opened:
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    places = {"local": f"{folder}/mds-{kind}"}
    if REMOTE:
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        places = {"local": f"{FETCHED}/mds", "remote": f"{REMOTE}/mds-{kind}"}
    data = StreamingDataset(**places, shuffle=True, shuffle_seed=SEED, batch_size=BATCH[kind])
    loader = StreamingDataLoader(data, batch_size=BATCH[kind], num_workers=0)
    if state is not None:
        loader.load_state_dict(state)
    return (len(b["tokens"]) for b in loader), loader.state_dict


def webdataset(folder: str, kind: str, state: Any) -> Opened:
    import torch
    import webdataset as wds

    dtype = np.uint16 if kind == "grids" else np.uint32

    def decoded(sample: dict[str, Any]) -> Any:  # a tuple: its collation takes samples as rows
        return (torch.from_numpy(np.frombuffer(sample["bin"], dtype).copy()),)

    tars = sorted(str(tar) for tar in Path(f"{folder}/wds-{kind}").glob("*.tar"))
    data = wds.WebDataset(tars, shardshuffle=100, seed=SEED, empty_check=False)
    data = data.shuffle(1000, seed=SEED).map(decoded).batched(BATCH[kind])
    return (len(b[0]) for b in wds.WebLoader(data, batch_size=None, num_workers=0)), None


SUBJECTS: dict[str, Callable[[str, str, Any], Opened]] = {
    "memmap": memmap,
    "tokenmill": tokenmill,
    "tokenmill-torch": tokenmill_torch,
    "tokenmill-threads": tokenmill_threads,
    "tokenmill-all-fields": tokenmill_all_fields,
    "tokenmill-whole": tokenmill_whole,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml,
    "webdataset": webdataset,
}


# -- what is measured


def _imported(subject: str) -> None:
    """Imports are not what is compared."""
    if subject.startswith("tokenmill"):
        import tokenmill as library

        assert library.open
    if subject not in ("memmap", "tokenmill"):
        import torch

        torch.set_num_threads(1)
    if subject == "litdata":
        import litdata  # noqa: F401
    if subject == "mosaicml-streaming":
        import streaming  # noqa: F401
    if subject == "webdataset":
        import webdataset  # noqa: F401


def _cpu() -> float:
    times = [p.cpu_times() for p in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(t.user + t.system for t in times)


def speed(subject: str, kind: str, folder: str) -> dict[str, Any]:
    total = len(_rows(folder, kind))
    wall, cpu = time.perf_counter(), _cpu()
    batches, _ = SUBJECTS[subject](folder, kind, None)
    next(batches)
    first, first_cpu = time.perf_counter() - wall, _cpu() - cpu
    count, wall, cpu = 0, time.perf_counter(), _cpu()
    enough = time.process_time() + LONGEST
    for size in batches:
        count += size
        if count >= SHARE * total or time.process_time() > enough:
            break
    used = _cpu() - cpu
    memory = psutil.Process().memory_full_info()
    return {
        "samples_per_cpu": count / used,
        "tokens_per_cpu": count * WIDTH[kind] / used,
        "with_opening_per_cpu": (count + BATCH[kind]) / (used + first_cpu),
        "samples_per_s": count / (time.perf_counter() - wall),
        "first_batch_s": first,
        "rss_mb": memory.rss / 1e6,
        "private_mb": memory.uss / 1e6,
    }


def save(subject: str, kind: str, folder: str, state: str) -> dict[str, Any]:
    """Nine tenths of an epoch, then the state to a file."""
    total = len(_rows(folder, kind))
    batches, get = SUBJECTS[subject](folder, kind, None)
    count = 0
    for size in batches:
        count += size
        if count >= 0.9 * total:
            break
    if get is None:
        return {"state": None}
    Path(state).write_bytes(pickle.dumps(get()))
    return {"state": Path(state).stat().st_size, "samples": count}


def resume(subject: str, kind: str, folder: str, state: str) -> dict[str, Any]:
    saved = pickle.loads(Path(state).read_bytes())
    wall, cpu = time.perf_counter(), _cpu()
    batches, _ = SUBJECTS[subject](folder, kind, saved)
    next(batches)
    return {"resume_s": time.perf_counter() - wall, "resume_cpu_s": _cpu() - cpu}


def write(subject: str, kind: str, folder: str) -> dict[str, Any]:
    """The peers' data, by their own writers with their own sizes of chunks and shards."""
    rows = _rows(folder, kind)
    if subject == "litdata":
        _write_litdata(rows, kind, f"{folder}/litdata-{kind}")
    elif subject == "mosaicml-streaming":
        from streaming import MDSWriter

        column = f"ndarray:{rows.dtype.name}:{WIDTH[kind]}"
        with MDSWriter(out=f"{folder}/mds-{kind}", columns={"tokens": column}) as writer:
            for row in rows:
                writer.write({"tokens": np.array(row)})
    elif subject == "webdataset":
        import webdataset as wds

        Path(f"{folder}/wds-{kind}").mkdir()
        pattern = f"{folder}/wds-{kind}/s-%05d.tar"
        with wds.ShardWriter(pattern, maxcount=10_000, maxsize=64e6, verbose=0) as tars:
            for i, row in enumerate(rows):
                tars.write({"__key__": f"{i:09d}", "bin": row.tobytes()})
    return {"written": len(rows)}


def _write_litdata(rows: np.ndarray[Any, Any], kind: str, folder: str) -> None:
    import torch
    from litdata import TokensLoader
    from litdata.streaming.cache import Cache

    item: dict[str, Any] = {"item_loader": TokensLoader(LENGTH)} if kind == "text" else {}
    cache = Cache(folder, chunk_bytes="64MB", **item)
    for i, row in enumerate(rows):
        if kind == "text":
            cache[i] = torch.from_numpy(row.astype(np.int32))
        else:
            cache[i] = {"tokens": np.array(row)}
    cache.done()
    cache.merge()


def main() -> None:
    subject, kind, what, folder, *state = sys.argv[1:]
    _imported(subject)
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "speed": speed,
        "save": save,
        "resume": resume,
        "write": write,
    }
    found = actions[what](subject, kind, folder, *state)
    print(json.dumps({"subject": subject, "kind": kind, "what": what, **found}), flush=True)
    os._exit(0)  # as a killed run would: some peers leave threads behind


if __name__ == "__main__":
    main()
