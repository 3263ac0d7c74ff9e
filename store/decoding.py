"""From ids back to media. Tokenizers live above the store: a decoder is handed down by the caller,
and told what the ledger records of the tokenizer that made the ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tokenmill.schemas.errors import JobError, TokenizerError
from tokenmill.store.ledger import Ledger

Key = tuple[str, str, str]  # pipeline, stream, recipe
DecodeIds = Callable[[NDArray[Any], tuple[int, ...]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamTokenizer:
    """What a decoder must know of a stream: its tokenizer row of the ledger."""

    pipeline: str
    stream: str
    tokenizer: str
    space: str
    recipe: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    config: Mapping[str, Any]
    descriptor: Mapping[str, Any]
    # whose tokens it reads instead of media, if any: decoding gives those back first
    parent: StreamTokenizer | None = None


# From a stream's tokenizer to a function (flat ids, shape) -> media.
Decoder = Callable[[StreamTokenizer], DecodeIds]


class Decoders:
    """One decoding function per recipe, made when the first sample asks for it."""

    def __init__(self, ledger: Ledger, decoder: Decoder | None, *, where: str) -> None:
        self._ledger = ledger
        self._decoder = decoder
        self._where = where
        self._made: dict[Key, DecodeIds] = {}
        self._rows: dict[Key, dict[str, Any]] | None = None

    def decode(
        self, pipeline: str, stream: str, recipe: str, ids: NDArray[Any], shape: tuple[int, ...]
    ) -> Any:
        """Raises JobError without a decoder, TokenizerError without a tokenizer row."""
        key = (pipeline, stream, recipe)
        if key not in self._made:
            if self._decoder is None:
                raise JobError(
                    f"no decoder for stream {stream!r}",
                    where=self._where,
                    why="the store alone knows no tokenizers",
                    remedy="open it with tokenmill.open, or pass decoder=",
                )
            self._made[key] = self._decoder(self.tokenizer(*key))
        return self._made[key](ids, shape)

    def tokenizer(self, pipeline: str, stream: str, recipe: str) -> StreamTokenizer:
        """The newest tokenizer row of a recipe. Raises TokenizerError."""
        if self._rows is None:
            rows = self._ledger.rows("tokenizer").sort_by("seq").to_pylist()
            self._rows = {(r["pipeline"], r["stream"], r["recipe"]): r for r in rows}
        row = self._rows.get((pipeline, stream, recipe))
        if row is None:
            raise TokenizerError(
                f"the ledger has no tokenizer row for {pipeline}/{stream}",
                where=self._where,
                why=f"recipe {recipe}",
            )
        descriptor = json.loads(row["descriptor"] or "{}")
        parent = None
        if descriptor.get("parent") is not None:
            recipe_above = json.loads(row["parts"] or "{}").get("parent", {}).get("recipe", "")
            parent = self._by_recipe(pipeline, recipe_above)
        return StreamTokenizer(
            parent=parent,
            pipeline=pipeline,
            stream=stream,
            tokenizer=row["tokenizer"],
            space=row["space"],
            recipe=recipe,
            checkpoint=row["checkpoint"],
            checkpoint_sha256=row["checkpoint_sha256"],
            config=json.loads(row["config"] or "{}"),
            descriptor=descriptor,
        )

    def _by_recipe(self, pipeline: str, recipe: str) -> StreamTokenizer:
        """The tokenizer that a child's parent had, whatever its stream is called now."""
        assert self._rows is not None
        for at, stream, found in reversed(self._rows):
            if (at, found) == (pipeline, recipe):
                return self.tokenizer(pipeline, stream, recipe)
        raise TokenizerError(
            "the ledger has no tokenizer row for the parent of a stream",
            where=self._where,
            why=f"recipe {recipe}",
        )
