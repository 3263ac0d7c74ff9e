"""A learnt table of merges and its file: plain numbers in safetensors, never code.

    rules   int32[R, 4] rows (a, b, dy, dx), or int32[R, 2] rows (a, b) of modes without direction
    counts  int64[R], how often the pair stood in the corpus when it was chosen (0: not known)
    metadata `tokenmill.merges`: JSON of format, mode, vocab and lineage

Rule r makes the id vocab + r; ids below vocab are the image codes themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.identity import canonical_json, json_hash
from tokenmill.workers.tokenizers.bpe_image_merges.pickled import MAX_BYTES, read_pickled

Mode = Literal["region2d", "being-vl-0.5", "priority"]
MODES: tuple[Mode, ...] = get_args(Mode)
FORMAT = 1
METADATA = "tokenmill.merges"
COLUMNS: Mapping[Mode, int] = {"region2d": 4, "being-vl-0.5": 2, "priority": 2}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MergeTable:
    mode: Mode
    vocab: int
    rules: NDArray[np.int32]
    counts: NDArray[np.int64]
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Codes and merges together."""
        return self.vocab + len(self.rules)

    @property
    def codes_space(self) -> str | None:
        """The space of the codes that it was learnt on, where the fit knew it."""
        found = self.lineage.get("codes_space")
        return found if isinstance(found, str) else None

    def first(self, rules: int) -> MergeTable:
        """The same table cut after so many rules: a smaller vocabulary of the same family."""
        return MergeTable(
            mode=self.mode,
            vocab=self.vocab,
            rules=self.rules[:rules],
            counts=self.counts[:rules],
            lineage=self.lineage,
        )

    def space(self) -> str:
        """64 hex digits: what an id means, given what a code means."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rules, "<i4").tobytes()).hexdigest()
        return json_hash({"merges": self.mode, "vocab": self.vocab, "rules": digest})


def write_table(table: MergeTable, out: str) -> str:
    """Write the file, all or nothing; its SHA-256. The same table gives the same bytes."""
    head = {
        "format": FORMAT,
        "mode": table.mode,
        "vocab": table.vocab,
        "lineage": dict(table.lineage),
    }
    data = save(
        {"rules": np.ascontiguousarray(table.rules), "counts": np.ascontiguousarray(table.counts)},
        {METADATA: canonical_json(head).decode()},
    )
    target = Path(out)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return hashlib.sha256(data).hexdigest()


def read_table(path: Path, *, where: str) -> MergeTable:
    """Our .safetensors, or the pickle of Being-VL-0.5. Raises TokenizerError.

    What the rules say is checked where they are put to use (`BadRule`).
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _refuse(where, f"{size:,} bytes, and {MAX_BYTES:,} are the most")
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":
            return _read_ours(path, where)
        vocab, rules = read_pickled(path.read_bytes(), where=where)
    except OSError as error:
        raise _refuse(where, error.strerror or str(error)) from None
    return MergeTable(
        mode="being-vl-0.5", vocab=vocab, rules=rules, counts=np.zeros(len(rules), np.int64)
    )


def _read_ours(path: Path, where: str) -> MergeTable:
    try:
        with safe_open(str(path), framework="np") as file:
            head = json.loads((file.metadata() or {})[METADATA])
            mode, vocab, version = head["mode"], head["vocab"], head["format"]
            if not isinstance(version, int) or version > FORMAT:
                raise _refuse(where, f"its format is {version!r}, newer than {FORMAT}")
            rules, counts = file.get_tensor("rules"), file.get_tensor("counts")
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _refuse(where, f"{type(error).__name__}: {error}") from None
    if mode not in MODES or not isinstance(vocab, int) or isinstance(vocab, bool) or vocab < 1:
        raise _refuse(where, f"its mode is {mode!r} and its vocab {vocab!r}")
    columns = COLUMNS[cast(Mode, mode)]
    if rules.dtype != np.int32 or rules.ndim != 2 or rules.shape[1] != columns:
        raise _refuse(where, f"its rules are {rules.dtype}{rules.shape}, not int32[R, {columns}]")
    if counts.dtype != np.int64 or counts.shape != (len(rules),):
        raise _refuse(where, f"its counts are {counts.dtype}{counts.shape}")
    lineage = head.get("lineage")
    return MergeTable(
        mode=cast(Mode, mode),
        vocab=vocab,
        rules=rules,
        counts=counts,
        lineage=lineage if isinstance(lineage, dict) else {},
    )


def _refuse(where: str, why: str) -> TokenizerError:
    return TokenizerError(
        "the merge table cannot be read",
        where=where,
        why=why,
        remedy="learn one with `tokenmill fit`, or name the pickle of Being-VL-0.5",
    )
