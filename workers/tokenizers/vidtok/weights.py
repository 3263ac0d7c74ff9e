"""Checkpoint files to a loaded model: official `.ckpt` (weights only) or safetensors, strictly.

Official files nest the weights under `state_dict` or not, carry the training module's `loss.*`
(dropped), and `_orig_mod.` in the names where a compiled model was saved. Neither arithmetic nor
FSQ levels are in them: they come from the variant.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.identity import canonical_json
from tokenmill.workers.tokenizers.vidtok.model import VidTok
from tokenmill.workers.tokenizers.vidtok.variants import PUBLISHED, Variant

METADATA = "tokenmill.vidtok"  # JSON in the header of a safetensors file: which variant it is
_OURS = ("encoder.", "decoder.")
_DROPPED = ("loss.", "model_ema.", "regularization.")
_WIDTH = ("encoder.conv_in.conv.bias", "encoder.conv_in.bias")  # causal, non-causal
# The official files are `vidtok_NAME.ckpt`; the longest name first, so that `_v1_1` is not lost.
_OFFICIAL = re.compile(f"vidtok_({'|'.join(sorted(PUBLISHED, key=len, reverse=True))})")


def load_model(path: Path, where: str, variant: Variant) -> VidTok:
    """The variant with the weights of the local file `path`; `where` names it in errors.

    A narrower model than the published ones is recognised by its first layer. On the CPU, in
    float32, in eval mode; the weights may be a view of the file. Raises TokenizerError where the
    file cannot be read, calls itself another variant, or does not fit.
    """
    weights, told = _read(path, where)
    _check_name(where, told, variant)
    for key in _WIDTH:
        if key in weights:
            variant = replace(variant, ch=weights[key].shape[0])
    with torch.device("meta"):
        model = VidTok(variant)
    _check_keys(model, weights, where)
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def space_of(model: VidTok) -> str:
    """64 hex digits over what an id means: arithmetic, levels and every weight."""
    variant = model.variant
    digest = hashlib.sha256(
        canonical_json(["vidtok", variant.arithmetic, list(variant.levels), variant.time_factor])
    )
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{list(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().numpy().reshape(-1).view("u1").data)
    return digest.hexdigest()


def save(model: VidTok, path: Path, card: Mapping[str, Any] | None = None) -> None:
    """A safetensors file that says which variant it is, and its card (JSON values)."""
    told = {"variant": model.variant.name, "card": dict(card or {})}
    tensors = {k: v.detach().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(tensors, path, metadata={METADATA: json.dumps(told, sort_keys=True)})


def card_of(path: Path) -> Mapping[str, Any]:
    """The card in a file that `save` wrote; {} for others."""
    with safe_open(path, "pt") as file:
        told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    card: Mapping[str, Any] = told.get("card", {})
    return card


def _read(path: Path, where: str) -> tuple[dict[str, Tensor], str | None]:
    """Our tensors by key, and the variant that the file says it is."""
    try:
        if path.suffix == ".safetensors" or where.endswith(".safetensors"):
            found, told = _read_safetensors(path)
        else:
            found, told = _read_pickle(path), None
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(
            "the checkpoint cannot be read",
            where=where,
            why=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="a .ckpt with nothing but weights (it is read with weights_only=True), or "
            ".safetensors",
        ) from None
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    strange = [k for k in found if not k.startswith((*_OURS, *_DROPPED))]
    if strange:
        raise TokenizerError(
            "the checkpoint has keys that are none of VidTok's",
            where=where,
            why=f"{len(strange)}, such as {strange[0]!r}",
        )
    return {k: v for k, v in found.items() if k.startswith(_OURS)}, told


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    if METADATA not in metadata:
        return found, None
    told = json.loads(metadata[METADATA])
    return found, str(told["variant"]) if isinstance(told, dict) else None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"a {type(loaded).__name__}, not a mapping of names to tensors")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if len(tensors) != len(loaded):
        odd = next(k for k, v in loaded.items() if not isinstance(v, Tensor))
        raise ValueError(f"{odd!r} is no tensor")
    return tensors


def _check_name(where: str, told: str | None, variant: Variant) -> None:
    """A file that names its variant, inside or by its name, must name the configured one."""
    named = _OFFICIAL.search(where.rpartition("/")[2])
    claimed = told or (named[1] if named else None)
    if claimed is not None and claimed != variant.name:
        raise TokenizerError(
            "the checkpoint is another variant than the job's",
            where=where,
            why=f"it is {claimed}, the job says {variant.name}: the weights of one version load "
            "into the other and give wrong ids",
            remedy=f"set `tokenizer: vidtok:{claimed}`, or name the right file",
        )


def _check_keys(model: VidTok, weights: Mapping[str, Tensor], where: str) -> None:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted == found:
        return
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    other = [k for k in wanted.keys() & found.keys() if wanted[k] != found[k]]
    shown = ", ".join(sorted([*missing, *extra, *other])[:3])
    raise TokenizerError(
        f"the checkpoint does not fit {model.variant.name}",
        where=where,
        why=f"{len(missing)} keys missing, {len(extra)} too many, {len(other)} of another shape: "
        f"{shown}",
        remedy="name its variant: `config: {variant: …}`",
    )
