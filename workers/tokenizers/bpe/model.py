"""What every checkpoint format is read into, and which format a file is, told from its content."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe.engines import FastEngine, ReferenceEngine
from tokenmill.workers.tokenizers.bpe.vocabulary import Vocabulary

MAX_BYTES = 128 << 20  # Gemma's tokenizer.json, the largest in use, has 33 MB

Format = Literal["tokenizer.json", "tiktoken", "sentencepiece"]
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}[ \r]*(\n|\Z)")
_NAMES: dict[Format, str] = {
    "tokenizer.json": "a tokenizer.json",
    "tiktoken": "a tiktoken rank file",
    "sentencepiece": "a SentencePiece model",
}


@dataclass(frozen=True, kw_only=True)
class File:
    """A checkpoint's bytes. `where` names it in errors."""

    path: Path
    where: str
    data: bytes

    def error(self, what: str, *, why: str | None = None, remedy: str | None) -> TokenizerError:
        return TokenizerError(what, where=self.where, why=why, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A vocabulary ready for use, whatever its format.

    hash: over everything in the file that may change an id, and nothing else.
    guards: characters that the fast engine is known to read otherwise (patterns.guards).
    declared: the BOS and EOS tokens that the file itself names.
    lossless: decode(encode(x)) == x for any text.
    fast: makes the fast engine; raises EngineRefusal with the reason why there is none.
    """

    format: Format
    vocabulary: Vocabulary
    hash: str
    reference: ReferenceEngine
    fast: Callable[[], FastEngine]
    decode: Callable[[Sequence[int]], str]
    guards: str = ""
    declared: tuple[str | None, str | None] = (None, None)
    lossless: bool = False


def read_file(path: Path, where: str) -> File:
    """Raises TokenizerError where it cannot be read or is too large."""
    try:
        if path.is_dir():
            raise TokenizerError(
                "the checkpoint is a folder",
                where=where,
                remedy="name the file: " + (_inside(path) or "a tokenizer.json, ranks or .model"),
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(
            "the checkpoint cannot be read",
            where=where,
            why=error.strerror or str(error),
            remedy="check `checkpoint` in the job file",
        ) from None
    if len(data) > MAX_BYTES:
        raise TokenizerError(
            f"the checkpoint is larger than {MAX_BYTES >> 20} MiB: no vocabulary is",
            where=where,
            remedy="name the tokenizer's file, not the model's weights",
        )
    return File(path=path, where=where, data=data)


def detect(file: File) -> Format:
    """The format of a file by its content. Raises TokenizerError for none of the three."""
    head = file.data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if head.startswith(b"{"):
        return "tokenizer.json"
    if _RANK_LINE.match(file.data):
        return "tiktoken"
    if file.data.startswith(b"\x0a"):  # field 1 of a protobuf: the pieces
        return "sentencepiece"
    remedy = "give " + ", ".join(_NAMES.values())
    if not file.data:
        raise file.error("the checkpoint is empty", remedy=remedy)
    if head.startswith(b"version https://git-lfs"):
        raise file.error(
            "the checkpoint is a Git LFS pointer, not the file itself", remedy="git lfs pull"
        )
    raise file.error("the checkpoint is no vocabulary that bpe reads", remedy=remedy)


def _inside(folder: Path) -> str:
    patterns = ("tokenizer.json", "*.tiktoken", "*.model")
    names = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return " or ".join(str(path) for path in names[:3])
