"""Values of a text field as str, or the reason why one is not. Picklable; no native library.

Bytes are strict UTF-8: a byte-order mark is kept as the character U+FEFF that it is, NUL is a
character like any other. Lone surrogates are found by the engines, which refuse them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.schemas.errors import SampleError


@dataclass(frozen=True, kw_only=True)
class Texts:
    """refused: special tokens that a sample may not hold (`special_tokens: refuse`)."""

    refused: tuple[str, ...] = ()
    _search: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        longest_first = sorted(self.refused, key=lambda token: (-len(token), token))
        pattern = re.compile("|".join(map(re.escape, longest_first))) if self.refused else None
        object.__setattr__(self, "_search", pattern)

    def one(self, value: Any) -> str:
        """Raises SampleError: invalid-utf8, invalid-unicode, special-token, not-text."""
        text = self._text(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise lone_surrogate(text, error.start) from None
        self._refuse(text)
        return text

    def batch(self, values: Sequence[Any]) -> tuple[list[str], dict[int, SampleError]]:
        """All values, with "" and a fault in the place of those that are no text."""
        if self._search is None:
            try:
                return [v if type(v) is str else str(v, "utf-8") for v in values], {}
            except (UnicodeDecodeError, TypeError):
                pass  # one of them is at fault: find it below
        texts, faults = [], {}
        for n, value in enumerate(values):
            try:
                text = self._text(value)
                self._refuse(text)
            except SampleError as fault:
                text, faults[n] = "", fault
            texts.append(text)
        return texts, faults

    def _text(self, value: Any) -> str:
        if isinstance(value, str):
            return str(value)
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError as error:
            raise SampleError(
                "invalid-utf8",
                f"byte {error.start} is not UTF-8 ({error.reason})",
                remedy="repair or re-encode the source; other encodings are not guessed",
            ) from None
        except TypeError:
            raise SampleError(
                "not-text",
                f"a value of type {type(value).__name__} instead of text",
                remedy="choose a text field of the source",
            ) from None

    def _refuse(self, text: str) -> None:
        found = self._search.search(text) if self._search is not None else None
        if found is not None:
            raise SampleError(
                "special-token",
                f"the special token {found.group()!r} stands in the text at character "
                f"{found.start()}",
                why="special_tokens: refuse",
                remedy="clean the source, or set special_tokens to text or encode",
            )


def lone_surrogate(text: str, at: int) -> SampleError:
    return SampleError(
        "invalid-unicode",
        f"a lone surrogate U+{ord(text[at]):04X} at character {at}",
        why="it stands for no character and has no UTF-8",
        remedy="repair the source: half of a surrogate pair was cut off or escaped",
    )
