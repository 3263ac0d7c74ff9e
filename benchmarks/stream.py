"""Training loaders side by side: ours, litdata, mosaicml-streaming, webdataset, a bare memory map.

    export PYTHONPATH=.
    python benchmarks/stream.py peers                 # their environment, once (CPU torch first)
    python benchmarks/stream.py all --rounds 3        # speed, resume, worlds, shards

The same tokens for all: grids of 256 ids, and documents that we pack to 4,096 as we go where the
peers (and the memory map) get them packed beforehand. Every subject of every round is a process of
its own, in an order shuffled per round; imports are not counted, CPU is that of all its processes.
Ratios are paired: within a round, then their median, least and most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import measure
import numpy as np
import stream_snapshot

import tokenmill
from tests.conftest import s3 as s3_fixture
from tests.store.built import Builder, Doc, doc, input_
from tokenmill.store.access import Access

HERE = Path(__file__).resolve().parent
PEERS_AT = Path(os.environ.get("TOKENMILL_PEERS", "/tmp/tokenmill-peers-venv"))
PEERS = ("litdata", "mosaicml-streaming", "webdataset")
OURS = (
    "tokenmill",
    "tokenmill-torch",
    "tokenmill-threads",
    "tokenmill-all-fields",
    "tokenmill-whole",
)
GRID, LENGTH, GRID_SIZE, VOCABULARY = 256, 4096, 16_384, 60_000
# Their pins conflict, so they are installed without dependencies, and these by hand.
_INSTALLS = (
    ["torch==2.13.0"],
    ["--no-deps", "litdata==0.2.76", "mosaicml-streaming==0.13.0", "webdataset==1.0.2"],
    ["numpy", "psutil", "lightning-utilities", "filelock", "boto3", "requests", "tifffile"],
    ["obstore", "braceexpand", "pyyaml", "Brotli", "python-snappy", "tqdm", "xxhash", "zstd"],
    ["catalogue", "matplotlib", "transformers"],
)
# mosaicml-streaming imports torchvision for datasets that nobody uses here.
_STAND_IN = {
    "__init__.py": "",
    "datasets.py": "class VisionDataset: ...\nclass CIFAR10: ...\n",
    "transforms/__init__.py": "",
    "transforms/functional.py": "def to_tensor(x): raise NotImplementedError\n",
}


def peers() -> None:
    """The environment of the peers, made with CPU torch and without torchvision."""
    venv.create(PEERS_AT, with_pip=True)
    constraint = PEERS_AT / "constraints.txt"
    constraint.write_text("torch==2.13.0\n")
    pip = [str(PEERS_AT / "bin" / "pip"), "install", "-q", "-c", str(constraint)]
    for packages in _INSTALLS:
        subprocess.run([*pip, *packages], check=True)
    site = next((PEERS_AT / "lib").glob("python*/site-packages"))
    for name, text in _STAND_IN.items():
        path = site / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# -- the data


def make(folder: Path, grids: int, tokens: int) -> None:
    """The same tokens as a store of ours, as raw arrays, and as each peer writes them; what an
    earlier call finished is used again."""
    _once(folder, "store-grids", lambda: _make_grids(folder, grids))
    _once(folder, "store-text", lambda: _make_text(folder, tokens))
    for peer, short in (
        ("litdata", "litdata"),
        ("mosaicml-streaming", "mds"),
        ("webdataset", "wds"),
    ):
        for kind in ("grids", "text"):
            _once(folder, f"{short}-{kind}", lambda p=peer, k=kind: _subject(p, k, "write", folder))


def _once(folder: Path, name: str, write: Callable[[], Any]) -> None:
    if not (folder / f"{name}.made").exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        write()
        (folder / f"{name}.made").touch()


def _make_grids(folder: Path, grids: int) -> None:
    state = np.random.RandomState(0)
    images = (state.zipf(1.2, (grids, GRID)) % GRID_SIZE).astype(np.uint16)
    images.tofile(folder / "grids.raw")
    builder = Builder(str(folder / "store-grids"))
    for number, part in enumerate(np.array_split(images, 4)):
        docs = [doc(f"{number}-{i}", (16, 16), image=ids) for i, ids in enumerate(part)]
        builder.encode("pics", "image", {input_(f"g{number}"): docs}, encoding="plain")


def _make_text(folder: Path, tokens: int) -> None:
    state = np.random.RandomState(1)
    lengths = np.exp(state.uniform(np.log(50), np.log(5000), tokens // 1075)).astype(int)
    text = (state.zipf(1.3, int(lengths.sum())) % VOCABULARY).astype(np.uint16)
    text[: len(text) // LENGTH * LENGTH].astype(np.uint32).tofile(folder / "text.raw")
    builder = Builder(str(folder / "store-text"))
    pieces = np.split(text, np.cumsum(lengths)[:-1])
    each = -(-len(pieces) // 4)
    for number in range(4):
        here = pieces[number * each : (number + 1) * each]
        made: list[Doc] = [doc(f"{number}-{i}", text=ids) for i, ids in enumerate(here)]
        builder.encode("docs", "text", {input_(f"t{number}"): made}, encoding="zstd")


def _subject(
    name: str, kind: str, what: str, folder: Path, *more: str, **settings_: str
) -> dict[str, Any]:
    """One run of a subject in a process of its own. Raises SystemExit where it fails."""
    python = str(PEERS_AT / "bin" / "python") if name in PEERS else sys.executable
    settings = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "" if name in PEERS else str(HERE.parent),
        "TOKENMILL_CACHE": str(folder / "cache"),
        **settings_,
    }
    script = str(HERE / "stream_subjects.py")
    ran = subprocess.run(
        [python, script, name, kind, what, str(folder), *more],
        env=settings,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if ran.returncode:
        raise SystemExit(f"{name} {kind} {what} failed:\n{ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


# -- what is measured


def speed(folder: Path, rounds: int, kinds: Sequence[str] = ("grids", "text")) -> None:
    for kind in kinds:
        names = ["memmap", *OURS, *PEERS]
        if kind == "grids":
            names.remove("tokenmill-whole")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(rounds + 1):
            order = list(names)
            random.Random(number).shuffle(order)
            for name in order:
                row = _subject(name, kind, "speed", folder)
                if number:  # the first round warms page cache and decoded copies
                    found[name].append(row)
        _show_speed(kind, found)


def _show_speed(kind: str, found: dict[str, list[dict[str, Any]]]) -> None:
    unit = "k samples" if kind == "grids" else "M tokens"
    key, scale = ("samples_per_cpu", 1e3) if kind == "grids" else ("tokens_per_cpu", 1e6)
    print(f"\n### {kind}: {unit} per CPU-second, one process\n")
    print("| | per CPU-s | x litdata | x memmap | first batch s | private MB |")
    print("|---|---|---|---|---|---|")
    for name, rows in found.items():
        rate = measure.spread([r[key] / scale for r in rows], 1)
        ratios = [
            measure.spread([r[key] / o[key] for r, o in zip(rows, found[other], strict=True)])
            for other in ("litdata", "memmap")
        ]
        first = measure.spread([r["first_batch_s"] for r in rows], 3)
        memory = f"{max(r['private_mb'] for r in rows):.0f}"
        print(f"| {name} | {rate} | {ratios[0]} | {ratios[1]} | {first} | {memory} |", flush=True)


def resume(folder: Path, rounds: int) -> None:
    print("\n### Resume at 90 % of an epoch: seconds to the first batch\n")
    print("| | grids: wall | CPU | state bytes | text: wall | CPU | state bytes |")
    print("|---|---|---|---|---|---|---|")
    for name in ("tokenmill-torch", "tokenmill-whole", "litdata", "mosaicml-streaming"):
        cells = []
        for kind in ("grids", "text"):
            state = str(folder / f"state-{name}-{kind}")
            saved = _subject(name, kind, "save", folder, state)
            rows = [_subject(name, kind, "resume", folder, state) for _ in range(rounds)]
            cells.append(measure.spread([r["resume_s"] for r in rows], 3))
            cells.append(measure.spread([r["resume_cpu_s"] for r in rows], 3))
            cells.append(str(saved["state"]))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def s3(folder: Path, rounds: int) -> None:
    """From SeaweedFS on this machine, nothing fetched before: what is counted includes fetching.
    litdata is left out: its client did not talk to a server without TLS."""
    print("\n### From SeaweedFS, caches empty: opening and four fifths of an epoch\n")
    print("| | | per CPU-s, opening included | per s | first batch s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary, seaweed(Path(temporary)) as fresh:
        remote = fresh()
        access = Access(remote)
        names = ("store-grids", "store-text", "mds-grids", "mds-text")
        for file in (f for n in names for f in (folder / n).rglob("*")):
            if file.is_file():
                access.put(file, str(file.relative_to(folder)))
        for kind in ("grids", "text"):
            for name in ("tokenmill-torch", "mosaicml-streaming"):
                _show_s3(kind, name, folder, remote, rounds)


def _show_s3(kind: str, name: str, folder: Path, remote: str, rounds: int) -> None:
    rows = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as fetched:
            where = {"STREAM_FETCHED": fetched, "TOKENMILL_CACHE": fetched}
            try:
                row = _subject(name, kind, "speed", folder, STREAM_REMOTE=remote, **where)
            except SystemExit as failed:
                why = [line for line in str(failed).splitlines() if "Error" in line] or ["failed"]
                print(f"| {kind} | {name} | {why[-1][:200]} | | |")
                return
            rows.append(row)
    width = 1 if kind == "grids" else LENGTH
    scale, unit = (1e3, "k samples") if kind == "grids" else (1e6, "M tokens")
    cpu = measure.spread([r["with_opening_per_cpu"] * width / scale for r in rows], 1)
    wall = measure.spread([r["samples_per_s"] * width / scale for r in rows], 1)
    first = measure.spread([r["first_batch_s"] for r in rows], 2)
    print(f"| {kind}, {unit} | {name} | {cpu} | {wall} | {first} |", flush=True)


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Callable[[], str]]:
    """A factory of fresh s3:// roots on the tests' own server, without pytest."""

    class Factory:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

    yield from s3_fixture.__wrapped__(Factory())


def worlds(folder: Path, rounds: int) -> None:
    """The world size changed in mid-epoch: what the ranks gave before and after, counted."""
    grids = tokenmill.open(str(folder / "store-grids"))
    text = tokenmill.open(str(folder / "store-text"))
    kinds: dict[str, Callable[..., Any]] = {
        "samples": lambda **k: grids.loader("image", batch=256, **k),
        "cut to 4,096": lambda **k: text.loader("text", batch=16, sequence=LENGTH, **k),
        "whole in 4,096": lambda **k: text.loader(
            "text", batch=16, sequence=LENGTH, packing="whole", **k
        ),
    }
    print("\n### World size changed at 40 % of an epoch\n")
    print("| | change | given | repeated | lost |\n|---|---|---|---|---|")
    for kind, maker in kinds.items():
        for before, after in ((2, 1), (1, 2), (2, 3)):
            given = _given(maker, before, after)
            whole = _given(maker, 1, 1)
            _, counts = np.unique(given, return_counts=True)
            repeated = int((counts - 1).sum())
            lost = len(set(whole.tolist()) - set(given.tolist()))
            print(f"| {kind} | {before} -> {after} | {len(given):,} | {repeated} | {lost} |")
    _mixed_worlds(folder)


def _given(maker: Callable[..., Any], before: int, after: int) -> np.ndarray[Any, Any]:
    """A number for every piece of a sample that came: its id and where it was cut."""
    step = int(maker().last_step * 0.4)
    pieces: list[int] = []
    states = []
    for rank in range(before):
        loader = maker(rank=rank, world=before)
        pieces += _pieces(islice(loader, step))
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states)
    for rank in range(after):
        loader = maker(rank=rank, world=after)
        loader.load_state_dict(json.loads(json.dumps(states[0])))
        pieces += _pieces(loader)
    return np.array(pieces)


def _pieces(batches: Iterator[Any]) -> Iterator[int]:
    for batch in batches:
        for number, id in enumerate(batch.ids):
            row, start, stop = number, 0, None
            if batch.documents is not None:
                row, start, stop = batch.documents[number].tolist()
            tokens = batch.tokens[row, start:stop]
            yield hash((id.tobytes(), tokens.tobytes()))


def _mixed_worlds(folder: Path) -> None:
    """A mixture never ends: the global sequence of 200 steps is compared slot by slot."""
    data = tokenmill.open(str(folder / "store-text"))
    parts = [
        tokenmill.Part(streams="text", weight=2, name="all"),
        tokenmill.Part(streams="text", weight=1, name="some", where="samples > 0"),
    ]

    def maker(**ranks: int) -> Any:
        return data.loader(parts=parts, batch=12, sequence=1024, steps=200, **ranks)

    def slots(worlds_: Sequence[tuple[int, int]]) -> dict[int, int]:
        state, found = None, {}
        for world, steps in worlds_:
            loaders = [maker(rank=r, world=world) for r in range(world)]
            for rank, loader in enumerate(loaders):
                if state is not None:
                    loader.load_state_dict(state)
                for batch in islice(loader, steps):
                    for i, tokens in enumerate(batch.tokens):
                        slot = batch.step * 12 + rank + i * world
                        assert slot not in found
                        found[slot] = hash(tokens.tobytes())
            state = loaders[0].state_dict()
        return found

    whole = slots([(1, 200)])
    for before, after in ((2, 1), (1, 2), (2, 3)):
        found = slots([(before, 80), (after, 120)])
        wrong = sum(found.get(slot) != value for slot, value in whole.items())
        print(f"| mixture 2:1, cut | {before} -> {after} | {len(found):,} | 0 | {wrong} |")


def shards(folder: Path, rounds: int) -> None:
    print("\n### A snapshot of many shards (1,000 grids each)\n")
    print(
        "| shards | open s | loader s | first batch s | resume at 90 % s | order of an epoch s "
        "| locate 1,000 slots ms | private MB |\n|---|---|---|---|---|---|---|---|"
    )
    for count in (10_000, 1_000_000):
        root = folder / f"many-{count}"
        snapshot = stream_snapshot.make(root, count)
        rows = [_snapshot_row(root, snapshot) for _ in range(rounds)]
        cells = [
            measure.spread([r[key] for r in rows], 3)
            for key in ("open", "loader", "first", "resume", "order", "locate_ms")
        ]
        memory = f"{max(r['private_mb'] for r in rows):.0f}"
        print(f"| {count:,} | {' | '.join(cells)} | {memory} |", flush=True)


def _snapshot_row(root: Path, snapshot: str) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, str(HERE / "stream_snapshot.py"), str(root), snapshot],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = {
        "speed": speed,
        "grids": lambda *a: speed(*a, kinds=["grids"]),
        "text": lambda *a: speed(*a, kinds=["text"]),
        "resume": resume,
        "worlds": worlds,
        "shards": shards,
        "s3": s3,
    }
    parser.add_argument("what", choices=["peers", "all", *what])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grids", type=int, default=120_000)
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--folder", type=Path, help="keep the data there and use it again")
    asked = parser.parse_args()
    if asked.what == "peers":
        return peers()
    with tempfile.TemporaryDirectory(prefix="tokenmill-stream-") as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if asked.what != "shards":
            make(folder, asked.grids, asked.tokens)
        print(f"{measure.machine()}; load {measure.load():.1f}")
        for name, measured in what.items():
            if asked.what == name or (asked.what == "all" and name not in ("grids", "text")):
                measured(folder, asked.rounds)


if __name__ == "__main__":
    main()
