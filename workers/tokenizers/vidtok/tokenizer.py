"""The plug-in `vidtok`: video to grids of ids (FSQ), or to continuous latents (KL).

torch is imported when weights are loaded, so that listing plug-ins and decoding media need none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    OutputSpec,
    Piece,
    TokenizerIdentity,
    Window,
)
from tokenmill.workers.fetch import fetch
from tokenmill.workers.media.video import reader_family, reader_versions
from tokenmill.workers.tokenizers.vidtok.cutting import Cut
from tokenmill.workers.tokenizers.vidtok.prepare import VideoPreparer
from tokenmill.workers.tokenizers.vidtok.settings import Settings
from tokenmill.workers.tokenizers.vidtok.variants import STARTER

if TYPE_CHECKING:
    from tokenmill.workers.tokenizers.vidtok.engine import Engine

IDS_REVISION = 1
STARTER_FILE = Path(__file__).with_name("starter") / "starter.safetensors"
CLIP_PIXELS = 17 * 256 * 256


class VidTokTokenizer:
    """VidTok v1.0 and v1.1, causal and non-causal: see `Settings` and `variants.py`."""

    def __init__(self, engine: Engine, settings: Settings, checkpoint_sha256: str) -> None:
        self._engine = engine
        self._settings = settings
        self._sha256 = checkpoint_sha256
        self._space = engine.space()
        self._output = _output(settings)

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        return _descriptor(Settings.parse(config))

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> VidTokTokenizer:
        """Raises TokenizerError where checkpoint or configuration cannot be used."""
        from tokenmill.workers.tokenizers.vidtok.engine import Engine  # noqa: PLC0415 - torch

        settings = Settings.parse(config)
        try:
            reader_family(settings.reader)
        except ImportError as error:
            raise TokenizerError("videos cannot be read here", why=str(error)) from None
        if checkpoint is None and settings.variant == STARTER.name:
            checkpoint = Checkpoint(uri=str(STARTER_FILE))
        if checkpoint is None:
            raise TokenizerError(
                "vidtok needs its weights",
                where="checkpoint",
                remedy="name an official .ckpt of microsoft/VidTok, or a .safetensors; "
                "`tokenizer: vidtok:starter` comes with its own",
            )
        path = fetch(checkpoint)
        engine = Engine(path, checkpoint.uri, settings)
        return cls(engine, settings, checkpoint.sha256 or _sha256(path))

    @classmethod
    def fit(
        cls, samples: Iterator[Fields], out: str, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Train a small model on the samples' videos; see `training.FitSettings`."""
        from tokenmill.workers.tokenizers.vidtok.training import fit  # noqa: PLC0415 - torch

        return fit(samples, out, config)

    @classmethod
    def examples(cls) -> Sequence[Fields]:
        """Moving gradients: one frame, a clip, a long one of odd length, an upright small one."""
        shapes = ((1, 64, 64), (17, 48, 80), (39, 64, 96), (18, 40, 30))
        return [{"video": _moving(*shape)} for shape in shapes]

    @property
    def descriptor(self) -> Descriptor:
        return _descriptor(self._settings)

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=self._settings.batch * CLIP_PIXELS, windows=256)

    def identity(self) -> TokenizerIdentity:
        settings = self._settings
        return TokenizerIdentity(
            name="vidtok",
            space=self._space,
            parts={
                "ids_revision": IDS_REVISION,
                **settings.recipe(),
                "decoder": reader_family(settings.reader),
            },
            provenance={
                **self._engine.provenance(),
                **reader_versions(),
                "checkpoint_sha256": self._sha256,
            },
        )

    def preparer(self) -> VideoPreparer:
        settings, model = self._settings, self._settings.model
        first, later = settings.frames
        return VideoPreparer(
            reader=settings.reader,
            fps=settings.fps,
            size=settings.frame_size,
            fit=settings.fit,
            cut=Cut(
                first=first,
                later=later,
                factor=model.time_factor,
                causal=model.causal,
                alone=not model.chunks,
                tail=settings.tail,
            ),
        )

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        """Raises SampleError `window-lost` where a window's state is not there."""
        made = self._engine.encode(windows)
        name = self._output.name
        dtype = np.dtype(self._output.dtype)
        return [
            Piece(
                ids={name: ids.astype(dtype)},
                index=window.index,
                meta={"valid": window.valid},
                carry=carry,
            )
            for window, (ids, carry) in zip(windows, made, strict=True)
        ]

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        """Raises SampleError `not-finite` where a latent is no number, or too large for float16."""
        name = self._output.name
        grid = np.concatenate([piece.ids[name] for piece in pieces])
        if self._output.continuous and not np.isfinite(grid).all():
            raise SampleError("not-finite", f"latents that are no {grid.dtype} numbers")
        frames = sum(int(piece.meta["valid"]) for piece in pieces)
        lost = pieces[-1].ids[name].shape[0] - self._latents(int(pieces[-1].meta["valid"]), pieces)
        return {
            name: Encoded(
                ids=grid.reshape(-1),
                shape=grid.shape,
                n_valid=len(grid) - lost,
                media_valid=frames,
            )
        }

    def _latents(self, frames: int, pieces: Sequence[Piece]) -> int:
        """Latents of the last window that hold a valid frame."""
        model = self._settings.model
        if model.causal and (not model.chunks or len(pieces) == 1):
            return 1 + -(-(frames - 1) // model.time_factor)
        return -(-frames // model.time_factor)

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> NDArray[np.uint8]:
        """uint8[T, H, W, 3]. Padding at the end is cut off where the encoding says how much.

        v1.1: whole up to 33 frames, then streamed with one latent of look-ahead; v1.0 and
        non-causal: clip by clip.
        """
        one = encoding[self._output.name]
        frames = self._engine.decode(np.asarray(one.ids).reshape(one.shape))
        return frames if one.media_valid is None else frames[: one.media_valid]


def _descriptor(settings: Settings) -> Descriptor:
    return Descriptor(
        name="vidtok",
        modality="video",
        ids_revision=IDS_REVISION,
        fields=("video",),
        outputs=(_output(settings),),
        device="any",
        prepare_in="child",
        licence_code="Apache-2.0",
        licence_weights="MIT (microsoft/VidTok)",
        use_policy="permissive",
    )


def _output(settings: Settings) -> OutputSpec:
    model = settings.model
    rate = (
        Fraction(settings.fps).limit_denominator(1001) / model.time_factor if settings.fps else None
    )
    if not model.levels:
        return OutputSpec(
            name="latent",
            dtype=settings.latent_dtype,
            axes=("T", "H", "W", "C"),
            rate=rate,
            continuous=True,
            pads=True,
        )
    return OutputSpec(
        name="ids",
        dtype="uint16" if model.codebook_size <= 1 << 16 else "uint32",
        axes=("T", "H", "W"),
        codebook_sizes=(model.codebook_size,),
        rate=rate,
        pads=True,
    )


def _moving(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    t, y, x = np.ogrid[:frames, :height, :width]
    planes = (x * 3 + t * 5, y * 3 + t * 2, x + y + t * 9)
    return np.stack([np.broadcast_to(p, (frames, height, width)) % 256 for p in planes], -1).astype(
        np.uint8
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
