"""Learning a byte-level BPE vocabulary. The same documents in the same order: the same file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import Fields
from tokenmill.workers.tokenizers.bpe.engines import EngineRefusal, native
from tokenmill.workers.tokenizers.bpe.patterns import resolve
from tokenmill.workers.tokenizers.bpe.settings import FitSettings
from tokenmill.workers.tokenizers.bpe.texts import Texts


@dataclass(kw_only=True)
class _Corpus:
    """Counts and hashes what the trainer reads, and stops at the bound."""

    samples: Iterator[Fields]
    max_bytes: int
    read: int = 0
    skipped: int = 0
    size: int = 0
    complete: bool = True
    digest: Any = field(default_factory=hashlib.sha256)
    failure: Exception | None = None

    def texts(self) -> Iterator[str]:
        try:
            yield from self._texts()
        except Exception as error:
            # the trainer would turn it into a message without its type
            self.failure = error
            raise

    def _texts(self) -> Iterator[str]:
        texts = Texts()
        for fields in self.samples:
            try:
                text = texts.one(fields["text"])
            except SampleError:
                self.skipped += 1
                continue
            raw = text.encode()
            if self.size + len(raw) > self.max_bytes:
                self.complete = False
                return
            self.digest.update(len(raw).to_bytes(8, "little") + raw)
            self.size += len(raw)
            self.read += 1
            yield text


def fit(samples: Iterator[Fields], out: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Learn from `samples` (field `text`), write tokenizer.json to `out`, return its lineage.

    Samples that are no text are left out and counted. Raises TokenizerError for settings or a
    corpus that give no vocabulary; what the source raises passes through.
    """
    settings = FitSettings.parse(config)
    target = Path(out)
    if not target.parent.is_dir():
        raise TokenizerError(
            "the folder for the vocabulary does not exist",
            where=str(target.parent),
            remedy="create it, or name another file",
        )
    corpus = _Corpus(samples=samples, max_bytes=settings.max_bytes)
    tokenizer = _empty(settings)
    try:
        with _all_cores():
            native(tokenizer.train_from_iterator, corpus.texts(), _trainer(settings))
    except EngineRefusal as refusal:
        if corpus.failure is not None:
            raise corpus.failure from None
        raise TokenizerError("no vocabulary could be learnt", why=str(refusal)) from None
    if not corpus.size:
        raise TokenizerError(
            "there is no text to learn from",
            why=f"{corpus.read + corpus.skipped} samples, {corpus.skipped} of them no text",
            remedy="check the source and its field",
        )
    data = tokenizer.to_str(pretty=False).encode()
    _write(target, data)
    return {
        "format": "tokenizer.json",
        "sha256": hashlib.sha256(data).hexdigest(),
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "samples": corpus.read,
        "skipped": corpus.skipped,
        "bytes": corpus.size,
        "complete": corpus.complete,
        "corpus_sha256": corpus.digest.hexdigest(),
        "settings": {**asdict(settings), "tokens": list(settings.tokens)},
        "library": f"tokenizers {importlib.metadata.version('tokenizers')}",
    }


def _empty(settings: FitSettings) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if settings.pattern == "gpt2":  # built in: the fastest for every engine
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.pre_tokenizer = byte_level
        return tokenizer
    _, pattern = resolve(settings.pattern)
    try:
        split = pre_tokenizers.Split(native(Regex, pattern), "isolated")
    except EngineRefusal as error:
        raise TokenizerError(
            f"the pattern {pattern[:60]!r} is no regex",
            where="fit config.pattern",
            why=str(error),
            remedy="give a public name such as cl100k_base, or a regex",
        ) from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


def _trainer(settings: FitSettings) -> Any:
    return trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in settings.tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


@contextmanager
def _all_cores() -> Iterator[None]:
    """Learning may use every core, unless the user said otherwise; encoding goes back to one."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def _write(target: Path, data: bytes) -> None:
    """All or nothing: a reader never sees half a vocabulary."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
