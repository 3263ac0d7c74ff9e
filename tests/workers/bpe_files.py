"""Small real vocabularies in all three formats, made once per test session."""

from __future__ import annotations

import base64
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from tokenmill.schemas.tokenizer import Checkpoint
from tokenmill.workers.tokenizers.bpe import BpeTokenizer
from tokenmill.workers.tokenizers.bpe.vocabulary import byte_alphabet

END = "<|endoftext|>"


@functools.cache
def folder() -> Path:
    keep = tempfile.TemporaryDirectory(prefix="tokenmill-bpe-")
    folder._keep = keep  # type: ignore[attr-defined]  # removed when the session ends
    return Path(keep.name)


@functools.cache
def corpus() -> tuple[str, ...]:
    """Real sources and prose: some of the standard library, about 1 MB."""
    files = sorted(Path(json.__file__).parent.parent.glob("[a-d]*.py"))
    texts = [file.read_text("utf-8") for file in files]
    return (*texts, "Füße, naïve café, Съешь ещё, 天地玄黃 宇宙洪荒 👍🏽 👩‍👩‍👧 " * 3)


def samples() -> Iterator[dict[str, Any]]:
    return ({"text": text} for text in corpus())


@functools.cache
def fitted() -> str:
    """A byte-level tokenizer.json with one special token."""
    out = folder() / "tokenizer.json"
    BpeTokenizer.fit(samples(), str(out), {"vocab_size": 2000})
    return str(out)


def fitted_json() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(fitted()).read_text("utf-8"))
    return data


def changed(name: str, **parts: Any) -> str:
    """The fitted file with some of its top-level parts replaced."""
    out = folder() / name
    out.write_text(json.dumps({**fitted_json(), **parts}), "utf-8")
    return str(out)


def added(content: str, id_: int, **flags: Any) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id_, "content": content, "special": False, **plain, **flags}


@functools.cache
def ranks() -> str:
    """The fitted vocabulary as a tiktoken rank file: its pieces in the same order, from 0."""
    alphabet = byte_alphabet()
    vocab = fitted_json()["model"]["vocab"]
    pieces = sorted((id_, piece) for piece, id_ in vocab.items() if piece != END)
    lines = [
        base64.b64encode(bytes(alphabet[c] for c in piece)) + b" %d\n" % rank
        for rank, (_, piece) in enumerate(pieces)
    ]
    out = folder() / "small.tiktoken"
    out.write_bytes(b"".join(lines))
    return str(out)


@functools.cache
def spm() -> str:
    model = io.BytesIO()
    lines = [line for text in corpus()[-12:] for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:4000]),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        user_defined_symbols=["<sep>"],
        num_threads=1,
        minloglevel=2,
    )
    out = folder() / "small.model"
    out.write_bytes(model.getvalue())
    return str(out)


def load(path: str, **config: Any) -> BpeTokenizer:
    return BpeTokenizer.load(Checkpoint(uri=path), config)


def ids(tokenizer: BpeTokenizer, *values: str | bytes) -> list[list[int]]:
    flat = tokenizer.encode_flat(list(values))
    at = flat.offsets
    return [flat.values[at[n] : at[n + 1]].tolist() for n in range(len(values))]
