"""Where codes and merges lie among the ids of a language model: published layouts, as data.

Shards keep local ids; a layout is applied when ids are read for a model that has one already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import MergeTable


@dataclass(frozen=True, kw_only=True, slots=True)
class LlmLayout:
    """Codes 0 … codes - 1 lie from `codes_at` on, merges in rule order from `merges_at` on.

    text: the model's own ids [start, end), where they are one range. specials: name -> id.
    before, after: names of the special ids around a picture. size: ids are 0 … size - 1.
    """

    codes_at: int
    codes: int
    merges_at: int
    merges: int
    size: int
    specials: Mapping[str, int]
    before: tuple[str, ...]
    after: tuple[str, ...]
    text: tuple[int, int] | None = None
    source: str = ""

    def fitted(self, table: MergeTable) -> LlmLayout:
        """For a table with fewer merges than the layout has room for: its size shrinks with them.

        Raises TokenizerError where the codebook is another, or the merges are too many.
        """
        if table.vocab != self.codes or len(table.rules) > self.merges:
            raise TokenizerError(
                "the merges do not fit into this layout",
                why=f"it has room for {self.codes:,} codes and {self.merges:,} merges; the table "
                f"has {table.vocab:,} and {len(table.rules):,}",
                remedy="cut the table with `rules`, or choose another layout",
            )
        return replace(self, merges=len(table.rules), size=self.merges_at + len(table.rules))

    def to_llm(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Local ids of codes and merges to the model's ids. Raises ValueError for any other."""
        local = np.asarray(ids, np.int64)
        if local.size and (local.min() < 0 or local.max() >= self.codes + self.merges):
            raise ValueError(f"an id outside 0 … {self.codes + self.merges - 1}")
        shifted = local - self.codes + self.merges_at
        return np.where(local < self.codes, local + self.codes_at, shifted)

    def to_local(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The inverse. Raises ValueError for ids that are neither codes nor merges."""
        llm = np.asarray(ids, np.int64)
        code, merge = llm - self.codes_at, llm - self.merges_at
        is_code = (code >= 0) & (code < self.codes)
        is_merge = (merge >= 0) & (merge < self.merges)
        if not (is_code | is_merge).all():
            raise ValueError(f"{int(llm[~(is_code | is_merge)][0])} is no code and no merge")
        return np.where(is_code, code, merge + self.codes)

    def picture(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The span of one picture as the model reads it, special ids around it."""
        before = [self.specials[name] for name in self.before]
        after = [self.specials[name] for name in self.after]
        return np.concatenate([before, self.to_llm(ids), after]).astype(np.int64)


def llm_layout(name: str) -> LlmLayout:
    """A published layout. Raises TokenizerError for an unknown name."""
    known = json.loads(files(__package__).joinpath("layouts.json").read_text())
    if name not in known:
        raise TokenizerError(f"no layout is called {name!r}{nearest(name, known)}")
    found = known[name]
    for key in ("before", "after", "text"):
        found[key] = tuple(found[key]) if found[key] is not None else None
    return LlmLayout(**found)
