"""Weights on a device: batches of windows to arrays and back. The only room that runs torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import Window
from tokenmill.workers.tokenizers.vidtok.layers import Carried
from tokenmill.workers.tokenizers.vidtok.quantizers import moments
from tokenmill.workers.tokenizers.vidtok.settings import Settings
from tokenmill.workers.tokenizers.vidtok.weights import load_model, space_of

WHOLE_LATENTS = 9  # decoded at once; more are streamed, so that memory does not grow with length

Made = tuple[NDArray[Any], "Carried | None"]


class Engine:
    """One model on one device. Raises TokenizerError as load_model does, and where the device is
    not there."""

    def __init__(self, path: Path, where: str, settings: Settings) -> None:
        self._settings = settings
        self._device = _device(settings.device)
        self._model = load_model(path, where, settings.model)
        self._space = space_of(self._model)
        self._model.encoder.to(self._device)  # the decoder follows when somebody decodes

    def space(self) -> str:
        return self._space

    def provenance(self) -> dict[str, str]:
        found = {"torch": torch.__version__, "device": str(self._device)}
        if self._device.type == "cuda":
            found["device"] = torch.cuda.get_device_name(self._device)
            version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            found["cudnn"] = str(version)
        return found

    def encode(self, windows: Sequence[Window]) -> list[Made]:
        """Per window ids [t, h, w] (int64), or latents [t, h, w, c], and what the next one needs.

        Windows of one sample stand in order; several of one length go through together.
        Raises SampleError `window-lost` where a window goes on from one that is not there.
        """
        made: list[Made | None] = [None] * len(windows)
        for step in _steps(windows, self._settings.model.chunks):
            for group in _alike(windows, step).values():
                past = [self._past(windows, made, n) for n in group]
                for n, one in zip(group, self._run([windows[n] for n in group], past), strict=True):
                    made[n] = one
        return [one for one in made if one is not None]

    def _past(self, windows: Sequence[Window], made: Sequence[Made | None], n: int) -> Any:
        """The state before window n: handed in, or made by the window before it in this call."""
        window = windows[n]
        if not self._settings.model.chunks or not window.index:
            return None
        if window.carry is not None:
            return window.carry
        before = made[n - 1] if n and windows[n - 1].index == window.index - 1 else None
        if before is None or before[1] is None:
            raise SampleError("window-lost", f"window {window.index} without the one before it")
        return before[1]

    def _run(self, windows: Sequence[Window], past: Sequence[Any]) -> Iterator[Made]:
        clips = np.stack([window.arrays["frames"] for window in windows])
        frames = torch.from_numpy(clips).to(self._device).float().permute(0, 4, 1, 2, 3)
        frames = frames.div_(255).sub_(0.5).div_(0.5)  # in these steps: the official bits
        model = self._model
        kept: Carried = {}
        with torch.inference_mode(), _precision(self._settings.precision, self._device):
            if model.variant.chunks:
                stacked = None if past[0] is None else _stacked(past)
                keep = not all(window.last for window in windows)
                latent, kept = model.encode_chunk(frames, stacked, keep=keep)
            else:
                latent = model.encode(frames)
        values = self._values(latent)
        for n in range(len(windows)):
            yield values[n], {k: v[n : n + 1] for k, v in kept.items()} or None

    def _values(self, latent: Tensor) -> NDArray[Any]:
        if self._model.quantizer is not None:
            return self._model.quantizer.ids(latent).cpu().numpy()
        mean, logvar = moments(latent)
        both = mean if self._settings.latent == "mode" else torch.cat([mean, logvar], dim=1)
        return both.movedim(1, -1).cpu().numpy()

    def decode(self, grid: NDArray[Any]) -> NDArray[np.uint8]:
        """ids [T', H', W'] or latents [T', H', W', c] to uint8 [T, H, W, 3].

        Raises TokenizerError for an id outside the codebook.
        """
        model, variant = self._model, self._model.variant
        if variant.levels and grid.size and int(grid.max()) >= variant.codebook_size:
            raise TokenizerError(
                f"id {int(grid.max())} in a codebook of {variant.codebook_size}",
                where=f"vidtok:{variant.name}",
                remedy="decode with the tokenizer that made the ids",
            )
        model.decoder.to(self._device)
        if model.quantizer is not None:
            ids = torch.from_numpy(grid.astype(np.int64)).to(self._device)[None]
            codes = model.quantizer.from_ids(ids)
        else:
            latents = torch.from_numpy(grid.astype(np.float32)).to(self._device)
            codes = latents[..., : variant.z_channels].movedim(-1, 0)[None]
        parts = []
        with torch.inference_mode(), _precision(self._settings.precision, self._device):
            for clip in self._clips(codes):
                parts.append(_pixels(clip))
        return np.concatenate(parts)

    def _clips(self, codes: Tensor) -> Iterator[Tensor]:
        model, variant = self._model, self._model.variant
        if not variant.chunks:
            for part in torch.split(codes, variant.latents(self._settings.frames[0]), dim=2):
                yield model.decode(part)
            return
        extra = variant.time_factor - 1  # of the first latent's frames, copies of the first
        if codes.shape[2] <= WHOLE_LATENTS:
            yield model.decode(codes)[:, :, extra:]
            return
        for frames in model.decode_chunks(codes, WHOLE_LATENTS // 2):
            yield frames[:, :, extra:]
            extra = 0


def _steps(windows: Sequence[Window], chained: bool) -> Iterator[list[int]]:
    """Positions to run together: the first of every run of windows, then the second, ..."""
    depth, places = 0, []
    for n, window in enumerate(windows):
        before = windows[n - 1] if n else None
        follows = chained and before is not None and window.index and window.carry is None
        depth = depth + 1 if follows else 0
        places.append(depth)
    for step in range(max(places, default=-1) + 1):
        yield [n for n, place in enumerate(places) if place == step]


def _alike(windows: Sequence[Window], step: Sequence[int]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for n in step:
        groups.setdefault(windows[n].bucket, []).append(n)
    return groups


def _stacked(past: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in past]) for name in past[0]}


def _pixels(frames: Tensor) -> NDArray[np.uint8]:
    """[1, 3, T, H, W] to uint8 [T, H, W, 3], truncated as the official code does."""
    scaled = frames[0].float().clamp(-1, 1).add(1).mul(127.5)
    return scaled.byte().permute(1, 2, 3, 0).cpu().numpy()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TokenizerError(
            f"the device {name!r} is not there", where="config.device", why=str(error)[:200]
        ) from None
    return device


@contextmanager
def _precision(name: str, device: torch.device) -> Iterator[None]:
    """TF32 is on or off by the recipe, never by PyTorch's default."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
