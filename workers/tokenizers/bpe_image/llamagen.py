"""The LlamaGen layout: VQ-16 and VQ-8, and Janus, whose names are the same below its prefix.

Attention after every block of the lowest level; decoder levels in order of execution, the lowest
resolution first (taming counts them from the highest); codes of unit length.
"""

from __future__ import annotations

import re

NAME = "llamagen"
PRESET, SIZE = "adm", 256
NORMALISED = True
MARK = "encoder.conv_blocks."  # no other family has it

_MID = {"0": "block_1", "1": "attn_1", "2": "block_2"}
_BLOCK = re.compile(r"(encoder|decoder)\.conv_blocks\.(\d{1,4})\.(.+)\Z")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.([012])\.(.+)\Z")


def canonical(name: str, levels: int) -> str | None:
    """The taming name of a tensor, or None for one that does not count."""
    if name == "quantize.codebook_used":  # a training statistic
        return None
    if block := _BLOCK.match(name):
        half, level, rest = block[1], int(block[2]), block[3]
        rest = f"block.{rest[4:]}" if rest.startswith("res.") else rest
        if half == "encoder":
            return f"encoder.down.{level}.{rest}"
        return f"decoder.up.{levels - 1 - level}.{rest}"
    if middle := _MIDDLE.match(name):
        return f"{middle[1]}.mid.{_MID[middle[2]]}.{middle[3]}"
    return name


def original(name: str, levels: int) -> str:
    """The LlamaGen name of a canonical one: what `fit` writes."""
    steps = name.split(".")
    if steps[:2] in (["encoder", "down"], ["decoder", "up"]):
        level = int(steps[2]) if steps[0] == "encoder" else levels - 1 - int(steps[2])
        kind = "res" if steps[3] == "block" else steps[3]
        return ".".join([steps[0], "conv_blocks", str(level), kind, *steps[4:]])
    if len(steps) > 2 and steps[1] == "mid":
        number = next(n for n, m in _MID.items() if m == steps[2])
        return ".".join([steps[0], "mid", number, *steps[3:]])
    return name
