"""Encoder and decoder. Attribute names are the official state-dict keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.workers.tokenizers.vidtok.layers import (
    ChannelNorm,
    FrameAttention,
    FrameBlock,
    Memory,
    SpaceDown,
    SpaceUp,
    TimeBlock,
    TimeDown,
    TimeUp,
    conv3d,
    name_layers,
)
from tokenmill.workers.tokenizers.vidtok.variants import Arithmetic, Variant


class _Level(nn.Module):
    """`block` and, where the level has one, its resampler under the key `downsample` or
    `upsample`; in pairs, one level for space and one for time."""

    def __init__(self, blocks: Sequence[nn.Module], **resampler: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        for name, layer in resampler.items():
            setattr(self, name, layer)
        self._resampler = next(iter(resampler))

    @property
    def resample(self) -> nn.Module | None:
        layer: nn.Module | None = getattr(self, self._resampler)
        return layer


def _run(space: nn.Module, time: nn.Module, x: Tensor, memory: Memory) -> Tensor:
    """A level: each frame, then time, in pairs; then resampled, space first."""
    assert isinstance(space, _Level) and isinstance(time, _Level)
    for frame_block, time_block in zip(space.block, time.block, strict=True):
        x = time_block(frame_block(x, memory), memory)
    for resample in (space.resample, time.resample):
        x = x if resample is None else resample(x, memory)
    return x


class _Middle(nn.Module):
    def __init__(self, arithmetic: Arithmetic, channels: int) -> None:
        super().__init__()
        self.block_1 = TimeBlock(arithmetic, channels, cube=True)
        self.attn_1 = FrameAttention(arithmetic, channels)
        self.block_2 = TimeBlock(arithmetic, channels, cube=True)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        for layer in (self.block_1, self.attn_1, self.block_2):
            x = layer(x, memory)
        return x


class Encoder(nn.Module):
    """Frames [B, 3, T, H, W] in [-1, 1] to latents [B, z or 2 z (KL), T', H', W']."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        kind, widths = variant.arithmetic, variant.widths
        self.conv_in = conv3d(kind, 3, widths[0])
        self.down = nn.ModuleList()
        self.down_temporal = nn.ModuleList()
        c = widths[0]
        for i, width in enumerate(widths):
            space, time = [], []
            for _ in range(variant.blocks):
                space.append(FrameBlock(c, width))
                time.append(TimeBlock(kind, width))
                c = width
            down = i in variant.spatial_down
            self.down.append(_Level(space, downsample=SpaceDown(c) if down else None))
            slower = TimeDown(kind, c) if down and i in variant.time_down else None
            self.down_temporal.append(_Level(time, downsample=slower))
        self.mid = _Middle(kind, c)
        self.norm_out = ChannelNorm(c)
        z = variant.z_channels * (1 if variant.levels else 2)
        self.conv_out = conv3d(kind, c, z)
        name_layers(self)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.conv_in(x, memory)
        for space, time in zip(self.down, self.down_temporal, strict=True):
            x = _run(space, time, x, memory)
        x = self.mid(x, memory)
        return self.conv_out(F.silu(self.norm_out(x)), memory)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents [B, z, T', H', W'] to frames [B, 3, f T', H, W], not clamped."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        kind, widths = variant.arithmetic, variant.widths
        c = widths[-1]
        self.conv_in = conv3d(kind, variant.z_channels, c)
        self.mid = _Middle(kind, c)
        levels: list[tuple[nn.Module, nn.Module]] = []
        first = 1  # frames of one latent, at the depth reached
        for i in reversed(range(len(widths))):
            space, time = [], []
            for _ in range(variant.blocks + 1):
                space.append(FrameBlock(c, widths[i]))
                time.append(TimeBlock(kind, widths[i]))
                c = widths[i]
            up = i in variant.spatial_up
            faster = None
            if up and i in variant.time_up:
                faster, first = TimeUp(kind, c, first=first), 2 * first
            above = _Level(space, upsample=SpaceUp(c) if up else None)
            levels.insert(0, (above, _Level(time, upsample=faster)))
        self.up = nn.ModuleList([space_level for space_level, _ in levels])
        self.up_temporal = nn.ModuleList([time_level for _, time_level in levels])
        self.norm_out = ChannelNorm(c)
        self.conv_out = conv3d(kind, c, 3)
        name_layers(self)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.mid(self.conv_in(x, memory), memory)
        for i in reversed(range(len(self.up))):
            x = _run(self.up[i], self.up_temporal[i], x, memory)
        return self.conv_out(F.silu(self.norm_out(x)), memory)  # type: ignore[no-any-return]
