"""Where `fit` begins: weights that already code the colours of each block, to be learnt on from.

Residual branches begin as the identity (as in the official training). What is left of the network
is linear but for the two last norms, so eight channels can be set by hand to carry brightness, two
colour differences, their negatives, and a constant +C and -C: averaged on the way down,
interpolated on the way up. The constant dominates the variance, so LayerNorm divides by nearly the
same number everywhere; and since silu(x) - silu(-x) = x, the pairs pass through the activation
unchanged. A few CPU-minutes then start from a blurred picture instead of from noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.workers.tokenizers.vidtok.layers import (
    FrameAttention,
    FrameBlock,
    SpaceDown,
    SpaceUp,
    TimeBlock,
    TimeDown,
    TimeUp,
)
from tokenmill.workers.tokenizers.vidtok.model import VidTok

CARRIED = 8  # Y, B - Y, R - Y, their negatives, +C, -C
C = 4.0
_LUMA = (0.30, 0.59, 0.11)
_OTHERS = 0.3  # how strongly all other channels begin


@torch.no_grad()
def begin(model: VidTok) -> None:
    """Set the weights of a new causal v1.1 FSQ model of at least four dimensions."""
    encoder, decoder = model.encoder, model.decoder
    for module in model.modules():
        _pass_through(module)
    _from_pixels(_conv(encoder.conv_in))
    _to_latents(_conv(encoder.conv_out), encoder.norm_out.norm.weight.shape[0])
    _from_codes(_conv(decoder.conv_in))
    _to_pixels(_conv(decoder.conv_out), decoder.norm_out.norm.weight.shape[0])


def _pass_through(module: nn.Module) -> None:
    if isinstance(module, (FrameBlock, TimeBlock)):
        for parameter in module.conv2.parameters():
            nn.init.zeros_(parameter)
        if isinstance(module, FrameBlock) and module.nin_shortcut is not None:
            _carry(module.nin_shortcut, torch.ones(1, 1))
    elif isinstance(module, FrameAttention):
        for parameter in module.proj_out.parameters():
            nn.init.zeros_(parameter)
    elif isinstance(module, SpaceDown):
        taps = torch.zeros(3, 3)
        taps[:2, :2] = 0.25
        _carry(module.conv, taps)
    elif isinstance(module, SpaceUp):
        tent = torch.tensor([0.25, 0.5, 0.25])
        _carry(module.conv, tent[:, None] * tent)
    elif isinstance(module, (TimeDown, TimeUp)):
        taps = torch.zeros(3, 3, 3)
        taps[1:, 1, 1] = torch.tensor([0.5, 0.5] if isinstance(module, TimeDown) else [0.0, 1.0])
        _carry(_conv(module.conv), taps)


def _conv(module: Any) -> Any:
    return getattr(module, "conv", module)


def _carry(conv: Any, taps: Tensor) -> None:
    """Each carried channel from itself alone, by `taps`."""
    conv.weight *= _OTHERS
    conv.weight[:CARRIED] = 0
    conv.bias[:CARRIED] = 0
    for channel in range(CARRIED):
        conv.weight[channel, channel] = taps


def _now(conv: Any) -> Tensor:
    """The weights [out, in] of the tap at this frame and place."""
    weight: Tensor = conv.weight
    return weight[:, :, -1, 1, 1]


def _begin_carrying(conv: Any) -> None:
    conv.weight *= _OTHERS
    conv.weight[:CARRIED] = 0
    conv.bias[:CARRIED] = 0
    conv.bias[6], conv.bias[7] = C, -C


def _from_pixels(conv: Any) -> None:
    _begin_carrying(conv)
    luma = torch.tensor(_LUMA)
    rows = torch.stack([luma, torch.tensor([0.0, 0, 1]) - luma, torch.tensor([1.0, 0, 0]) - luma])
    _now(conv)[:3], _now(conv)[3:6] = rows, -rows


def _to_latents(conv: Any, channels: int) -> None:
    """Brightness twice, half a step apart, and the colour differences, scaled to use the levels."""
    spread = (2 * C * C / channels) ** 0.5
    conv.weight *= _OTHERS
    conv.weight[:4] = 0
    for dim, (feature, gain, offset) in enumerate(
        ((0, 1.3, 0.07), (0, 1.3, -0.07), (1, 3.0, 0.0), (2, 3.0, 0.0))
    ):
        _now(conv)[dim, feature], _now(conv)[dim, feature + 3] = gain * spread, -gain * spread
        conv.bias[dim] = offset


def _from_codes(conv: Any) -> None:
    """The straight line nearest to the inverse of FSQ's bound over the range of colours."""
    _begin_carrying(conv)
    rows = torch.zeros(3, conv.weight.shape[1])
    rows[0, :2], rows[1, 2], rows[2, 3] = 0.66, 0.45, 0.45
    _now(conv)[:3], _now(conv)[3:6] = rows, -rows
    conv.bias[0], conv.bias[3] = 0.12, -0.12


def _to_pixels(conv: Any, channels: int) -> None:
    spread = (2 * C * C / channels) ** 0.5
    conv.weight[:] = 0
    conv.bias[:] = 0
    green = [-_LUMA[2] / _LUMA[1], -_LUMA[0] / _LUMA[1]]
    rows = torch.tensor([[1.0, 0, 1], [1.0, *green], [1.0, 1, 0]]) * spread
    _now(conv)[:, :3], _now(conv)[:, 3:6] = rows, -rows
