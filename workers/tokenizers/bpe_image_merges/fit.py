"""Learning a table of merges from grids of codes. The same grids in the same order: the same file,
whatever the number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Fields
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.keys import MAX_TOKENS
from tokenmill.workers.tokenizers.bpe_image_merges.learn import learn_pairs, learn_regions
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import MergeTable, write_table
from tokenmill.workers.tokenizers.bpe_image_merges.priority import learn_priorities
from tokenmill.workers.tokenizers.bpe_image_merges.settings import FitSettings

CHUNK = 4096  # grids put together at once: one array each costs more than its codes


def fit(samples: Iterator[Fields], out: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Learn from `samples` (field `vq`: integer arrays [H, W]), write a table, return its lineage.

    Samples that are no grids are left out and counted. `config` may also hold `lineage`: JSON
    values of the caller's to be recorded, `codes_space` among them.
    Raises TokenizerError for settings, or grids that give no table.
    """
    given = dict(config)
    origin = dict(given.pop("lineage", {}))
    settings = FitSettings.parse(given)
    if not Path(out).parent.is_dir():
        raise TokenizerError(
            "the folder for the table does not exist",
            where=str(Path(out).parent),
            remedy="create it, or name another file",
        )
    grids, skipped, complete = collect(samples, settings.max_grids)
    if not len(grids):
        raise TokenizerError(
            "there is no grid to learn from",
            why=f"{skipped} samples, all of them no grids of codes",
            remedy="check the stream or the files",
        )
    vocab = _vocab(grids, settings, origin.get("codebook_sizes"))
    rules, counts, merges = _learn(grids, vocab, settings)
    lineage = {
        "grids": len(grids),
        "cells": int(grids.starts[-1]),
        "skipped": skipped,
        "complete": complete,
        "corpus_sha256": corpus_hash(grids),
        # threads change nothing in the result, and must change nothing in the file
        "settings": {k: v for k, v in asdict(settings).items() if k != "workers"},
        "numba": version("numba"),
        **origin,
    }
    table = MergeTable(mode=settings.mode, vocab=vocab, rules=rules, counts=counts, lineage=lineage)
    digest = write_table(table, out)
    return {
        "format": "merges.safetensors",
        "sha256": digest,
        "mode": settings.mode,
        "vocab": vocab,
        "rules": len(rules),
        "merges": int(merges.sum()),
        "tokens_per_grid": round((int(grids.starts[-1]) - int(merges.sum())) / len(grids), 2),
        **lineage,
    }


def collect(samples: Iterator[Fields], most: int | None) -> tuple[Grids, int, bool]:
    """All grids, how many samples were none, and whether all samples were looked at."""
    parts: list[Grids] = []
    chunk: list[NDArray[Any]] = []
    skipped = taken = 0
    complete = True
    for fields in samples:
        if most is not None and taken == most:
            complete = False
            break
        grid = fields["vq"]
        plain = isinstance(grid, np.ndarray) and grid.dtype.kind in "ui" and grid.ndim == 2
        if not plain or not grid.size or int(grid.max()) >= MAX_TOKENS or int(grid.min()) < 0:
            skipped += 1
            continue
        chunk.append(grid)
        taken += 1
        if len(chunk) == CHUNK:
            parts.append(Grids.of(chunk))
            chunk = []
    return Grids.joined([*parts, Grids.of(chunk)]), skipped, complete


def corpus_hash(grids: Grids) -> str:
    """SHA-256 over shapes and codes, in order."""
    digest = hashlib.sha256(np.ascontiguousarray(grids.shapes, "<i4").tobytes())
    digest.update(np.ascontiguousarray(grids.codes, "<i4").view(np.uint8).data)
    return digest.hexdigest()


def _vocab(grids: Grids, settings: FitSettings, codebooks: Any) -> int:
    """What the settings say, or the stream, or the highest code and one more."""
    highest = int(grids.codes.max())
    vocab = settings.vocab
    if vocab is None and isinstance(codebooks, list) and len(codebooks) == 1:
        vocab = int(codebooks[0])
    if vocab is None:
        return highest + 1
    if highest >= vocab:
        raise TokenizerError(
            f"a code is {highest}, and there should be {vocab}",
            where="config.vocab",
            remedy="name the size of the codebook",
        )
    return vocab


def _learn(
    grids: Grids, vocab: int, settings: FitSettings
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    if settings.mode == "region2d":
        return learn_regions(
            grids,
            vocab,
            rules=settings.rules,
            min_count=settings.min_count,
            max_cells=settings.max_cells,
            workers=settings.workers,
        )
    if settings.mode == "being-vl-0.5":
        rules, counts, merges = learn_pairs(
            grids, vocab, rules=settings.rules, workers=settings.workers
        )
        return rules[:, :2].copy(), counts, merges
    found = learn_priorities(
        grids,
        vocab,
        rules=settings.rules,
        alpha=settings.alpha,
        sigma=settings.sigma,
        min_count=settings.min_count,
    )
    return found.rules, found.counts, found.merges
