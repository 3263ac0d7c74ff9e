"""`merges` in the configuration of a bpe-image stream, apart from what it asks for: no numba."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.schemas.errors import TokenizerError

KEY = "merges"


def split_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The settings of the VQ-GAN, and those of the merges: {table, sha256, …}, or None.

    Raises TokenizerError.
    """
    own = {key: value for key, value in config.items() if key != KEY}
    wanted = config.get(KEY)
    found = wanted if wanted is None or isinstance(wanted, Mapping) else {"table": wanted}
    if found is not None and not isinstance(found.get("table"), str):
        raise TokenizerError(
            f"bpe-image cannot use merges: {wanted!r}",
            where="config.merges",
            remedy="name the table: `merges: ./merges.safetensors`, or {table: …, grid: [H, W]}",
        )
    if found is not None and own.get("frames", "first") != "first":
        raise TokenizerError(
            "bpe-image merges single pictures only",
            where="config.frames",
            remedy="leave out `frames`, or `merges`",
        )
    return own, found
