"""The taming layout: Chameleon, Anole, Being-VL, Lumina-mGPT, taming ImageNet.

Its names are the canonical ones. Codes are compared as they are, without normalisation.
"""

from __future__ import annotations

NAME = "taming"
PRESET, SIZE = "chameleon", 512
NORMALISED = False


def canonical(name: str, levels: int) -> str | None:
    """The canonical name of a tensor, or None for one that does not count."""
    return name
