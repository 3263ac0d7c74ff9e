"""Placeholder until branch bpe brings the real one: tokenizers by `package.module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Checkpoint, Tokenizer


def load(name: str, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Tokenizer:
    """The loaded tokenizer. Raises TokenizerError."""
    module, _, cls = name.partition(":")
    if not cls:
        raise TokenizerError(f"no tokenizer is called {name!r}")
    tokenizer: Tokenizer = getattr(importlib.import_module(module), cls).load(checkpoint, config)
    return tokenizer
