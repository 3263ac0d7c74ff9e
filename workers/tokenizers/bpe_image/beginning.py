"""Where training begins: a network solved in closed form, that gradient descent then betters.

A short run on one core would be spent on what linear algebra gives at once. With blocks and
attention as their shortcuts (their last convolutions zero) the network is a chain of convolutions:

* the encoder computes the principal components of every patch, scale by scale;
* the codebook is their k-means, as directions against a constant 1, since codes have unit length;
* the decoder is fitted backwards through the scales, each upsampling convolution by least squares
  on the components of the next finer patches.

Norms erase how bright a picture is (32 groups), so the last norm of each half has groups of a
signal and two constants of either sign, beside which mean and deviation hang little on the picture;
the signal and its negative in two groups undo the activation, since silu(x) - silu(-x) = x.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenmill.workers.tokenizers.bpe_image.bar import kmeans
from tokenmill.workers.tokenizers.bpe_image.graph import Attention, ResBlock, VqGan
from tokenmill.workers.tokenizers.bpe_image.layout import GROUPS

# Each in the last norm of either half: a group is (signal, +c, -c).
LAST_WIDTH = 3 * GROUPS
MOST_COMPONENTS = GROUPS // 2 - 1
_CONSTANT = 2.0
_DEVIATION = _CONSTANT * math.sqrt(2 / 3)  # of such a group with a small signal
# How far signals are made smaller than the constants; chosen so that these gains, and what they
# make of the constants (times sqrt(3/2)), are numbers of bfloat16.
_ENCODER_GAIN, _DECODER_GAIN = 98.0, 6.125
_DIRECTION = 0.05  # of the components beside the constant 1: keeps angles near distances
_FINER = 24  # components of a decoder's middle scale
_ROUNDS = 12
_RIDGE = 1e-4
_CHUNK = 4  # pictures at a time
_PICTURES, _WINDOW = 96, 32  # for one least-squares problem: so many, so many positions a side


def begin(network: VqGan, pictures: Tensor, *, patches: int, seed: int) -> None:
    """Set the codebook and what carries the picture of a network that is `as_shortcuts`, from
    square pictures, float32 [n, 3, s, s] in [-1, 1].

    patches: how many k-means may see.
    """
    side = pictures.shape[2] >> (len(network.encoder.down) - 1)
    pictures = _some(pictures, max(_PICTURES, -(-patches // side**2)))
    with torch.no_grad():
        _solve_encoder(network, pictures)
        _round(network)
        latents = torch.cat([_unit(network, part) for part in torch.split(pictures, _CHUNK)])
        codes = _solve_codebook(network, latents, patches, seed)
        _solve_decoder(network, pictures, codes)


def _some(pictures: Tensor, count: int) -> Tensor:
    """At most `count`, from beginning to end."""
    if len(pictures) <= count:
        return pictures
    return pictures[torch.linspace(0, len(pictures) - 1, count).long()]


def as_shortcuts(network: VqGan) -> None:
    """Blocks and attention add nothing (Zhang et al. 2019, Fixup); other convolutions at random."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            _zero(module.bias)
    for module in network.modules():
        if isinstance(module, (ResBlock, Attention)):
            last = module.conv2 if isinstance(module, ResBlock) else module.proj_out
            _zero(last.weight)


def _zero(parameter: Tensor | None) -> None:
    if parameter is not None:
        nn.init.zeros_(parameter)


def _round(network: nn.Module) -> None:
    """As they will be stored: the codebook is fitted to what the stored encoder says."""
    for parameter in network.parameters():
        parameter.copy_(parameter.bfloat16().float())


def hold_constants(network: VqGan) -> None:
    """Keep training off the decoder's constants: all of them pull one way, hundreds of weights that
    act as one bias, so that any step along them is far too long."""
    decoder = network.decoder
    shortcut = _shortcut(decoder.up[0])
    assert shortcut is not None and shortcut.bias is not None
    decoder.norm_out.requires_grad_(False)
    signals = torch.arange(LAST_WIDTH, device=shortcut.weight.device) % 3 == 0
    for parameter, shape in (
        (shortcut.weight, (-1, 1, 1, 1)),
        (shortcut.bias, (-1,)),
        (decoder.conv_out.weight, (1, -1, 1, 1)),
    ):
        mask = signals.reshape(shape)
        parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient, mask=mask: gradient * mask
        )


# -- the encoder -------------------------------------------------------------------------------


def components(pictures: Tensor, side: int, count: int) -> Tensor:
    """[3 * side * side, count]: orthonormal, the strongest first; of patches as they are, without
    their mean. Order of the rows: colour, y, x."""
    total = torch.zeros(3 * side * side, 3 * side * side)
    for part in torch.split(pictures, _CHUNK):
        tiles = functional.unfold(part, side, stride=side).transpose(1, 2).flatten(0, 1)
        total += tiles.T @ tiles
    vectors: Tensor = torch.linalg.eigh(total).eigenvectors
    return vectors.flip(1)[:, :count].contiguous()


def _solve_encoder(network: VqGan, pictures: Tensor) -> None:
    encoder = network.encoder
    levels: list[Any] = list(encoder.down)
    basis = torch.eye(3)
    _pass(encoder.conv_in, 3)
    kept = min(network.quant_conv.out_channels - 1, MOST_COMPONENTS)
    for number, level in enumerate(levels[:-1]):
        _pass_shortcut(level, basis.shape[1])
        convolution = level.downsample.conv
        side = 2 << number
        last = number == len(levels) - 2
        count = min(3 * side * side, kept if last else convolution.out_channels)
        coarser = components(pictures, side, count)
        convolution.weight[:count] = 0
        for y in (0, 1):
            for x in (0, 1):
                step = _quadrant(coarser, side, y, x).T @ basis
                convolution.weight[:count, : basis.shape[1], y, x] = step
        basis = coarser
    count = basis.shape[1]
    _group(levels[-1], count, _ENCODER_GAIN)
    _ungroup(encoder.conv_out, count, _ENCODER_GAIN)
    _zero(network.quant_conv.weight)
    _zero(network.quant_conv.bias)
    for k in range(count):
        network.quant_conv.weight[k, k] = _DIRECTION
    bias = network.quant_conv.bias
    assert bias is not None
    bias[-1] = 1


def _quadrant(basis: Tensor, side: int, y: int, x: int) -> Tensor:
    """The rows of a quarter of a patch, as a basis of patches of half the side."""
    half = side // 2
    cut = basis.reshape(3, 2, half, 2, half, -1)[:, y, :, x]
    return cut.reshape(3 * half * half, -1)


def _unit(network: VqGan, part: Tensor) -> Tensor:
    z = network.quant_conv(network.encoder(part))
    return functional.normalize(z, dim=1, eps=1e-12)


# -- the codebook ------------------------------------------------------------------------------


def _solve_codebook(network: VqGan, latents: Tensor, patches: int, seed: int) -> Tensor:
    """Sets it; the code vectors of all latents, [n, d, h, w]."""
    weight = network.quantize.embedding.weight
    flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
    generator = torch.Generator().manual_seed(seed)
    chosen = flat[torch.randperm(len(flat), generator=generator)[:patches]]
    weight.copy_(kmeans(chosen, len(weight), rounds=_ROUNDS, seed=seed).bfloat16().float())
    table = functional.normalize(weight, dim=1)
    labels = torch.cat([(part @ table.T).argmax(dim=1) for part in torch.split(flat, 8192)])
    n, d, h, w = latents.shape
    return table[labels].reshape(n, h, w, d).permute(0, 3, 1, 2).contiguous()


# -- the decoder -------------------------------------------------------------------------------


def _solve_decoder(network: VqGan, pictures: Tensor, codes: Tensor) -> None:
    decoder = network.decoder
    levels: list[Any] = list(decoder.up)
    pictures, codes = _some(pictures, _PICTURES), _some(codes, _PICTURES)
    dim = codes.shape[1]
    _pass(network.post_quant_conv, dim)
    known = _with_neighbours(decoder.conv_in, dim)
    values = decoder.conv_in(network.post_quant_conv(codes))[:, :known]
    for number in range(len(levels) - 1, 0, -1):
        values, pictures = _windows(values, pictures)
        convolution = levels[number].upsample.conv
        shortcut = _shortcut(levels[number - 1])
        room = convolution.out_channels
        if shortcut is not None and number > 1:
            room = min(room, shortcut.out_channels)
        side = 1 << (number - 1)
        count = min(3 * side * side, _FINER, room)
        passed = min(known, room - count) if number > 1 else 0
        basis = components(pictures, side, count) if side > 1 else torch.eye(3)
        _zero(convolution.weight)
        convolution.weight[:count, :known] = _least_squares(values, pictures, basis, side)
        for k in range(passed):
            convolution.weight[count + k, k, 1, 1] = 1
        if number > 1:
            _pass_shortcut(levels[number - 1], count + passed)
            weight = convolution.weight[: count + passed, :known]
            parts = torch.split(values, _CHUNK)
            values = torch.cat([functional.conv2d(_twice(v), weight, padding=1) for v in parts])
            known = count + passed
    _group(levels[0], 3, _DECODER_GAIN)
    _zero(decoder.conv_out.weight)
    _ungroup(decoder.conv_out, 3, _DECODER_GAIN)


def _windows(values: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of each, so that a finer scale is no larger a problem."""
    height = values.shape[2]
    cut = min(height, _WINDOW)
    first = (height - cut) // 2
    scale = pictures.shape[2] // height
    a, b = first * scale, (first + cut) * scale
    return values[:, :, first : first + cut, first : first + cut], pictures[:, :, a:b, a:b]


def _with_neighbours(convolution: nn.Conv2d, dim: int) -> int:
    """A code's own values, then its neighbours' as far as there are channels; how many."""
    weight = convolution.weight
    shifts = ((1, 1), (1, 0), (1, 2), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2))
    count = min(len(shifts), convolution.out_channels // dim)
    for number, (y, x) in enumerate(shifts[:count]):
        weight[number * dim : (number + 1) * dim] = 0
        for k in range(dim):
            weight[number * dim + k, k, y, x] = 1
    return count * dim


def _twice(values: Tensor) -> Tensor:
    return functional.interpolate(values, scale_factor=2.0, mode="nearest")


def _least_squares(values: Tensor, pictures: Tensor, basis: Tensor, side: int) -> Tensor:
    """[count, channels, 3, 3]: the convolution from doubled `values` to components of patches."""
    size = 9 * values.shape[1]
    left = torch.zeros(size, size, dtype=torch.float64)
    right = torch.zeros(size, basis.shape[1], dtype=torch.float64)
    for v, picture in zip(torch.split(values, 1), pictures, strict=False):
        rows = functional.unfold(_twice(v), 3, padding=1)[0].T
        wanted = (basis.T @ functional.unfold(picture[None], side, stride=side)[0]).T
        left += (rows.T @ rows).double()
        right += (rows.T @ wanted).double()
    left += torch.eye(size, dtype=torch.float64) * _RIDGE * left.diagonal().mean()
    solved: Tensor = torch.linalg.solve(left, right)
    return solved.float().T.reshape(-1, values.shape[1], 3, 3)


# -- what both halves do -----------------------------------------------------------------------


def _pass(convolution: nn.Conv2d, count: int) -> None:
    """The first channels go through as they are; nothing else comes into them."""
    weight = convolution.weight
    middle = weight.shape[2] // 2
    weight[:count] = 0
    for k in range(count):
        weight[k, k, middle, middle] = 1


def _shortcut(level: Any) -> nn.Conv2d | None:
    """The first block's, where it changes the width; training may have put it in its place."""
    block = level.block[0]
    return block if isinstance(block, nn.Conv2d) else getattr(block, "nin_shortcut", None)


def _pass_shortcut(level: Any, count: int) -> None:
    shortcut = _shortcut(level)
    if shortcut is not None:
        _pass(shortcut, count)


def _group(level: Any, count: int, gain: float) -> None:
    """Groups of (signal, +c, -c); the first `count` signals and, in the next groups, their
    negatives, made small beside c."""
    shortcut = _shortcut(level)
    assert shortcut is not None and shortcut.bias is not None
    bias = shortcut.bias
    for place, value in ((1, _CONSTANT), (2, -_CONSTANT)):
        shortcut.weight[place::3] = 0
        bias[place::3] = value
    for k in range(count):
        for group, sign in ((k, 1.0), (k + count, -1.0)):
            shortcut.weight[3 * group] = 0
            shortcut.weight[3 * group, k] = sign * _DEVIATION / gain


def _ungroup(convolution: nn.Conv2d, count: int, gain: float) -> None:
    """Out of their groups: what the norm took from the signal it took from +c too."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    weight[:count] = 0
    for k in range(count):
        plus, minus = 3 * k, 3 * (k + count)
        for place, sign in ((plus, 1), (minus, -1), (plus + 1, -1), (minus + 2, 1)):
            weight[k, place, 1, 1] = sign * gain
        bias[k] = gain * _CONSTANT / _DEVIATION
