"""Tokenizer plug-ins by name: the entry points of the group `tokenmill.tokenizers`.

A plug-in is code that somebody installed; it is imported when it is asked for, never by listing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest
from tokenmill.schemas.tokenizer import Checkpoint, Tokenizer

GROUP = "tokenmill.tokenizers"
# Also without installed metadata: Ray may ship the package as a plain folder.
BUILT_IN: Mapping[str, str] = {
    "bpe": "tokenmill.workers.tokenizers.bpe:BpeTokenizer",
    "vidtok": "tokenmill.workers.tokenizers.vidtok.tokenizer:VidTokTokenizer",
    "bpe-image": "tokenmill.workers.tokenizers.bpe_image.tokenizer:BpeImageTokenizer",
    "bpe-image-merges": "tokenmill.workers.tokenizers.bpe_image_merges.tokenizer:MergesTokenizer",
}


def names() -> list[str]:
    """Every known plug-in, sorted. Imports none of them."""
    return sorted(_targets())


def tokenizer_class(name: str) -> type[Tokenizer]:
    """The plug-in called `name`, or the class that `package.module:Class` names.

    `vidtok:fsq_…` is `vidtok`: what follows is a variant, see `split_variant`. Raises
    TokenizerError where there is none (naming the nearest), where two packages offer the name, or
    where it cannot be imported.
    """
    name, _ = split_variant(name, {})
    if ":" in name:  # `package.module:Class`: a plug-in of one's own that is not installed
        return _load(name, name)
    targets = _targets().get(name)
    if targets is None:
        raise TokenizerError(
            f"no tokenizer is called {name!r}{nearest(name, names())}",
            remedy="`tokenmill tokenizers` lists them; a plug-in must be installed where the "
            "workers run",
        )
    if len(targets) > 1:
        raise TokenizerError(
            f"two plug-ins are called {name!r}: {' and '.join(sorted(targets))}",
            remedy="uninstall one of the packages",
        )
    return _load(name, next(iter(targets)))


def split_variant(name: str, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """`vidtok:NAME` as (`vidtok`, config with `variant: NAME`); other names as they are.

    Raises TokenizerError where the configuration names another variant.
    """
    plugin, colon, variant = name.partition(":")
    if not colon or "." in plugin or plugin not in _targets():
        return name, config
    if config.get("variant", variant) != variant:
        raise TokenizerError(
            f"{name!r}, but config.variant is {config['variant']!r}",
            remedy="name the variant once",
        )
    return plugin, {**config, "variant": variant}


def load(
    name: str,
    checkpoint: Checkpoint | str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """A loaded tokenizer. Raises TokenizerError."""
    if isinstance(checkpoint, str):
        checkpoint = Checkpoint(uri=checkpoint)
    plugin, config = split_variant(name, config or {})
    return tokenizer_class(plugin).load(checkpoint, config)


def _targets() -> dict[str, set[str]]:
    """Name -> the different targets that are offered under it."""
    found = {name: {target} for name, target in BUILT_IN.items()}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, set()).add(point.value)
    return found


def _load(name: str, target: str) -> type[Tokenizer]:
    module, _, attribute = target.partition(":")
    try:
        loaded: Any = importlib.import_module(module)
        for part in attribute.split("."):
            loaded = getattr(loaded, part)
    except (ImportError, AttributeError) as error:
        raise TokenizerError(
            f"the tokenizer {name!r} cannot be imported",
            where=target,
            why=f"{type(error).__name__}: {error}",
            remedy="install what it needs (a `torch` tokenizer: pip install 'tokenmill[torch]')",
        ) from error
    return cast("type[Tokenizer]", loaded)
