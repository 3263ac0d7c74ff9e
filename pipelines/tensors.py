"""Batches as torch tensors. torch is imported when a loader asks for it, never before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenmill.schemas.errors import JobError
from tokenmill.store.stream.batch import SequenceBatch
from tokenmill.store.stream.loader import Loader, Tensors


def tensors(kind: str, pinned: bool) -> Tensors | None:
    """None for numpy. Raises JobError for another kind, without torch, and for page-locked memory
    where there is no accelerator."""
    if kind == "torch":
        return TorchTensors(pinned)
    if kind != "numpy":
        raise JobError(f"no tensors of kind {kind!r}", remedy="numpy or torch")
    if pinned:
        raise JobError("page-locked memory needs tensors='torch'")
    return None


class TorchTensors:
    """Zero-copy tensors over the arrays of a batch."""

    def __init__(self, pinned: bool) -> None:
        try:
            self._torch: Any = import_module("torch")
        except ImportError as error:
            raise JobError(
                "tensors='torch' without torch",
                why=str(error),
                remedy="pip install torch, or take numpy arrays",
            ) from None
        if pinned and not self._torch.cuda.is_available():
            raise JobError(
                "page-locked memory needs an accelerator, and torch sees none",
                remedy="leave pinned=False on this machine",
            )
        self._pinned = pinned

    def __getstate__(self) -> dict[str, Any]:
        return {"pinned": self._pinned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._torch, self._pinned = import_module("torch"), state["pinned"]

    def convert(self, batch: SequenceBatch) -> SequenceBatch:
        found = batch.mapped(self._torch.from_numpy)
        return found.pin_memory() if self._pinned else found

    def iterable(self, loader: Loader) -> Any:
        """An IterableDataset whose workers share the loader's steps."""
        return import_module("tokenmill.pipelines.torch_steps").Steps(loader)
