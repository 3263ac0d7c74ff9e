"""Checking a mapping of settings against a dataclass: errors name key, value and what it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest

# key -> the choices, or (least, most) of a number
Rules = Mapping[str, Sequence[str] | tuple[float, float]]


def check(config: Mapping[str, Any], kind: type, rules: Rules, where: str) -> None:
    """Raises TokenizerError for an unknown key, or a value that its rule does not allow."""
    names = [f.name for f in fields(kind)]
    for key, value in config.items():
        if key not in names:
            raise TokenizerError(
                f"bpe-image has no setting {key!r}{nearest(str(key), names)}",
                where=where,
                remedy="settings: " + ", ".join(names),
            )
        rule = rules.get(key)
        if rule is not None and value is not None:
            _check_value(key, value, rule, where)


def _check_value(key: str, value: Any, rule: Sequence[Any], where: str) -> None:
    if isinstance(rule[0], str):
        if value not in rule:
            raise bad(key, value, "one of " + ", ".join(rule), where)
        return
    least, most = rule
    whole = isinstance(least, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise bad(key, value, "a whole number" if whole else "a number", where)
    if not least <= value <= most:
        raise bad(key, value, f"from {least} to {most}", where)


def bad(key: str, value: object, wanted: str, where: str) -> TokenizerError:
    shown = repr(value)
    return TokenizerError(
        f"bpe-image cannot use {key}: {shown if len(shown) < 80 else shown[:77] + '...'}",
        where=f"{where}.{key}",
        remedy=f"give {wanted}",
    )
