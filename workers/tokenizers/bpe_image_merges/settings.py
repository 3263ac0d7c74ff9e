"""The `config` of a merged stream and of `fit`: checked, the nearest known key in the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import MODES, Mode
from tokenmill.workers.tokenizers.bpe_image_merges.shapes import MAX_CELLS

MAX_SIDE = 1 << 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a job may say about a table of merges.

    grid: what the ids say about the size of their grid. None: two ids come first, for height and
        width, so that ids alone are enough, whatever the shapes. (H, W): every grid has this
        shape, others are quarantined, and no id is spent on it. "outside": nothing is said; the
        reader knows. Modes that cannot be decoded are always "outside".
    max_side: with size ids, the longest side; side s has the id (codes + merges + s - 1).
    rules: use only so many of the table's rules: a smaller vocabulary of the same family.
    """

    grid: tuple[int, int] | str | None = None
    max_side: int = 128
    rules: int | None = None

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Settings:
        """Raises TokenizerError naming the key, the value and what it may be."""
        _known(config, cls)
        grid = config.get("grid")
        if isinstance(grid, list | tuple):
            if len(grid) != 2 or not all(_whole(side, 1, MAX_SIDE) for side in grid):
                raise _bad("grid", grid, f"[height, width], each 1 to {MAX_SIDE}")
            grid = (grid[0], grid[1])
        elif grid not in (None, "outside"):
            raise _bad("grid", grid, "[height, width], outside, or nothing")
        _check(config, "max_side", 1, MAX_SIDE)
        _check(config, "rules", 0, None)
        return cls(**{**config, "grid": grid})


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """What `fit` may be told.

    vocab: how many image codes there are; left out, what the stream says, or the highest code
        seen and one more. rules: merges to learn at most. min_count: a rarer pair is not merged
        (the mode being-vl-0.5 goes down to 1, as its code does). max_cells: no token covers more.
    workers: threads; changes nothing in the result. max_grids: learn from the first so many.
    alpha, sigma: of the mode priority.
    """

    mode: Mode = "region2d"
    vocab: int | None = None
    rules: int = 8192
    min_count: int = 2
    max_cells: int = 16
    workers: int = 1
    max_grids: int | None = None
    alpha: float = 0.5
    sigma: float = 0.5

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> FitSettings:
        """Raises TokenizerError naming the key, the value and what it may be."""
        _known(config, cls)
        if config.get("mode", "region2d") not in MODES:
            raise _bad("mode", config["mode"], "one of " + ", ".join(MODES))
        _check(config, "vocab", 1, None)
        _check(config, "rules", 1, None)
        _check(config, "min_count", 1, None)
        _check(config, "max_cells", 2, MAX_CELLS)
        _check(config, "workers", 1, 1024)
        _check(config, "max_grids", 1, None)
        for key, low in (("alpha", 0.0), ("sigma", 1e-6)):
            value = config.get(key, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
                raise _bad(key, value, f"a number of at least {low:g}")
        return cls(**config)


def _known(config: Mapping[str, Any], of: type[Any]) -> None:
    names = [f.name for f in fields(of)]
    for key in config:
        if key not in names:
            raise TokenizerError(f"no setting is called {key!r}{nearest(key, names)}",
                                 where="config")  # fmt: skip


def _check(config: Mapping[str, Any], key: str, low: int, high: int | None) -> None:
    value = config.get(key)
    if value is not None and not _whole(value, low, high):
        raise _bad(key, value, f"a whole number from {low}" + (f" to {high}" if high else ""))


def _whole(value: Any, low: int, high: int | None) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and low <= value and (high is None or value <= high)


def _bad(key: str, value: Any, wanted: str) -> TokenizerError:
    return TokenizerError(f"{key}: {value!r} is not {wanted}", where=f"config.{key}")
