"""Tensors out of a checkpoint file or folder, without ever running what a pickle says.

.safetensors, a folder of them (transformers), or a torch file read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image.layout import Shape

_INDEX_BYTES = 64 << 20
# In this order: LlamaGen's averaged weights, its plain ones, Lightning's.
_CONTAINERS = ("ema", "model", "state_dict")


class Tensors(Protocol):
    """A checkpoint whose shapes are known before its values are read."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, names: Iterable[str]) -> dict[str, Tensor]: ...


def open_checkpoint(path: Path, where: str) -> Tensors:
    """Raises TokenizerError where nothing can be read, or not safely."""
    if path.is_dir():
        return _Safetensors(_shards(path, where), where)
    if path.suffix == ".safetensors" or _is_safetensors(path):
        return _Safetensors([path], where)
    return _TorchFile(path, where)


def file_sha256(path: Path) -> str | None:
    """None for a folder: its tensors are hashed into the space all the same."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Safetensors:
    def __init__(self, paths: list[Path], where: str) -> None:
        self._where = where
        self._home: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    self.metadata |= file.metadata() or {}
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        self._home[name] = path
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise _unreadable(path.name, str(error), where) from None

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        wanted = list(names)
        with ExitStack() as stack:
            files: dict[Path, Any] = {}
            for path in {self._home[name] for name in wanted}:
                opened = safe_open(path, framework="pt")
                files[path] = stack.enter_context(opened)
            return {name: files[self._home[name]].get_tensor(name) for name in wanted}


@dataclass(init=False)
class _TorchFile:
    shapes: Mapping[str, Shape]
    metadata: Mapping[str, str]

    def __init__(self, path: Path, where: str) -> None:
        loaded = _load(path, where)
        for name in _CONTAINERS:
            inner = loaded.get(name) if isinstance(loaded, dict) else None
            if isinstance(inner, dict) and any(isinstance(v, Tensor) for v in inner.values()):
                loaded = inner
                break
        if not isinstance(loaded, dict):
            raise _unreadable(path.name, f"it holds a {type(loaded).__name__}, no tensors", where)
        self._tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.metadata = {}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self._tensors[name] for name in names}


def _load(path: Path, where: str) -> Any:
    if _is_torchscript(path):
        raise TokenizerError(
            "the checkpoint is TorchScript, which is a program",
            where=where,
            why="it would run code of the file's author",
            remedy="save its state dict as .safetensors where you trust it, and name that file",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TokenizerError(
            "the checkpoint needs more than tensors to be loaded",
            where=where,
            why=_first_line(error),
            remedy="only tensors are read (weights_only): where you trust the file, save its "
            "state dict as .safetensors and name that file",
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _unreadable(path.name, _first_line(error), where) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(n.endswith("/constants.pkl") or "/code/" in n for n in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _is_safetensors(path: Path) -> bool:
    """An eight-byte length and the beginning of a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27


def _shards(folder: Path, where: str) -> list[Path]:
    """The safetensors files of a transformers folder: those that its index names, or all."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise _unreadable(folder.name, "the folder holds no .safetensors file", where)
        return found
    if indexes[0].stat().st_size > _INDEX_BYTES:
        raise _unreadable(indexes[0].name, "the index is too large", where)
    try:
        named = set(json.loads(indexes[0].read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(indexes[0].name, f"not an index: {error}", where) from None
    for name in named:
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise _unreadable(indexes[0].name, f"it names {name!r}, outside the folder", where)
    return [folder / name for name in sorted(named)]


def _unreadable(name: str, why: str, where: str) -> TokenizerError:
    return TokenizerError(
        f"the checkpoint {name} cannot be read",
        where=where,
        why=why,
        remedy="name a .safetensors file, a transformers folder, or a torch file of tensors",
    )
