"""The plug-in `bpe-image`: pictures to a grid of VQ-GAN codes, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import STARTER
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    OutputSpec,
    Piece,
    Tokenizer,
    TokenizerIdentity,
    Window,
)
from tokenmill.workers.fetch import fetch
from tokenmill.workers.tokenizers.bpe_image.exact import exact
from tokenmill.workers.tokenizers.bpe_image.examples import examples
from tokenmill.workers.tokenizers.bpe_image.fit import fit as fit_checkpoint
from tokenmill.workers.tokenizers.bpe_image.merge_config import split_config
from tokenmill.workers.tokenizers.bpe_image.preparer import ImagePreparer
from tokenmill.workers.tokenizers.bpe_image.presets import to_float, to_pixels
from tokenmill.workers.tokenizers.bpe_image.settings import Settings
from tokenmill.workers.tokenizers.bpe_image.vq import Loaded, load_vq

IDS_REVISION = 1
STARTER_FILE = Path(__file__).with_name("starter") / "starter.safetensors"
VQ = "vq"


class BpeImageTokenizer:
    """Images by a VQ-GAN checkpoint, by default the starter of this package: see `Settings`."""

    def __init__(self, loaded: Loaded, settings: Settings) -> None:
        self._loaded = loaded
        self._settings = settings
        self._crop = settings.crop(
            preset=loaded.preset, size=loaded.size, factor=loaded.found.layout.factor
        )
        self._device = _device(settings.device)
        loaded.model.to(self._device, getattr(torch, settings.precision))

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        """With `merges` in the configuration the output is `merged`, else `vq`."""
        own, merges = split_config(config)
        described = _descriptor(Settings.parse(own), None)
        return described if merges is None else _merged().describe_merged(described, merges)

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Tokenizer:
        """Raises TokenizerError where checkpoint or configuration cannot be used."""
        own, merges = split_config(config)
        settings = Settings.parse(own)
        if checkpoint is None or checkpoint.uri == STARTER:
            checkpoint = Checkpoint(
                uri=str(STARTER_FILE), sha256=checkpoint.sha256 if checkpoint else None
            )
        made = cls(load_vq(fetch(checkpoint), checkpoint.uri), settings)
        return made if merges is None else _merged().MergedImages.over(made, merges)

    @classmethod
    def fit(
        cls, samples: Iterator[Fields], out: str, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Train a small checkpoint of the LlamaGen family and write it to `out`."""
        return fit_checkpoint(samples, out, config)

    @classmethod
    def examples(cls) -> Sequence[Fields]:
        return examples()

    @property
    def descriptor(self) -> Descriptor:
        """Complete: with the codebook's size and the dtype that holds it."""
        return _descriptor(self._settings, self._loaded.found.layout.codes)

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(
            cost=self._settings.batch * self._crop.size**2, windows=self._settings.batch
        )

    def identity(self) -> TokenizerIdentity:
        settings, crop = self._settings, self._crop
        return TokenizerIdentity(
            name="bpe-image",
            space=self._loaded.space,
            parts={
                "ids_revision": IDS_REVISION,
                "preset": crop.preset,
                "size": crop.size,
                "aspect": crop.aspect,
                "frames": settings.frames,
                "precision": settings.precision,
                "threads": settings.threads,
                "batch": settings.batch,
                "decoder": "pillow",
            },
            provenance={
                "family": self._loaded.found.family,
                "torch": torch.__version__,
                "device": _device_name(self._device),
                "pillow": PIL.__version__,
                "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg")),
                **({"checkpoint_sha256": self._loaded.sha256} if self._loaded.sha256 else {}),
            },
        )

    def preparer(self) -> ImagePreparer:
        return ImagePreparer(
            crop=self._crop, which=self._settings.frames, bounds=self._settings.bounds
        )

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        """Codes of windows of one bucket.

        On the CPU one by one: a batch is no faster there, and its sums may round differently, so
        that a picture's ids would hang on its neighbours.
        """
        arrays = [window.arrays["pixels"] for window in windows]
        step = 1 if self._device.type == "cpu" else len(arrays)
        grids: list[np.ndarray[Any, Any]] = []
        for start in range(0, len(arrays), step):
            grids.extend(self._codes(np.stack(arrays[start : start + step])))
        return [
            Piece(ids={VQ: grid}, index=window.index)
            for grid, window in zip(grids, windows, strict=True)
        ]

    def join(self, pieces: Sequence[Piece]) -> Encoding:
        grids = np.stack([piece.ids[VQ] for piece in pieces])
        shape = grids.shape if self._settings.frames == "all" else grids.shape[1:]
        return {VQ: Encoded(ids=grids.reshape(-1), shape=shape)}

    def decode(
        self, encoding: Encoding, conditions: Fields | None = None
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """uint8 [H, W, 3] of a grid, [T, H, W, 3] of frames.

        Raises TokenizerError for a checkpoint without a decoder, and for ids outside its codebook.
        """
        one = encoding[VQ]
        codes = np.asarray(one.ids).astype(np.int64).reshape(one.shape)
        if codes.size and int(codes.max()) >= self._loaded.found.layout.codes:
            raise TokenizerError(
                f"the id {int(codes.max())} is not in this codebook of "
                f"{self._loaded.found.layout.codes}",
                remedy="decode with the checkpoint that made the tokens",
            )
        grids = codes if codes.ndim == 3 else codes[None]
        pictures = []
        for grid in grids:
            with exact(self._settings.threads):
                values = self._loaded.model.decode(torch.from_numpy(grid.copy())[None])[0]
                pictures.append(to_pixels(values.permute(1, 2, 0).cpu().numpy(), self._crop.preset))
        return np.stack(pictures) if codes.ndim == 3 else pictures[0]

    def _codes(self, pixels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """uint8 [B, H, W, 3] -> B grids [h, w] in the output's dtype."""
        with exact(self._settings.threads):
            nhwc = torch.from_numpy(pixels).to(self._device)
            nchw: Tensor = nhwc.permute(0, 3, 1, 2).contiguous().float()
            codes = self._loaded.model.encode(to_float(nchw, self._crop.preset)).cpu().numpy()
        return list(codes.astype(_dtype(self._loaded.found.layout.codes)))


def _merged() -> Any:
    """Numba takes a second to import: only where merges are asked for."""
    from tokenmill.workers.tokenizers.bpe_image import merged  # noqa: PLC0415 - see above

    return merged


def _descriptor(settings: Settings, codes: int | None) -> Descriptor:
    return Descriptor(
        name="bpe-image",
        modality="image",
        ids_revision=IDS_REVISION,
        fields=("image",),
        outputs=(
            OutputSpec(
                name=VQ,
                dtype=_dtype(codes) if codes else "uint16",
                axes=settings.axes,
                codebook_sizes=(codes,) if codes else (),
            ),
        ),
        device="any",
        prepare_in="child",
        licence_code="Apache-2.0",
        use_policy="unknown",  # of the checkpoint: Chameleon's is for research only
    )


def _dtype(codes: int) -> Literal["uint8", "uint16", "uint32"]:
    if codes <= 1 << 8:
        return "uint8"
    return "uint16" if codes <= 1 << 16 else "uint32"


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TokenizerError(
            "there is no GPU here",
            where="config.device",
            remedy="give the stream a GPU in `resources`, or leave `device` out",
        )
    gpu = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if gpu else "cpu")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
