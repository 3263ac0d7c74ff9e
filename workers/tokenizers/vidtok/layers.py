"""The building blocks, on tensors [B, C, T, H, W] that lie channels last in memory.

Channels last makes the channel LayerNorm and the fold of time into the batch plain views, and is
what convolution kernels want. Attribute names are the official state-dict keys.
Algorithms: VidTok (arXiv 2412.13061, microsoft/VidTok), described in its specification.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.workers.tokenizers.vidtok.variants import Arithmetic

EPS = 1e-6
Carried = Mapping[str, Tensor]  # layer path -> its last input frames, [B, C, t, H, W]


class Memory:
    """What the causal layers of one call have from the chunk before and leave for the next.

    Local to the call: a model object holds no state. past: None for the first chunk of a clip.
    ahead: frames at the end of the input, at the depth reached, that the next chunk sees again.
    """

    def __init__(self, past: Carried | None = None, *, keep: bool = False, ahead: int = 0) -> None:
        self._past = past
        self._keep = keep
        self.ahead = ahead
        self.kept: dict[str, Tensor] = {}

    @property
    def first(self) -> bool:
        return self._past is None

    def past(self, layer: nn.Module) -> Tensor:
        assert self._past is not None
        return self._past[str(layer.path)]

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        if self._keep:
            self.kept[str(layer.path)] = frames.clone()


def name_layers(model: nn.Module) -> None:
    """Every layer learns its path, which is its place in a Memory."""
    for name, layer in model.named_modules():
        layer.path = name


def by_frame(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W], a view where x lies channels last."""
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)


def to_clip(x: Tensor, batch: int) -> Tensor:
    """The way back."""
    frames = x.movedim(1, -1)
    return frames.reshape(batch, -1, *frames.shape[1:]).movedim(-1, 1)


class ChannelNorm(nn.Module):
    """LayerNorm over channels alone, at every position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


class PaddedConv3d(nn.Conv3d):
    """Non-causal: zeros on both sides."""

    def forward(self, x: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class PaddedConv1d(nn.Conv1d):
    """Non-causal, over time at every pixel."""

    def forward(self, x: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        return F.conv3d(x, self.weight[..., None, None], self.bias, padding=(1, 0, 0))


class CausalConv(nn.Module):
    """Sees the past only: zeros (v1.0), or copies of the first frame and then the frames before
    (v1.1), in front; zeros around each frame."""

    def __init__(self, conv: nn.Conv3d | nn.Conv1d, *, replicate: bool) -> None:
        super().__init__()
        self.conv = conv
        self._replicate = replicate
        self._front = conv.kernel_size[0] - conv.stride[0]

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        conv = self.conv
        if self._front:
            x = torch.cat([self._before(x, memory), x], dim=2)
            end = x.shape[2] - memory.ahead
            memory.keep(self, x[:, :, max(end - self._front, 0) : end])
        if isinstance(conv, nn.Conv3d):
            return conv(x)  # type: ignore[no-any-return]
        return F.conv3d(x, conv.weight[..., None, None], conv.bias)

    def _before(self, x: Tensor, memory: Memory) -> Tensor:
        if not self._replicate:
            return torch.zeros_like(x[:, :, :1]).expand(-1, -1, self._front, -1, -1)
        if memory.first:
            return x[:, :, :1].expand(-1, -1, self._front, -1, -1)
        return memory.past(self)


def conv3d(
    arithmetic: Arithmetic, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1
) -> nn.Module:
    """A convolution over (T, H, W); `stride` is that of time. 1x1x1 where kernel is 1."""
    space = kernel // 2
    if arithmetic == "noncausal":
        time = space if stride == 1 else 0  # the strided one gets its padding from outside
        return PaddedConv3d(c_in, c_out, kernel, (stride, 1, 1), (time, space, space))
    conv = nn.Conv3d(c_in, c_out, kernel, (stride, 1, 1), (0, space, space))
    return CausalConv(conv, replicate=arithmetic == "causal-1.1")


def conv1d(arithmetic: Arithmetic, c_in: int, c_out: int) -> nn.Module:
    """A convolution over time at every pixel."""
    if arithmetic == "noncausal":
        return PaddedConv1d(c_in, c_out, 3, padding=1)
    return CausalConv(nn.Conv1d(c_in, c_out, 3), replicate=arithmetic == "causal-1.1")


class FrameBlock(nn.Module):
    """Residual block on each frame: 3x3 convolutions."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = ChannelNorm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        frames = by_frame(x)
        h = self.conv1(F.silu(self.norm1(frames)))
        h = self.conv2(F.silu(self.norm2(h)))
        h += frames if self.nin_shortcut is None else self.nin_shortcut(frames)
        return to_clip(h, len(x))


class TimeBlock(nn.Module):
    """Residual block over time (3), or over time and space (3x3x3) in the middle."""

    def __init__(self, arithmetic: Arithmetic, channels: int, *, cube: bool = False) -> None:
        super().__init__()
        kind = conv3d if cube else conv1d
        self.norm1 = ChannelNorm(channels)
        self.conv1 = kind(arithmetic, channels, channels)
        self.norm2 = ChannelNorm(channels)
        self.conv2 = kind(arithmetic, channels, channels)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), memory)
        h = self.conv2(F.silu(self.norm2(h)), memory)
        return x + h  # type: ignore[no-any-return]


class FrameAttention(nn.Module):
    """Single-head attention over the positions of each frame."""

    def __init__(self, arithmetic: Arithmetic, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.q, self.k, self.v, self.proj_out = (
            conv3d(arithmetic, channels, channels, kernel=1) for _ in range(4)
        )

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            by_frame(layer(h, memory)).flatten(2).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        seen = F.scaled_dot_product_attention(q, k, v)  # [B T, H W, C], scale 1 / sqrt(C)
        seen = seen.transpose(1, 2).reshape(len(seen), -1, *x.shape[-2:])
        return x + self.proj_out(to_clip(seen, len(x)), memory)  # type: ignore[no-any-return]


class SpaceDown(nn.Module):
    """Halves each frame: one zero column right, one zero row below, 3x3 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return to_clip(self.conv(F.pad(by_frame(x), (0, 1, 0, 1))), len(x))


class SpaceUp(nn.Module):
    """Doubles each frame: nearest, then 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        frames = F.interpolate(by_frame(x).float(), scale_factor=2.0).to(x.dtype)
        return to_clip(self.conv(frames), len(x))


class TimeDown(nn.Module):
    """T -> floor(T / 2): a learned blend of the mean of three frames and a strided convolution."""

    def __init__(self, arithmetic: Arithmetic, channels: int) -> None:
        super().__init__()
        self._arithmetic = arithmetic
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))
        self.conv = conv3d(arithmetic, channels, channels, stride=2)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self._arithmetic == "noncausal":
            padded = x = F.pad(x, (0, 0, 0, 0, 0, 1))
        else:
            padded = torch.cat([self._before(x, memory), x], dim=2)
            memory.keep(self, x[:, :, -1:])
        a = torch.sigmoid(self.mix_factor)
        mean = F.avg_pool3d(padded, (3, 1, 1), (2, 1, 1))
        return a * mean + (1 - a) * self.conv(x, memory)  # type: ignore[no-any-return]

    def _before(self, x: Tensor, memory: Memory) -> Tensor:
        if self._arithmetic == "causal-1.0":
            return torch.zeros_like(x[:, :, :1])
        return x[:, :, :1] if memory.first else memory.past(self)


class TimeUp(nn.Module):
    """T -> 2 T: interpolation, and a learned blend of it with its convolution.

    nearest, but v1.1 linear, with `first` frames (one latent's worth) interpolated apart from the
    rest, so that nothing mixes across the border of the first latent.
    """

    def __init__(self, arithmetic: Arithmetic, channels: int, *, first: int) -> None:
        super().__init__()
        self._linear = arithmetic == "causal-1.1"
        self._first = first
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))
        self.conv = conv3d(arithmetic, channels, channels)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self._linear:
            u = self._interpolated(x, memory)
            memory.ahead *= 2
        else:
            u = x.repeat_interleave(2, dim=2)
        a = torch.sigmoid(self.mix_factor)
        return a * u + (1 - a) * self.conv(u, memory)  # type: ignore[no-any-return]

    def _interpolated(self, x: Tensor, memory: Memory) -> Tensor:
        n = self._first
        if memory.first:
            memory.keep(self, x[:, :, -n:])
            return torch.cat([_linear(x[:, :, :n]), _linear(x[:, :, n:])], dim=2)
        x = torch.cat([memory.past(self), x], dim=2)
        memory.keep(self, x[:, :, -2 * n : -n])
        return _linear(x)[:, :, 2 * n :]


def _linear(x: Tensor) -> Tensor:
    """Twice the frames, linear in time alone: half-pixel centres, clamped edges."""
    if not x.shape[2]:
        return x
    before = torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)
    after = torch.cat([x[:, :, 1:], x[:, :, -1:]], dim=2)
    both = torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], dim=3)
    return both.flatten(2, 3)
