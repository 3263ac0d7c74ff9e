"""`fit`: a small VidTok from video clips, on one device, within a number of minutes.

The straight-through FSQ of the paper with a plain L1 + L2 pixel loss: no discriminator and no
perceptual network, whose weights nobody may assume to have. Good enough to try a pipeline on real
clips, and to start a longer training from.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest
from tokenmill.schemas.tokenizer import Fields, Window
from tokenmill.workers.child import ChildLimits, ForkServer
from tokenmill.workers.children import ChildPool
from tokenmill.workers.tokenizers.vidtok.beginning import CARRIED, begin
from tokenmill.workers.tokenizers.vidtok.layers import Memory
from tokenmill.workers.tokenizers.vidtok.model import VidTok
from tokenmill.workers.tokenizers.vidtok.prepare import FramePreparer
from tokenmill.workers.tokenizers.vidtok.quantizers import FiniteScalar
from tokenmill.workers.tokenizers.vidtok.variants import VARIANTS
from tokenmill.workers.tokenizers.vidtok.weights import save

MOST_FRAMES = 1800  # of one video
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """What `fit` may be told.

    variant: a v1.1 FSQ variant; ch: its width, at least 8. minutes, steps: whichever is over first
    ends it.
    frames, crop: clip length (1 mod the time factor) and side in pixels; side: the shorter side
    that videos are reduced to first. held_out: so many of the last videos are only measured on.
    max_bytes: of decoded frames held in memory.
    """

    variant: str = "starter"
    ch: int = 12
    minutes: float = 30.0
    steps: int = 1_000_000
    frames: int = 5
    crop: int = 32
    side: int = 144
    batch: int = 4
    rate: float = 1e-3
    held_out: int = 1
    seed: int = 0
    threads: int = 1
    max_bytes: int = 1 << 30

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> FitSettings:
        """Raises TokenizerError naming the key."""
        known = {f.name: f.default for f in fields(cls)}
        for key, value in config.items():
            if key not in known:
                raise TokenizerError(
                    f"vidtok's fit has no setting {key!r}{nearest(str(key), known)}",
                    where="fit config",
                    remedy="settings: " + ", ".join(known),
                )
            number = isinstance(known[key], (int, float))
            if number and (not isinstance(value, (int, float)) or value < 0):
                raise TokenizerError(f"{key}: {value!r} is not a number from 0", where="fit config")
        settings = cls(**config)
        variant = VARIANTS.get(settings.variant)
        usable = variant is not None and variant.chunks and len(variant.levels) >= 4
        if variant is None or not usable or not variant.fits(settings.frames):
            raise TokenizerError(
                f"fit takes a v1.1 FSQ variant and a clip length that it keeps, not "
                f"{settings.variant!r} and {settings.frames} frames",
                where="fit config",
            )
        if settings.ch < CARRIED:
            raise TokenizerError(
                f"ch: {settings.ch!r} is not {CARRIED} or more", where="fit config"
            )
        return settings


Video = NDArray[np.uint8]  # [T, H, W, 3]


def fit(samples: Iterator[Fields], out: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Train on the samples' field `video` and write a safetensors file with its card to `out`.

    Returns the card. Raises TokenizerError where there are too few clips.
    """
    settings = FitSettings.parse(config)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    videos, refused = _videos(samples, settings)
    if len(videos) <= settings.held_out:
        raise TokenizerError(
            f"{len(videos)} usable videos, and {settings.held_out} of them are held out",
            remedy="more videos, or `held_out: 0`",
        )
    cut = len(videos) - settings.held_out
    model = VidTok(replace(VARIANTS[settings.variant], ch=settings.ch))
    begin(model)
    began = time.monotonic()
    steps = _train(model, videos[:cut], settings)
    card = {
        "fit": asdict(settings),
        "videos": cut,
        "refused": refused,
        "steps": steps,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "held_out" if settings.held_out else "training": measured(model, videos[cut:] or videos),
        "corpus_sha256": _digest(videos),
    }
    save(model.half(), Path(out), card)
    return card


def _videos(samples: Iterator[Fields], settings: FitSettings) -> tuple[list[Video], int]:
    """What can be trained on, decoded in a killable child, and how many samples cannot."""
    videos, refused, held = [], 0, 0
    for video in _read(samples, settings):
        fits = video is not None and min(video.shape[1:3]) >= settings.crop
        if video is None or not fits or len(video) < settings.frames:
            refused += 1
            continue
        videos.append(video)
        held += video.nbytes
        if held > settings.max_bytes:
            break
    return videos, refused


def _read(samples: Iterator[Fields], settings: FitSettings) -> Iterator[Video | None]:
    """One per sample, None where it could not be read."""
    preparer = FramePreparer(side=settings.side, most=MOST_FRAMES)
    with ExitStack() as stack:
        server = stack.enter_context(closing(ForkServer((FramePreparer.__module__,))))
        pool: ChildPool[None] = ChildPool(server, preparer, count=1, limits=ChildLimits())
        stack.callback(pool.close)
        parts: list[Video] = []
        sent = ((None, {"video": bytes(fields_["video"])}, 0) for fields_ in samples)
        for _, event in pool.windows(sent):
            if isinstance(event, Window):
                parts.append(event.arrays["frames"])
                continue
            yield np.concatenate(parts) if parts and event is None else None
            parts = []


def _train(model: VidTok, videos: list[Video], settings: FitSettings) -> int:
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=1e-4)
    weights = np.array([len(v) for v in videos], float)
    until = time.monotonic() + settings.minutes * 60
    step, began, recent = 0, time.monotonic(), list[float]()
    while step < settings.steps and time.monotonic() < until:
        done = max(step / settings.steps, (time.monotonic() - began) / (until - began))
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = (
                settings.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            )
        clips = _batch(videos, weights / weights.sum(), settings, rng)
        latent = model.encode(clips)
        difference = _reconstructed(model, latent, clips.shape[2]) - clips
        # beyond 2 every level is reached and tanh has no slope left to come back by
        beyond = (latent.abs() - 2).relu().square().mean()
        loss = difference.abs().mean() + 2 * difference.square().mean() + 0.05 * beyond
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        recent.append(difference.detach().abs().mean().item())
        if step % 100 == 0:
            _LOG.info(
                "step %d, loss %.4f, %.0f %% of the time", step, sum(recent) / 100, 100 * done
            )
            recent.clear()
    return step


def _batch(
    videos: list[Video], chance: NDArray[Any], settings: FitSettings, rng: np.random.Generator
) -> Tensor:
    clips = []
    for _ in range(settings.batch):
        video = videos[rng.choice(len(videos), p=chance)]
        stride = int(rng.integers(1, 4))
        stride = stride if len(video) > settings.frames * stride else 1
        t = rng.integers(len(video) - (settings.frames - 1) * stride)
        y, x = (rng.integers(n - settings.crop + 1) for n in video.shape[1:3])
        clip = video[t : t + settings.frames * stride : stride]
        clip = clip[: settings.frames, y : y + settings.crop, x : x + settings.crop]
        clips.append(clip[:, :, ::-1] if rng.random() < 0.5 else clip)
    return _tensor(np.stack(clips))


def _tensor(clips: NDArray[np.uint8]) -> Tensor:
    """uint8[B, T, H, W, 3] to float32[B, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3) / 127.5 - 1


def _reconstructed(model: VidTok, latent: Tensor, frames: int) -> Tensor:
    assert model.quantizer is not None
    codes = straight_through(model.quantizer, latent)
    return model.decoder(codes, Memory())[:, :, -frames:]  # type: ignore[no-any-return]


def straight_through(quantizer: FiniteScalar, latent: Tensor) -> Tensor:
    """Codes whose gradient is that of the bounded latent."""
    width = quantizer.bound(latent) - quantizer.bound(latent).detach()
    halves = torch.tensor([n // 2 for n in quantizer.levels], device=latent.device)
    return quantizer.codes(latent) + width / halves.view(1, -1, 1, 1, 1)


def measured(model: VidTok, videos: list[Video], clip: int = 17) -> dict[str, Any]:
    """PSNR in dB (mean over frames, of pixels in [0, 1]) and codebook use on whole frames.

    Non-overlapping clips of 17 frames, at most three of a video; sides cut to multiples of 8.
    """
    assert model.quantizer is not None
    model.eval()
    psnr: list[float] = []
    used: list[NDArray[Any]] = []
    for video in videos:
        h, w = (n // 8 * 8 for n in video.shape[1:3])
        for start in range(0, min(len(video) - clip, clip * 2) + 1, clip):
            with torch.inference_mode():
                frames = _tensor(video[None, start : start + clip, :h, :w])
                latent = model.encode(frames)
                decoded = model.decode(model.quantizer.codes(latent))[:, :, -clip:].clamp(-1, 1)
            error = ((decoded - frames) / 2).square().mean(dim=(0, 1, 3, 4))
            psnr += (-10 * torch.log10(error + 1e-8)).tolist()
            used.append(model.quantizer.ids(latent).numpy().reshape(-1))
    ids, counts = np.unique(np.concatenate(used), return_counts=True)
    share = counts / counts.sum()
    return {
        "psnr": round(float(np.mean(psnr)), 2),
        "frames": len(psnr),
        "tokens": int(counts.sum()),
        "distinct_ids": len(ids),
        "codebook_size": model.variant.codebook_size,
        "perplexity": round(float(np.exp(-(share * np.log(share)).sum())), 1),
    }


def _digest(videos: list[Video]) -> str:
    digest = hashlib.sha256()
    for video in videos:
        digest.update(f"{video.shape};".encode())
        digest.update(np.ascontiguousarray(video).data)
    return digest.hexdigest()
