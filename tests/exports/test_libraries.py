"""Every export opened by the real library, by the very lines that docs/exports.md shows.

parquet, hf and webdataset run everywhere; mds, litdata and megatron where `make test-exports` has
made an environment for each, since their pins conflict with each other and with ours.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.store.built import Builder, doc, input_
from tests.store.test_export_formats import wide
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.export import FORMATS, export

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-exports"
HERE = ("parquet", "hf", "webdataset")


def python_of(name: str) -> str:
    if name in HERE:
        return sys.executable
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} has no environment here: `make test-exports` makes it")
    return str(python)


def documented(name: str) -> str:
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {name}\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def run(name: str, code: str, scratch: Path) -> list[str]:
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python_of(name), "-c", code],
        capture_output=True,
        text=True,
        cwd=scratch,
        env={**os.environ, **quiet, "HOME": str(scratch), "TMPDIR": str(scratch)},
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Several shards and chunks, two streams, samples without tokens and of no tokens."""
    built = Builder(str(tmp_path_factory.mktemp("store")))
    rng = np.random.default_rng(0)
    docs = [
        doc(
            f"d{i}",
            text=None if i % 7 == 3 else rng.integers(0, 60_000, i % 50),
            image="decoder-refused" if i % 11 == 5 else rng.integers(0, 60_000, 2 * (1 + i % 5)),
            shape=(2, 1 + i % 5),
        )
        for i in range(1500)
    ]
    content = {input_("a.tar"): docs[:900], input_("b.tar"): docs[900:]}
    built.encode("docs", "text", content, encoding="zstd")
    built.encode("docs", "image", content, encoding="packed")
    return open_store(built.uri)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_documented_lines_read_every_id(dataset: Dataset, tmp_path: Path, name: str) -> None:
    python_of(name)
    size = 1 << 30 if name == "megatron" else 40_000  # the documented prefix is the first
    report = export(dataset, name, str(tmp_path / "out"), file_bytes=size)
    assert name in ("megatron", "parquet") or len(report.files) > 1
    lines = run(name, documented(name).replace("FOLDER", str(tmp_path / "out")), tmp_path)
    found = []
    for line in lines:
        key, _, ids = line.partition(" ")
        if re.fullmatch(r"d\d+", key):  # libraries also print words of their own
            found.append((key, ast.literal_eval(ids)))
    wanted = [(r.key, None if (i := r["text"]) is None else i.tolist()) for r in dataset]
    assert found == ([pair for pair in wanted if pair[1]] if name == "megatron" else wanted)


SHAPED = {
    "mds": """
from streaming import StreamingDataset
for s in StreamingDataset(local="FOLDER", shuffle=False, batch_size=1):
    print("row", s["id"].hex(), s["image"].dtype, s["image"].shape, s["image"].tolist())
""",
    "litdata": """
from litdata import StreamingDataset
for s in StreamingDataset("FOLDER", shuffle=False):
    print("row", bytes(s["id"]).hex(), s["image"].dtype, s["image"].shape, s["image"].tolist())
""",
    "webdataset": """
import glob, webdataset
for s in webdataset.WebDataset(sorted(glob.glob("FOLDER/*.tar")), shardshuffle=False).decode():
    if "image.npy" in s:
        i = s["image.npy"]
        print("row", s["__key__"], i.dtype, i.shape, i.tolist())
""",
}


@pytest.mark.parametrize("name", sorted(SHAPED))
def test_grids_come_back_with_their_axes_dtype_and_sample_id(
    dataset: Dataset, tmp_path: Path, name: str
) -> None:
    python_of(name)
    export(dataset, name, str(tmp_path / "out"), file_bytes=40_000)
    lines = run(name, SHAPED[name].replace("FOLDER", str(tmp_path / "out")), tmp_path)
    found = [line for line in lines if line.startswith("row ") and "(0,)" not in line]
    wanted = []
    for row in dataset:
        ids, shape = row["image"], row.shape("image")
        if ids is not None and shape is not None:
            grid = ids.reshape(shape)
            wanted.append(f"row {row.id.hex()} uint16 {shape} {grid.tolist()}")
    assert found == wanted


TYPED = {
    "mds": """
from streaming import StreamingDataset
samples = list(StreamingDataset(local="FOLDER", shuffle=False, batch_size=1))
""",
    "litdata": """
from litdata import StreamingDataset
samples = list(StreamingDataset("FOLDER", shuffle=False))
""",
    "hf": """
import datasets, numpy
found = datasets.load_from_disk("FOLDER")
kinds = {name: getattr(f, "feature", f).dtype for name, f in found.features.items()}
samples = [{n: numpy.array(row[n], kinds[n]) for n in STREAMS} for row in found]
""",
}


@pytest.mark.parametrize("name", sorted(TYPED))
def test_every_dtype_comes_back(tmp_path: Path, name: str) -> None:
    python_of(name)
    built = Builder(str(tmp_path / "store"))
    streams = {
        "bytes": ("uint8", [[1, 255], []]),
        "words": ("uint32", [[2**32 - 1], [7, 8]]),
        "longs": ("uint64", [[2**64 - 1, 0], [9]]),
        "latents": ("float32", [[1, 2], [3]]),
    }
    for stream, (dtype, ids) in streams.items():
        wide(built, stream, dtype, ids)
    export(open_store(built.uri), name, str(tmp_path / "out"))
    code = f"STREAMS = {list(streams)}" + TYPED[name].replace("FOLDER", str(tmp_path / "out"))
    code += "for s in samples: print('row', *((str(s[n].dtype), s[n].tolist()) for n in STREAMS))"
    found = [line for line in run(name, code, tmp_path) if line.startswith("row ")]
    assert found == [
        " ".join(
            ["row", *(str((d, np.array(ids[row], d).tolist())) for d, ids in streams.values())]
        )
        for row in range(2)
    ]


TRAINED = """
import numpy, torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

class Tokenizer:
    eod, pad, vocab_size, unique_identifiers = 0, 0, 60_000, {"class": "test"}

config = GPTDatasetConfig(
    random_seed=1, sequence_length=64, split="1,0,0", tokenizer=Tokenizer(),
    reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
    path_to_cache="CACHE", mid_level_dataset_surplus=0.005,
)
low = IndexedDataset("FOLDER/docs-text-00000")
assert low.document_indices.tolist() == list(range(len(low) + 1))
documents = numpy.arange(len(low), dtype=numpy.int32)
dataset = GPTDataset(low, "FOLDER/docs-text-00000", documents, None, Split.train, config)
tokens = numpy.concatenate([dataset[i]["tokens"].numpy() for i in range(len(dataset))])
print("tokens", len(dataset), int(low.sequence_lengths.sum()), len(set(tokens.tolist())))
ids = numpy.concatenate([low[i] for i in range(len(low))])
assert set(tokens.tolist()) <= set(ids.tolist()) | {0}
"""


def test_megatron_trains_from_the_document_index(dataset: Dataset, tmp_path: Path) -> None:
    python_of("megatron")
    export(dataset.select(streams=["text"]), "megatron", str(tmp_path / "out"))
    code = TRAINED.replace("FOLDER", str(tmp_path / "out")).replace("CACHE", str(tmp_path / "c"))
    (line,) = [x for x in run("megatron", code, tmp_path) if x.startswith("tokens ")]
    _, samples, tokens, distinct = line.split()
    assert int(tokens) == sum(len(ids) for r in dataset if (ids := r["text"]) is not None)
    assert int(samples) == (int(tokens) - 1) // 64 and int(distinct) > 1000
