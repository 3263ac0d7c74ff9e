"""Decoded media as files for people, one module per modality: what `tokenmill decode` writes.

A modality is added by a module with a `RENDERER` and a line in `_MODULES`; it is imported when it
is asked for, so that text needs no picture library. May import schemas and its modality's library.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Window

_MODULES: Mapping[str, str] = {
    "text": "tokenmill.workers.rendering.texts",
    "image": "tokenmill.workers.rendering.images",
    "video": "tokenmill.workers.rendering.videos",
}


class Renderer(Protocol):
    """One modality's files. `suffixes`: with the dot, lower case, the usual one first."""

    suffixes: tuple[str, ...]

    def write(self, media: Any, path: Path) -> None:
        """`media` as the plug-in's `decode` gives it; the suffix of `path` chooses the format."""
        ...

    def original(self, fields: Mapping[str, Any], windows: Sequence[Window]) -> Any:
        """What the encoder saw, as the same kind of media, from a sample's prepared windows."""
        ...

    def beside(self, original: Any, decoded: Any) -> Any:
        """Both in one, the original first."""
        ...


def renderer(modality: str) -> Renderer:
    """Raises TokenizerError for a modality without files, or whose library is missing."""
    if modality not in _MODULES:
        raise TokenizerError(
            f"decoded {modality} cannot be written to a file yet",
            remedy="`tokenmill.open(store)` and `row.decode(stream)` give it to your program",
        )
    try:
        return cast("Renderer", importlib.import_module(_MODULES[modality]).RENDERER)
    except ImportError as error:
        raise TokenizerError(
            f"writing {modality} needs a library",
            why=str(error),
            remedy=f"pip install 'tokenmill[{modality}]'",
        ) from None


def modalities_of(suffix: str) -> list[str]:
    """The modalities that write files of this suffix, of those whose library is installed."""
    found = []
    for name in _MODULES:
        with suppress(TokenizerError):
            if suffix.lower() in renderer(name).suffixes:
                found.append(name)
    return found
