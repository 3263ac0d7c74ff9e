"""Decoded text as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.schemas.tokenizer import Window


class TextRenderer:
    suffixes = (".txt",)

    def write(self, media: str, path: Path) -> None:
        path.write_text(media, encoding="utf-8")

    def original(self, fields: Mapping[str, Any], windows: Sequence[Window]) -> str:
        value = next(iter(fields.values()))
        return value if isinstance(value, str) else str(value, "utf-8", "replace")

    def beside(self, original: str, decoded: str) -> str:
        return f"{original}\n--- decoded ---\n{decoded}"


RENDERER = TextRenderer()
