"""A VidTok model: whole clips, or chunks with the state handed from call to call."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tokenmill.workers.tokenizers.vidtok.layers import Carried, Memory
from tokenmill.workers.tokenizers.vidtok.network import Decoder, Encoder
from tokenmill.workers.tokenizers.vidtok.quantizers import FiniteScalar
from tokenmill.workers.tokenizers.vidtok.variants import Variant


class VidTok(nn.Module):
    """Encoder and decoder of one variant. Holds no state between calls."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.encoder = Encoder(variant)
        self.decoder = Decoder(variant)
        self.quantizer = FiniteScalar(variant.levels) if variant.levels else None

    def encode(self, frames: Tensor) -> Tensor:
        """Whole clips [B, 3, T, H, W] in [-1, 1] to latents before the regulariser.

        H and W must be multiples of the spatial factor. Raises ValueError for a non-causal clip
        shorter than one latent.
        """
        if not self.variant.latents(frames.shape[2]):
            raise ValueError(f"{frames.shape[2]} frames make no latent of {self.variant.name}")
        return self.encoder(_channels_last(self._in_front(frames)), Memory())  # type: ignore[no-any-return]

    def encode_chunk(
        self, frames: Tensor, past: Carried | None, *, keep: bool = True
    ) -> tuple[Tensor, Carried]:
        """One chunk of clips and the state that the next chunk of the same clips needs (v1.1).

        past: None for a first chunk, of 1 mod f frames; later ones are multiples of f. So cut, the
        latents are those of the whole clip. The state has the clips at axis 0.
        """
        assert self.variant.chunks
        if past is None:
            frames = self._in_front(frames)
        memory = Memory(past, keep=keep)
        return self.encoder(_channels_last(frames), memory), memory.kept

    def decode(self, latents: Tensor) -> Tensor:
        """Codes or latents [B, z, T', H', W'], whole, to frames [B, 3, T, H, W], not clamped.

        T is f T', less the first f - 1 with v1.0. v1.1: the last frames are the clip.
        """
        frames: Tensor = self.decoder(_channels_last(latents), Memory())
        if self.variant.arithmetic == "causal-1.0":
            return frames[:, :, self.variant.time_factor - 1 :]
        return frames

    def decode_chunks(self, latents: Tensor, chunk: int) -> Iterator[Tensor]:
        """v1.1: the official streaming decode, `chunk` latents at a time with one of look-ahead.

        Not the same numbers as `decode`: the second upsampler's first state differs, which dies out
        after some 20 frames (specification, section 8). Yields the frames of each chunk, in order.
        """
        assert self.variant.chunks
        total, f = latents.shape[2], self.variant.time_factor
        past, start, end = None, 0, 1
        while start < total:
            ahead = int(end < total)
            memory = Memory(past, keep=True, ahead=ahead)
            frames = self.decoder(_channels_last(latents[:, :, start : end + ahead]), memory)
            yield frames[:, :, : frames.shape[2] - f * ahead]
            past, start, end = memory.kept, end, min(end + chunk, total)

    def _in_front(self, frames: Tensor) -> Tensor:
        """Copies of the first frame in front, where the count is no multiple of f."""
        rest = frames.shape[2] % self.variant.time_factor
        if not self.variant.causal or not rest:
            return frames
        whole = self.variant.arithmetic == "causal-1.0"
        count = self.variant.time_factor - (1 if whole else rest)
        return torch.cat([frames[:, :, :1].expand(-1, -1, count, -1, -1), frames], dim=2)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
