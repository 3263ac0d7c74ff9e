"""From a checkpoint's names and shapes to its family and layout. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image import llamagen, taming
from tokenmill.workers.tokenizers.bpe_image.foreign import foreign_family, janus_port
from tokenmill.workers.tokenizers.bpe_image.layout import CODEBOOK, Layout, Shapes, infer

# What the tokenizer is made of; whatever else lies in the same file does not count.
_OURS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_TRAINING = ("loss.", "discriminator.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """names: canonical name -> the file's own, of every tensor that counts."""

    family: str
    preset: str
    size: int
    layout: Layout
    names: Mapping[str, str]


def recognise(shapes: Shapes, *, where: str) -> Recognised:
    """What the file is. Raises TokenizerError with the name of a family that is not read."""
    prefix = _prefix(shapes, where)
    below = {n[len(prefix) :]: n for n in shapes if n.startswith(prefix)}
    _refuse_look_alikes([n for n in below if not n.startswith(_TRAINING)], where)
    below = {name: full for name, full in below.items() if name.startswith(_OURS)}
    family = llamagen if any(n.startswith(llamagen.MARK) for n in below) else taming
    levels = _levels(below)
    names = _canonical(family, below, levels)
    layout = infer(
        {name: tuple(shapes[full]) for name, full in names.items()},
        normalised=family.NORMALISED,
        where=where,
    )
    return Recognised(
        family=family.NAME, preset=family.PRESET, size=family.SIZE, layout=layout, names=names
    )


def _prefix(shapes: Shapes, where: str) -> str:
    found = [n[: -len(CODEBOOK)] for n in shapes if n == CODEBOOK or n.endswith(f".{CODEBOOK}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise TokenizerError(
            f"the checkpoint has {len(found)} codebooks",
            where=where,
            why=", ".join(sorted(found)[:4]),
            remedy="save the tokenizer's tensors to a file of their own",
        )
    raise _foreign(foreign_family(shapes), shapes, where)


def _refuse_look_alikes(below: Sequence[str], where: str) -> None:
    """Families that have a codebook of the same name and yet other networks."""
    if janus_port(below, _levels(below)):
        raise _foreign("the transformers port of Janus (another search, other names)", below, where)
    family = foreign_family(below)
    if family is not None:
        raise _foreign(family, below, where)


def _foreign(family: str | None, names: Iterable[str], where: str) -> TokenizerError:
    shown = ", ".join(sorted(names)[:3]) or "no tensors at all"
    return TokenizerError(
        f"the checkpoint is {family}" if family else "the checkpoint is of an unknown family",
        where=where,
        why=f"it holds {shown} ...",
        remedy="bpe-image reads Chameleon and taming VQGANs, LlamaGen VQ-16 and VQ-8, "
        "and Janus in its own layout",
    )


def _levels(names: Iterable[str]) -> int:
    numbers = [0]
    for name in names:
        steps = name.split(".")
        if steps[0] == "encoder" and len(steps) > 2 and steps[2].isdigit():
            numbers += [1 + int(steps[2])] if steps[1] in ("down", "conv_blocks") else []
    return max(numbers)


def _canonical(family: ModuleType, below: Mapping[str, str], levels: int) -> dict[str, str]:
    renamed = ((family.canonical(name, levels), full) for name, full in below.items())
    return {name: full for name, full in renamed if name is not None}
