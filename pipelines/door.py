"""What `import tokenmill` offers: stores opened for reading, tokenizers for one-off use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from tokenmill.pipelines.tensors import tensors
from tokenmill.schemas.errors import JobError, SpaceMismatch, TokenizerError
from tokenmill.schemas.tokenizer import Checkpoint, Decodes, Encoded, Tokenizer
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.decoding import DecodeIds, StreamTokenizer
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
        uri,
        tag=tag,
        snapshot=snapshot,
        pipeline=pipeline,
        spaces=spaces,
        decoder=_decoder,
        tensors=tensors,
    )


def ray_dataset(
    uri: str,
    *,
    tag: str | None = None,
    snapshot: str | None = None,
    pipeline: str | None = None,
    streams: Collection[str] | None = None,
    spaces: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """The samples of a snapshot as a `ray.data.Dataset`, read in parallel by shard.

    A row is a sample: id (16 bytes), key, source, pipeline, and per stream its ids (null: no
    tokens) and, where shapes vary, `<stream>.shape`. tag, snapshot, pipeline, spaces: as in
    `open`; streams: only these. options: of `ray.data.read_datasource`, such as
    override_num_blocks or concurrency. Workers need the store's credentials in their environment.
    Raises StoreError, SpaceMismatch, JobError (also where Ray Data is not installed), at once.
    """
    try:
        module = import_module("tokenmill.pipelines.ray_datasource")  # Ray Data takes seconds
    except ModuleNotFoundError as missing:
        raise JobError(
            "Ray Data cannot be imported",
            why=str(missing),
            remedy="pip install 'tokenmill[data]'",
        ) from None
    dataset = open(uri, tag=tag, snapshot=snapshot, pipeline=pipeline, spaces=spaces)
    if streams is not None:
        dataset = dataset.select(streams=streams)
    return module.read(dataset, options)


def load_tokenizer(name: str, checkpoint: str | None = None, **config: Any) -> LoadedTokenizer:
    """A tokenizer for one-off use: `encode_samples`, `decode`. Raises TokenizerError."""
    return LoadedTokenizer(registry.load(name, checkpoint, config))


def load_recorded(stream: StreamTokenizer) -> Tokenizer:
    """The tokenizer that the ledger recorded for a stream. Raises TokenizerError.

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
    identity = tokenizer.identity()
    if stream.parent is not None:
        identity = identity.child_of(stream.parent.space, stream.parent.recipe)
    found = identity.space
    if found != stream.space:  # the file was replaced, or a starter came with another version
        raise SpaceMismatch(
            f"the tokenizer of stream {stream.stream!r} is no longer the one that made its tokens",
            where=stream.checkpoint or f"the starter of {stream.tokenizer}",
            why=f"its space is {found}, the tokens' {stream.space}",
            remedy="decode with the checkpoint and the version that made them",
        )
    return tokenizer


def _decoder(stream: StreamTokenizer) -> DecodeIds:
    """Tokens back to media with the checkpoint that the ledger recorded."""
    tokenizer = load_recorded(stream)
    if not isinstance(tokenizer, Decodes):
        raise TokenizerError(f"the tokenizer {stream.tokenizer} cannot decode")
    output = tokenizer.descriptor.outputs[0].name

    def decode(ids: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Any:
        return tokenizer.decode({output: Encoded(ids=ids, shape=tuple(shape))})

    return decode if stream.parent is None else _through(decode, _decoder(stream.parent))


def _through(child: DecodeIds, parent: DecodeIds) -> DecodeIds:
    """A child's tokens to its parent's, and those to media."""

    def decode(ids: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Any:
        between = np.asarray(child(ids, shape))
        return parent(between.ravel(), between.shape)

    return decode
