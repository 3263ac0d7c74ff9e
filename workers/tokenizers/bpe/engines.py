"""Engines turn texts into ids. Reference engines: the library of each format. Fast: fastokens.

Every engine takes whole batches and gives one flat buffer. Whatever native code throws becomes
EngineRefusal, so that the caller can find the document at fault.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Flat = tuple[NDArray[np.uint32], NDArray[np.int64]]  # ids of all texts, n + 1 offsets into them


class EngineRefusal(Exception):
    """Native code refused a batch or a file: an error, a limit or a panic."""


class Engine(Protocol):
    @property
    def name(self) -> str:
        """Library and version, for provenance."""
        ...

    def encode(self, texts: Sequence[str]) -> Flat:
        """Ids of every text under the engine's special-token policy. Raises EngineRefusal."""
        ...


def native(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`call`, with whatever it throws as EngineRefusal."""
    try:
        return call(*args, **options)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        raise EngineRefusal(f"{type(error).__name__}: {error}") from error


def one_core(threads: int = 1) -> None:
    """One worker, one core: told to the native pools before they start, unless the user did."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")


def flat(lists: Sequence[Any]) -> Flat:
    """One buffer of a list of id sequences."""
    offsets = np.fromiter(accumulate(map(len, lists), initial=0), np.int64, len(lists) + 1)
    ids = np.empty(int(offsets[-1]), np.uint32)
    for n, one in enumerate(lists):
        ids[offsets[n] : offsets[n + 1]] = one
    return ids, offsets


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceEngine:
    """A library's own encoder, given as a function from texts to id sequences."""

    name: str
    lists: Callable[[Sequence[str]], Sequence[Any]]

    def encode(self, texts: Sequence[str]) -> Flat:
        return flat(native(self._lists, texts))

    def _lists(self, texts: Sequence[str]) -> Sequence[Any]:
        for text in texts:
            text.encode()  # tiktoken would silently replace lone surrogates
        return self.lists(texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class FastEngine:
    """fastokens: 44 M tokens per CPU-second where tokenizers makes 0.9 M and tiktoken 3 M.

    split: special tokens in raw text are ordinary text. template: apply the post-processor.
    """

    name: str
    tokenizer: Any
    split: bool
    template: bool

    def encode(self, texts: Sequence[str]) -> Flat:
        ids, offsets = native(
            self.tokenizer.encode_batch_flat, list(texts), self.template, self.split
        )
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).view(np.int64)


def fast_engine(make: Callable[[Any], Any], *, split: bool, template: bool) -> FastEngine:
    """The fast engine over `make(fastokens.Tokenizer)`. Raises EngineRefusal with the reason."""
    try:
        # here and not above: optional, and its thread pool must find the environment set
        fastokens = importlib.import_module("fastokens")
    except ImportError as error:
        raise EngineRefusal(f"fastokens is not installed ({error})") from None
    return FastEngine(
        name=f"fastokens {_version('fastokens')}",
        tokenizer=native(make, fastokens.Tokenizer),
        split=split,
        template=template,
    )


def _version(package: str) -> str:
    return importlib.metadata.version(package)
