"""What `import tokenmill` offers: stores opened for reading, tokenizers for one-off use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Checkpoint, Decodes, Encoded
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.decoding import StreamTokenizer
from tokenmill.workers import registry
from tokenmill.workers.one_off import LoadedTokenizer


def open(
    uri: str,
    *,
    tag: str | None = None,
    snapshot: str | None = None,
    pipeline: str | None = None,
    spaces: Mapping[str, str] | None = None,
) -> Dataset:
    """A snapshot of the store at `uri`: rows with aligned streams, columns, SQL, decoding.

    spaces: stream -> 64 hex digits; tokens of another space raise SpaceMismatch. Raises StoreError
    where there is no store.
    """
    return open_store(
        uri, tag=tag, snapshot=snapshot, pipeline=pipeline, spaces=spaces, decoder=_decoder
    )


def load_tokenizer(name: str, checkpoint: str | None = None, **config: Any) -> LoadedTokenizer:
    """A tokenizer for one-off use: `encode_samples`, `decode`. Raises TokenizerError."""
    return LoadedTokenizer(registry.load(name, checkpoint, config))


def _decoder(stream: StreamTokenizer) -> Callable[[Any, tuple[int, ...]], Any]:
    """Tokens back to media with the checkpoint that the ledger recorded.

    A store is data: what it names must be installed here as a plug-in, it may not name code.
    """
    if ":" in registry.split_variant(stream.tokenizer, stream.config)[0]:
        raise TokenizerError(
            f"the store names {stream.tokenizer!r} as its tokenizer, which is code and no plug-in",
            remedy="install the plug-in under a name, or pass a decoder of your own",
        )
    checkpoint = (
        Checkpoint(uri=stream.checkpoint, sha256=stream.checkpoint_sha256)
        if stream.checkpoint
        else None
    )
    tokenizer = registry.load(stream.tokenizer, checkpoint, stream.config)
    if not isinstance(tokenizer, Decodes):
        raise TokenizerError(f"the tokenizer {stream.tokenizer} cannot decode")
    output = tokenizer.descriptor.outputs[0].name

    def decode(ids: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Any:
        return tokenizer.decode({output: Encoded(ids=ids, shape=tuple(shape))})

    return decode
