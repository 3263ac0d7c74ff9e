"""Public pre-tokenization patterns of tiktoken vocabularies, and their special tokens. Data only.

`text` is what the reference library (tiktoken) is given. `fast` is an equivalent spelling that
the fast engine has compiled code for; the other spelling would run in PCRE2, several times slower.
Their equality is checked at every start like everything else about the fast engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

END = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    text: str
    fast: str
    ranks: int  # entries of the published rank file: only then are `specials` its own
    specials: Mapping[str, int] = field(default_factory=dict)


_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_GPT2_FAST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_CL100K_FAST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

NAMED: Mapping[str, Named] = {
    "gpt2": Named(text=_GPT2, fast=_GPT2_FAST, ranks=50256, specials={END: 50256}),
    "r50k_base": Named(text=_GPT2, fast=_GPT2_FAST, ranks=50256, specials={END: 50256}),
    "p50k_base": Named(text=_GPT2, fast=_GPT2_FAST, ranks=50280, specials={END: 50256}),
    "cl100k_base": Named(
        text=_CL100K,
        fast=_CL100K_FAST,
        ranks=100256,
        specials={
            END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Named(
        text=_O200K,
        fast=_O200K,
        ranks=199998,
        specials={END: 199999, "<|endofprompt|>": 200018},
    ),
}


def guards(patterns: Sequence[str]) -> str:
    """Characters that fastokens 0.3.5 reads otherwise than the reference libraries.

    Found by every code point of Unicode in many contexts, and by millions of random texts: U+180E
    is white space in PCRE2's tables and nobody else's (patterns without code of their own run in
    PCRE2); U+017F is an s in `(?i:'s)` for the reference libraries and not for the o200k code.
    """
    found = ""
    for pattern in patterns:
        if pattern == _CL100K_FAST:
            continue
        if pattern != _O200K:
            found += "\u180e"
        if "(?i" in pattern:
            found += "\u017f"
    return "".join(sorted(set(found)))


def resolve(pattern: str) -> tuple[str, str]:
    """(regex for the reference library, regex for the fast engine) of a name or a regex."""
    if pattern in NAMED:
        return NAMED[pattern].text, NAMED[pattern].fast
    for named in NAMED.values():
        if pattern in (named.text, named.fast):
            return pattern, named.fast
    return pattern, pattern
