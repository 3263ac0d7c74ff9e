"""How an export hands over a finished file, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Written = tuple[int, int]  # rows, tokens
# A finished scratch file (gone afterwards), its name below the target, and what it holds.
Place = Callable[[Path, str, Written], None]
