"""What a VQ-GAN checkpoint is, inferred from the names and shapes of its tensors. No torch.

Names are those of the taming layout ("canonical"); other families are renamed to it first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokenmill.schemas.errors import TokenizerError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

CODEBOOK = "quantize.embedding.weight"
GROUPS = 32  # of every GroupNorm: widths are multiples of it
# A level halves the picture; more than this, or such widths, is a damaged or hostile file.
_MOST_LEVELS, _MOST_BLOCKS, _MOST_WIDTH = 10, 64, 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """One half of the network. Level 0 has the picture's resolution.

    stem: channels next to the picture (encoder: after conv_in; decoder: before conv_out).
    widths: channels by level. blocks: residual blocks of each level. attention: by level.
    """

    stem: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A VQ-GAN: `normalised` codes are compared after scaling codes and latents to unit length."""

    encoder: Stack
    decoder: Stack | None
    z_channels: int
    codes: int
    dim: int
    normalised: bool

    @property
    def factor(self) -> int:
        """Pixels per code along each side."""
        return 1 << (len(self.encoder.widths) - 1)


def infer(shapes: Shapes, *, normalised: bool, where: str) -> Layout:
    """The layout of canonical names. Raises TokenizerError naming the tensor that is missing.

    Sizes come from the tensors; whether every tensor is there and fits is for the graph to say.
    """
    codes, dim = _shape(shapes, CODEBOOK, 2, where)
    encoder = _stack(shapes, "encoder.down", "encoder.conv_in", where)
    has_decoder = any(name.startswith("decoder.") for name in shapes)
    return Layout(
        encoder=encoder,
        decoder=_stack(shapes, "decoder.up", "decoder.norm_out", where) if has_decoder else None,
        z_channels=_shape(shapes, "encoder.conv_out.weight", 4, where)[0],
        codes=codes,
        dim=dim,
        normalised=normalised,
    )


def _stack(shapes: Shapes, prefix: str, stem: str, where: str) -> Stack:
    levels = 1 + _highest(shapes, prefix, where)
    first = f"{prefix}.{{}}.block.0.conv1.weight"
    widths = tuple(_shape(shapes, first.format(i), 4, where)[0] for i in range(levels))
    blocks = 1 + max(_highest(shapes, f"{prefix}.{i}.block", where) for i in range(levels))
    kind = 4 if stem.endswith("conv_in") else 1
    found = _shape(shapes, f"{stem}.weight", kind, where)[0]
    if levels > _MOST_LEVELS or blocks > _MOST_BLOCKS or max(*widths, found) > _MOST_WIDTH:
        raise _refusal(
            f"{levels} levels of {blocks} blocks, {max(widths)} channels: too large", where
        )
    if any(width % GROUPS for width in (*widths, found)):
        raise _refusal(f"channels of {prefix} are {widths}, not multiples of {GROUPS}", where)
    attention = tuple(f"{prefix}.{i}.attn.0.norm.weight" in shapes for i in range(levels))
    return Stack(stem=found, widths=widths, blocks=blocks, attention=attention)


def _highest(shapes: Shapes, prefix: str, where: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
    numbers = [int(m[1]) for name in shapes if (m := pattern.match(name))]
    if not numbers:
        raise _refusal(f"it has no {prefix}.*", where)
    return max(numbers)


def _shape(shapes: Shapes, name: str, dims: int, where: str) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise _refusal(f"it has no {name}", where)
    if len(shape) != dims or 0 in shape:
        raise _refusal(f"{name} has the shape {list(shape)}", where)
    return shape


def _refusal(why: str, where: str) -> TokenizerError:
    return TokenizerError(
        "the checkpoint is no VQ-GAN that bpe-image knows",
        where=where,
        why=why,
        remedy="it reads Chameleon and taming VQGANs, LlamaGen VQ-16 and VQ-8, Janus",
    )
