"""`tokenmill fit bpe-image`: pictures in, a small LlamaGen-family checkpoint out."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Fields
from tokenmill.workers.tokenizers.bpe_image import llamagen
from tokenmill.workers.tokenizers.bpe_image.bar import bar_psnr, psnr
from tokenmill.workers.tokenizers.bpe_image.beginning import LAST_WIDTH
from tokenmill.workers.tokenizers.bpe_image.checks import Rules, bad, check
from tokenmill.workers.tokenizers.bpe_image.crops import Corpus, Sampler, gather
from tokenmill.workers.tokenizers.bpe_image.exact import exact
from tokenmill.workers.tokenizers.bpe_image.layout import GROUPS, Layout, Stack
from tokenmill.workers.tokenizers.bpe_image.pictures import Bounds
from tokenmill.workers.tokenizers.bpe_image.presets import to_float, to_pixels
from tokenmill.workers.tokenizers.bpe_image.training import Schedule, Trained, train
from tokenmill.workers.tokenizers.bpe_image.vq import METADATA, Loaded, load_vq

PRESET = "chameleon"  # alpha on white, exact range: what the training crops are
_RULES: Rules = {
    "codes": (2, 1 << 16),
    "dim": (2, 256),
    "blocks": (1, 8),
    "decoder_blocks": (1, 8),
    "size": (32, 1024),
    "steps": (1, 1 << 30),
    "minutes": (0.0, 100_000.0),
    "batch": (1, 4096),
    "crop": (8, 512),
    "rate": (1e-7, 1.0),
    "held_out": (0.0, 0.9),
    "pictures": (1, 1 << 24),
    "patches": (1, 1 << 24),
    "bar_patches": (0, 1 << 24),
    "threads": (1, 1024),
    "seed": (0, 1 << 30),
}


_WIDTHS = ("widths", "decoder_widths")


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """What `fit` may be told.

    widths, decoder_widths: channels by level from the picture's resolution down, multiples of 32;
    the factor is 2 per level after the first. The encoder's lowest level and the decoder's highest
    have 96 (beginning.py says why). blocks, decoder_blocks: of a level. size: short
    side of pictures, in training and as the checkpoint's default. steps, minutes: the run ends at
    the first; only `steps` gives the same file again. held_out: share of the pictures, by hash.
    patches: that the codebook is fitted to. bar_patches: for the k-means bar, 0 to leave it out.
    """

    codes: int = 4096
    dim: int = 16
    widths: tuple[int, ...] = (32, 32, 64, 96)
    blocks: int = 1
    decoder_widths: tuple[int, ...] = (96, 32, 64, 96)
    decoder_blocks: int = 1
    size: int = 256
    steps: int = 1 << 30
    minutes: float = 60.0
    batch: int = 8
    crop: int = 64
    rate: float = 2e-4
    held_out: float = 0.1
    pictures: int = 20_000
    patches: int = 200_000
    bar_patches: int = 300_000
    threads: int = 1
    seed: int = 0

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> FitSettings:
        """Raises TokenizerError naming the key, the value and what it may be."""
        where = "fit config"
        check(config, cls, _RULES, where)
        plain = cls()
        lists = {k: _widths(config.get(k, getattr(plain, k)), k, where) for k in _WIDTHS}
        if len({len(widths) for widths in lists.values()}) > 1:
            raise bad("decoder_widths", lists["decoder_widths"], "as many as `widths`", where)
        settings = cls(**{**config, **lists})
        for key, (width, beside) in (
            ("widths", settings.widths[:-3:-1]),
            ("decoder_widths", settings.decoder_widths[:2]),
        ):
            if width != LAST_WIDTH or beside == LAST_WIDTH:
                end = "last" if key == "widths" else "first"
                wanted = f"{LAST_WIDTH} as the {end} one and another beside it"
                raise bad(key, lists[key], wanted, where)
        if settings.dim > settings.decoder_widths[-1]:
            raise bad("dim", settings.dim, "no more than the decoder's lowest width", where)
        for key in ("size", "crop"):
            if getattr(settings, key) % settings.factor:
                raise bad(key, getattr(settings, key), f"a multiple of {settings.factor}", where)
        return settings

    @property
    def factor(self) -> int:
        return 1 << (len(self.widths) - 1)

    @property
    def layout(self) -> Layout:
        levels = len(self.widths)
        attention = (*(False,) * (levels - 1), True)
        return Layout(
            encoder=Stack(
                stem=self.widths[0],
                widths=self.widths,
                blocks=self.blocks,
                attention=attention,
            ),
            decoder=Stack(
                stem=self.decoder_widths[0],
                widths=self.decoder_widths,
                blocks=self.decoder_blocks,
                attention=attention,
            ),
            z_channels=self.widths[-1],
            codes=self.codes,
            dim=self.dim,
            normalised=True,
        )


def _widths(value: object, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not 2 <= len(value) <= 6:
        raise bad(key, value, "two to six numbers of channels", where)
    if any(not isinstance(w, int) or w < GROUPS or w % GROUPS for w in value):
        raise bad(key, value, f"multiples of {GROUPS}", where)
    return tuple(value)


def fit(samples: Iterator[Fields], out: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Learn from `samples` (field `image`), write `out`, return its lineage (JSON values).

    On a GPU where there is one. Raises TokenizerError for settings or pictures that give nothing.
    """
    settings = FitSettings.parse(config)
    _check_target(Path(out))
    corpus = gather(
        samples,
        size=settings.size,
        share=settings.held_out,
        most=settings.pictures,
        bounds=Bounds(),
    )
    if not corpus.training:
        raise TokenizerError(
            "there are no pictures to learn from",
            why=f"{len(corpus.held_out)} held out, {corpus.skipped} that are no pictures",
            remedy="check the source and its field",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        trained = _train(corpus, settings, device)
        lineage = _lineage(corpus, settings, trained, device)
        sha256 = write(trained, settings, Path(out), lineage)
        return {**lineage, "sha256": sha256, **measured(corpus, settings, out)}
    finally:
        torch.set_num_threads(before)


def _train(corpus: Corpus, settings: FitSettings, device: torch.device) -> Trained:
    sampler = Sampler(corpus.training, settings.seed)
    schedule = Schedule(
        steps=settings.steps,
        seconds=max(settings.minutes * 60, 1e-3),
        batch=settings.batch,
        crop=settings.crop,
        rate=settings.rate,
        seed=settings.seed,
        patches=settings.patches,
    )
    squares = torch.from_numpy(np.stack(corpus.squares)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def batches(count: int, side: int) -> Tensor:
        return torch.from_numpy(sampler.batch(count, side))

    return train(settings.layout, squares, batches, schedule, device)


def _lineage(
    corpus: Corpus, settings: FitSettings, trained: Trained, device: torch.device
) -> dict[str, Any]:
    return {
        "format": "llamagen safetensors, bfloat16",
        "pictures": len(corpus.training),
        "held_out": len(corpus.held_out),
        "skipped": corpus.skipped,
        "corpus_sha256": corpus.sha256,
        "steps": trained.steps,
        "minutes": round(trained.seconds / 60, 1),
        "device": device.type,
        "torch": torch.__version__,
        "settings": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(settings).items()
        },
    }


def write(trained: Trained, settings: FitSettings, target: Path, lineage: Mapping[str, Any]) -> str:
    """The checkpoint in LlamaGen's names, all or nothing; its SHA-256."""
    levels = len(settings.widths)
    state = trained.network.state_dict()
    tensors = {
        llamagen.original(name, levels): value.to(torch.bfloat16).contiguous()
        for name, value in state.items()
    }
    # without clocks, and one entry (several come in no order): the same steps, the same file
    own = {
        "preset": PRESET,
        "size": settings.size,
        "lineage": {k: v for k, v in lineage.items() if k != "minutes"},
    }
    metadata = {METADATA: json.dumps(own, sort_keys=True)}
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)
        sha256 = hashlib.sha256(temporary.read_bytes()).hexdigest()
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return sha256


def measured(corpus: Corpus, settings: FitSettings, out: str) -> dict[str, Any]:
    """What the written file does on the held-out pictures, and what its bar does."""
    if not corpus.held_out:
        return {}
    loaded = load_vq(Path(out), out)
    error, used = held_out_error(loaded, corpus.held_out, settings.threads)
    found: dict[str, Any] = {
        "bits_per_picture": (settings.size // settings.factor) ** 2
        * int(np.ceil(np.log2(settings.codes))),
        "held_out_psnr": round(psnr(error), 3),
        "held_out_codes_used": used,
    }
    if settings.bar_patches:
        found["bar_psnr"] = round(
            bar_psnr(
                corpus.squares,
                corpus.held_out,
                side=settings.factor,
                codes=settings.codes,
                most=settings.bar_patches,
                rounds=20,
                seed=settings.seed,
            ),
            3,
        )
    return found


def held_out_error(
    loaded: Loaded, pictures: list[np.ndarray[Any, Any]], threads: int
) -> tuple[float, int]:
    """Mean squared error (0 to 255 scale) over all pixels, and how many codes were used."""
    errors, codes = [], []
    for picture in pictures:
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
        with exact(threads):
            found = loaded.model.encode(to_float(pixels, PRESET))
            values = loaded.model.decode(found)[0].permute(1, 2, 0).cpu().numpy()
        codes.append(found.cpu().numpy().ravel())
        back = to_pixels(values, PRESET).astype(np.float64)
        errors.append(float(((back - picture) ** 2).mean()))
    return float(np.mean(errors)), len(np.unique(np.concatenate(codes)))


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise TokenizerError(
            "the folder for the checkpoint does not exist",
            where=str(target.parent),
            remedy="create it, or name another file",
        )
