"""One step's share of sequences, as arrays (numpy, or what the caller's converter makes)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

FIELDS = (
    "ids",
    "documents",
    "positions",
    "loss_mask",
    "labels",
    "modality",
    "cu_seqlens",
    "spans",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceBatch:
    """b sequences of W tokens; the fields that were not asked for are None.

    step: its number. slot: the first slot after it: what a resumed loader begins with.
    tokens: [b, W]. lengths: int32[b], tokens that are no padding.
    documents: int32[d, 3], (sequence, start, stop) of each sample's part, in order; ids:
    uint8[d, 16], the sample that it comes from. positions: int32[b, W], from 0 in every document.
    loss_mask: bool[b, W], tokens that are learnt. labels: int64[b, W], the next token where it is
    learnt and of the same document, else -100. modality: uint8[b, W], number of the stream
    (`loader.codes`), 0 for padding. cu_seqlens: int32[d + 1], where documents (and paddings) begin
    in the flat batch, for attention kernels of variable length; max_seqlen: the longest.
    spans: int32[s, 4], (sequence, start, stop, stream number) of each stream's part.
    """

    step: int
    slot: int
    tokens: Any
    lengths: Any
    ids: Any = None
    documents: Any = None
    positions: Any = None
    loss_mask: Any = None
    labels: Any = None
    modality: Any = None
    cu_seqlens: Any = None
    max_seqlen: int | None = None
    spans: Any = None

    def __len__(self) -> int:
        return len(self.tokens)

    def mapped(self, convert: Callable[[Any], Any]) -> Self:
        """The same batch with every array converted."""
        arrays = {
            f.name: convert(value)
            for f in fields(self)
            if hasattr(value := getattr(self, f.name), "shape")
        }
        return replace(self, **arrays)

    def pin_memory(self) -> Self:
        """With its tensors in page-locked memory; torch's DataLoader calls this."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: Any, non_blocking: bool = True) -> Self:
        """With its tensors on a device of torch."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))
