"""Globs over relative paths: `*` and `?` stay within a folder, `**` crosses them. Pure.

`**/` matches zero or more folders and a closing `**` everything below; `[abc]`, `[a-z]` and
`[!a]` are one character that is not a slash. Matching is on the whole relative path: `*.py` is the
top level only, `**/*.py` every level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAGIC = re.compile(r"[*?\[]")


def has_magic(path: str) -> bool:
    return MAGIC.search(path) is not None


def split_fixed(path: str) -> tuple[str, str]:
    """`path` as (the folder before the first component with a wildcard, the pattern below it)."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def compile_globs(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """One expression that fully matches where any of `patterns` does; None for no patterns."""
    bodies = [_translate(pattern.strip("/")) for pattern in patterns]
    return re.compile("|".join(f"(?:{body})" for body in bodies), re.DOTALL) if bodies else None


def _translate(pattern: str) -> str:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    out = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            out.append(".*" if last else "(?:[^/]+/)*")
        else:
            out.append(_component(part) + ("" if last else "/"))
    return "".join(out)


def _component(part: str) -> str:
    out, at = [], 0
    while at < len(part):
        char = part[at]
        if char == "*":
            # a run of stars is one: `a***b` must not become nested repetition
            while at + 1 < len(part) and part[at + 1] == "*":
                at += 1
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[" and (close := part.find("]", at + 2)) > 0:
            out.append(_character_class(part[at + 1 : close]))
            at = close
        else:
            out.append(re.escape(char))
        at += 1
    return "".join(out)


def _character_class(body: str) -> str:
    negated = body[0] in "!^"
    body = body[1:] if negated else body
    out, at = [], 0
    while at < len(body):
        if at + 2 < len(body) and body[at + 1] == "-":
            low, high = body[at], body[at + 2]
            if low <= high:  # an empty range such as [z-a] matches nothing, as in a shell
                out.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            out.append(re.escape(body[at]))
            at += 1
    chars = "".join(out)
    if negated:
        return f"[^/{chars}]"
    return f"(?!/)[{chars}]" if chars else r"(?!)"
