"""The VQ-GAN's networks. Attribute names are the canonical tensor names, so that a state dict
loads by itself.

Source: the public descriptions of taming-transformers and Chameleon (`bpe_image.md`, section 1).
All tensors NCHW.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenmill.workers.tokenizers.bpe_image.layout import GROUPS, Layout, Stack

_QUERIES = 1024  # rows of the attention matrix at a time: large pictures stay bounded


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions, each after a norm and x*sigmoid(x), beside a shortcut."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1 = _norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = _norm(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)
        self._shortcut = inner != outer

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if self._shortcut else x)


class Attention(nn.Module):
    """One head over all positions, as wide as the channels, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.norm(x)
        q = self.q(h).reshape(b, c, -1).transpose(1, 2)
        k = self.k(h).reshape(b, c, -1)
        v = self.v(h).reshape(b, c, -1).transpose(1, 2)
        rows = [
            torch.bmm(torch.softmax(torch.bmm(part, k) * c**-0.5, dim=2), v)
            for part in q.split(_QUERIES, dim=1)
        ]
        mixed = torch.cat(rows, dim=1).transpose(1, 2).reshape(b, c, height, width)
        change: Tensor = self.proj_out(mixed)
        return x + change


class Downsample(nn.Module):
    """Halves each side: one zero row and column at the right and the bottom *only*."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles each side: nearest, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution; `downsample` or `upsample` is set by its half."""

    def __init__(self, inner: int, outer: int, blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [inner] + [outer] * blocks
        self.block = nn.ModuleList(ResBlock(widths[i], outer) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outer) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        out: Tensor = self.upsample(self.downsample(x))
        return out


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> [B, z, H/f, W/f]."""

    def __init__(self, stack: Stack, z_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, stack.stem, 3, padding=1)
        inner = (stack.stem, *stack.widths)
        self.down = nn.ModuleList(
            Level(inner[i], width, stack.blocks, stack.attention[i])
            for i, width in enumerate(stack.widths)
        )
        for level, width in zip(self.down[:-1], stack.widths, strict=False):
            level.downsample = Downsample(width)
        self.mid = Middle(stack.widths[-1])
        self.norm_out = _norm(stack.widths[-1])
        self.conv_out = nn.Conv2d(stack.widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """[B, z, h, w] -> [B, 3, h*f, w*f], about [-1, 1]. `up.0`, the highest, runs last."""

    def __init__(self, stack: Stack, z_channels: int) -> None:
        super().__init__()
        lowest = stack.widths[-1]
        self.conv_in = nn.Conv2d(z_channels, lowest, 3, padding=1)
        self.mid = Middle(lowest)
        inner = (*stack.widths[1:], lowest)
        self.up = nn.ModuleList(
            Level(inner[i], width, stack.blocks, stack.attention[i])
            for i, width in enumerate(stack.widths)
        )
        for level, width in zip(self.up[1:], stack.widths[1:], strict=True):
            level.upsample = Upsample(width)
        self.norm_out = _norm(stack.widths[0])
        self.conv_out = nn.Conv2d(stack.widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class Codebook(nn.Module):
    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)


class VqGan(nn.Module):
    """Encoder, codebook and, where the checkpoint has one, decoder."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.encoder = Encoder(layout.encoder, layout.z_channels)
        self.quant_conv = nn.Conv2d(layout.z_channels, layout.dim, 1)
        self.quantize = Codebook(layout.codes, layout.dim)
        if layout.decoder is not None:
            self.post_quant_conv = nn.Conv2d(layout.dim, layout.z_channels, 1)
            self.decoder = Decoder(layout.decoder, layout.z_channels)
