"""A loaded VQ-GAN: pixels to codes and back, exactly as its checkpoint means it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image.checkpoint import file_sha256, open_checkpoint
from tokenmill.workers.tokenizers.bpe_image.families import Recognised, recognise
from tokenmill.workers.tokenizers.bpe_image.graph import VqGan
from tokenmill.workers.tokenizers.bpe_image.layout import CODEBOOK, Layout
from tokenmill.workers.tokenizers.bpe_image.presets import PRESETS
from tokenmill.workers.tokenizers.bpe_image.quantizer import code_vectors, nearest

METADATA = "tokenmill"  # entry of our own .safetensors: JSON with preset, size and lineage
# What makes an id mean what it means; an encode-only file has the same space as the whole one.
_MEANING = ("encoder.", "quant_conv.", "quantize.")


class VqModel:
    """Made by `load_vq`. Calls are under `torch.inference_mode` of the caller."""

    def __init__(self, network: VqGan, layout: Layout) -> None:
        self.layout = layout
        self.network = network.eval().requires_grad_(False)
        weight = network.quantize.embedding.weight
        self.table = code_vectors(weight, normalised=layout.normalised)

    def to(self, device: torch.device, dtype: torch.dtype) -> VqModel:
        """Networks in `dtype`; the codebook and the search stay float32."""
        self.network.to(device=device, dtype=dtype)
        self.table = self.table.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.quant_conv.weight.dtype

    def latents(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] float32 in [-1, 1], sides multiples of the factor -> float32 [B, d, h, w],
        after quant_conv."""
        z = self.network.encoder(pixels.to(self.device, self.dtype))
        latents: Tensor = self.network.quant_conv(z)
        return latents.float()

    def encode(self, pixels: Tensor) -> Tensor:
        """int64 [B, h, w]: the codes of `latents`."""
        return nearest(self.latents(pixels), self.table, normalised=self.layout.normalised)

    def quantized(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> float32 [B, d, h, w]: the rows of the codebook."""
        return functional.embedding(codes.to(self.device), self.table).permute(0, 3, 1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> float32 [B, 3, H, W], not clamped. Raises TokenizerError for a
        checkpoint without a decoder."""
        if self.layout.decoder is None:
            raise TokenizerError(
                "this checkpoint has no decoder",
                why="it was converted for encoding only",
                remedy="decode with the whole checkpoint: its tokens are of the same space",
            )
        z = self.network.post_quant_conv(self.quantized(codes).to(self.dtype).contiguous())
        pixels: Tensor = self.network.decoder(z)
        return pixels.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model and what its file was. preset, size: the file's own, or its family's."""

    model: VqModel
    found: Recognised
    space: str
    sha256: str | None
    preset: str
    size: int


def load_vq(path: Path, where: str) -> Loaded:
    """Reads, recognises and checks a checkpoint. Raises TokenizerError."""
    tensors = open_checkpoint(path, where)
    found = recognise(tensors.shapes, where=where)
    network = empty(found.layout)
    _check_names(network, found, tensors.shapes, where)
    read = tensors.read(found.names.values())
    state = {name: read[full] for name, full in found.names.items()}
    _check_values(state, where)
    space = space_hash(found.family, state)
    network.load_state_dict({n: t.float() for n, t in state.items()}, strict=True, assign=True)
    preset, size = _defaults(tensors.metadata, found, where)
    return Loaded(
        model=VqModel(network, found.layout),
        found=found,
        space=space,
        sha256=file_sha256(path),
        preset=preset,
        size=size,
    )


def _defaults(metadata: Mapping[str, str], found: Recognised, where: str) -> tuple[str, int]:
    if METADATA not in metadata:
        return found.preset, found.size
    try:
        own = json.loads(metadata[METADATA])
        preset, size = str(own["preset"]), int(own["size"])
    except (ValueError, TypeError, KeyError):
        preset, size = "", 0
    if preset not in PRESETS or not 0 < size <= 1 << 13:
        raise TokenizerError(
            f"the file's entry {METADATA!r} is damaged", where=where, why=metadata[METADATA][:100]
        )
    return preset, size


def empty(layout: Layout) -> VqGan:
    """The network without values."""
    with torch.device("meta"):
        return VqGan(layout)


def space_hash(family: str, state: Mapping[str, Tensor]) -> str:
    """64 hex digits over the float32 values that give ids their meaning, by canonical name."""
    digest = hashlib.sha256(f"tokenmill vq-gan 1\0{family}\0".encode())
    for name in sorted(n for n in state if n.startswith(_MEANING)):
        values = state[name].detach().float().contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name}:{list(values.shape)}\0".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _check_names(
    network: VqGan, found: Recognised, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Every tensor of the network is there, with its shape, and no other."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    faults = [f"no {name}" for name in sorted(wanted.keys() - found.names.keys())]
    faults += [f"unknown {name}" for name in sorted(found.names.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.names.keys()):
        shape = tuple(shapes[found.names[name]])
        if shape != wanted[name]:
            faults.append(f"{name} has the shape {list(shape)}, not {list(wanted[name])}")
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise TokenizerError(
            f"the checkpoint is not a whole {found.family} VQ-GAN",
            where=where,
            why="; ".join(faults[:4]) + more,
            remedy="take the file as it was published; a decoder may be missing only as a whole",
        )


def _check_values(state: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise TokenizerError(
                f"the tensor {name} holds no finite numbers", where=where, why=str(tensor.dtype)
            )
    if not bool(state[CODEBOOK].any()):
        raise TokenizerError("the codebook is all zero", where=where)
