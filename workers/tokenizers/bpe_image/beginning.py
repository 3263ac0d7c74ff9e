"""Where training begins: a network that already carries the mean colour of every patch through.

A short run on one core is spent on what a random start learns last: how bright a picture is. The
norms erase it (32 groups: with one or two channels to a group nothing of it is left), so that the
last norm of each half begins with groups of a signal and two constants of either sign, beside which
the group's mean and deviation hang little on the picture. Everything else begins at random.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.workers.tokenizers.bpe_image.graph import Attention, ResBlock, VqGan
from tokenmill.workers.tokenizers.bpe_image.layout import GROUPS

_CONSTANT = 2.0
# Of a group (signal, +c, -c) with a small signal.
_DEVIATION = _CONSTANT * math.sqrt(2 / 3)
_COLOURS = 3
_SCALE = 0.5  # of colours beside the constant 1 that a code's direction is measured against
# Codes have unit length, which bends colours: the straight line that fits best goes back.
_BACK = 2.5
_QUIET = 0.3
_SMOOTH = torch.tensor([0.25, 0.5, 0.25])


def begin(network: VqGan) -> None:
    """Set all weights, from torch's seed: blocks as their shortcuts (Zhang et al. 2019, Fixup),
    other convolutions of constant variance, and the colours where the widths allow it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            _zero(module.bias)
    for module in network.modules():
        if isinstance(module, (ResBlock, Attention)):
            last = module.conv2 if isinstance(module, ResBlock) else module.proj_out
            _zero(last.weight)
    lasts = (network.encoder.norm_out, network.decoder.norm_out)
    if all(norm.num_channels == 3 * GROUPS for norm in lasts):
        with torch.no_grad():
            _encoder(network)
            _decoder(network)


def _zero(parameter: Tensor | None) -> None:
    if parameter is not None:
        nn.init.zeros_(parameter)


def _encoder(network: VqGan) -> None:
    encoder = network.encoder
    _carry(encoder.conv_in)
    levels: list[Any] = list(encoder.down)
    for level in levels[:-1]:
        _carry_shortcut(level)
        kernel = torch.zeros(3, 3)
        kernel[:2, :2] = 0.25
        _carry(level.downsample.conv, kernel)
    _grouped(levels[-1].block[0].nin_shortcut)
    _ungroup(encoder.conv_out)
    network.quant_conv.weight *= _QUIET
    _carry(network.quant_conv, scale=_SCALE)
    bias = network.quant_conv.bias
    assert bias is not None
    network.quant_conv.weight[-1] = 0
    bias[-1] = 1


def _decoder(network: VqGan) -> None:
    decoder = network.decoder
    _carry(network.post_quant_conv, scale=_BACK)
    _carry(decoder.conv_in)
    levels: list[Any] = list(decoder.up)
    for level in levels[:0:-1]:
        _carry_shortcut(level)
        _carry(level.upsample.conv, torch.outer(_SMOOTH, _SMOOTH))
    _grouped(levels[0].block[0].nin_shortcut)
    decoder.conv_out.weight *= _QUIET
    _ungroup(decoder.conv_out)


def _carry_shortcut(level: Any) -> None:
    if hasattr(level.block[0], "nin_shortcut"):
        _carry(level.block[0].nin_shortcut)


def _carry(convolution: nn.Conv2d, kernel: Tensor | None = None, scale: float = 1.0) -> None:
    """Channels 0 to 2 go through by `kernel`, or as they are; nothing else comes into them."""
    weight = convolution.weight
    weight[:_COLOURS] = 0
    for k in range(_COLOURS):
        if kernel is None:
            middle = weight.shape[2] // 2
            weight[k, k, middle, middle] = scale
        else:
            weight[k, k] = kernel * scale


def _grouped(shortcut: nn.Conv2d) -> None:
    """Groups of (signal, +c, -c); of the first six, the signals are the colours and their
    negatives, since silu(x) - silu(-x) = x."""
    bias = shortcut.bias
    assert bias is not None
    for place, value in ((1, _CONSTANT), (2, -_CONSTANT)):
        shortcut.weight[place::3] = 0
        bias[place::3] = value
    for k in range(_COLOURS):
        for group, sign in ((k, 1.0), (k + _COLOURS, -1.0)):
            shortcut.weight[3 * group] = 0
            shortcut.weight[3 * group, k] = sign


def _ungroup(convolution: nn.Conv2d) -> None:
    """The colours out of their groups: what the norm took from the signal it took from +c too."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    weight[:_COLOURS] = 0
    for k in range(_COLOURS):
        plus, minus = 3 * k, 3 * (k + _COLOURS)
        for place, sign in ((plus, 1), (minus, -1), (plus + 1, -1), (minus + 2, 1)):
            weight[k, place, 1, 1] = sign * _DEVIATION
        bias[k] = _CONSTANT
