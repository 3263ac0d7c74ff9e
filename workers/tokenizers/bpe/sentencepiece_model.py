"""SentencePiece models: ids from the library itself; control symbols never match raw text.

User-defined symbols are ordinary vocabulary and always match. There is no fast engine for this
format. The library normalises (NFKC and spaces by most models' own rules), so the text that comes
back may differ from the text that went in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import sentencepiece

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe.engines import EngineRefusal, ReferenceEngine, native
from tokenmill.workers.tokenizers.bpe.model import File, Model
from tokenmill.workers.tokenizers.bpe.settings import Settings
from tokenmill.workers.tokenizers.bpe.vocabulary import Kind, Vocabulary, unknown_id

_REMEDY = "give the .model file that the model's authors publish"


def read(file: File, settings: Settings) -> Model:
    """Raises TokenizerError naming the file and the remedy."""
    _refuse_settings(file, settings)
    try:
        library = native(sentencepiece.SentencePieceProcessor, model_proto=file.data)
        vocabulary = native(_vocabulary, library)
    except EngineRefusal as error:
        raise file.error(
            "the checkpoint is no vocabulary that bpe reads",
            why=f"`sentencepiece` says: {error}",
            remedy="give a tokenizer.json, a tiktoken rank file or a SentencePiece model",
        ) from None
    if not vocabulary.size:
        raise file.error("this SentencePiece model has no pieces", remedy=_REMEDY)

    def lists(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = library.encode(list(texts), out_type=int, num_threads=1)
        return found

    def decode(ids: Sequence[int]) -> str:
        for id_ in ids:
            if id_ not in vocabulary.pieces:
                raise unknown_id(id_, vocabulary.size)
        try:
            return str(native(library.decode, list(ids)))
        except EngineRefusal as error:
            raise TokenizerError("`sentencepiece` cannot decode these", why=str(error)) from None

    return Model(
        format="sentencepiece",
        vocabulary=vocabulary,
        hash=hashlib.sha256(file.data).hexdigest(),
        reference=ReferenceEngine(
            name=f"sentencepiece {sentencepiece.__version__}",
            lists=lists,
        ),
        fast=_no_fast_engine,
        decode=decode,
        declared=(_piece(library, library.bos_id()), _piece(library, library.eos_id())),
    )


def _no_fast_engine() -> NoReturn:
    raise EngineRefusal("there is none for SentencePiece models")


def _refuse_settings(file: File, settings: Settings) -> None:
    for key in ("pattern", "tokens", "post_processor"):
        if getattr(settings, key):
            raise file.error(
                f"`{key}` means nothing to a SentencePiece model", remedy=f"remove `{key}`"
            )
    if settings.special_tokens == "encode":
        raise file.error(
            "special_tokens: encode is impossible with a SentencePiece model",
            why="its control symbols never match raw text",
            remedy="use `text` or `refuse`, or the tokenizer.json of the same vocabulary",
        )


def _vocabulary(library: Any) -> Vocabulary:
    pieces: dict[int, tuple[Kind, bytes]] = {}
    for id_ in range(library.get_piece_size()):
        kind: Kind = "text"
        if library.is_control(id_) or library.is_unknown(id_):
            kind = "special"
        pieces[id_] = (kind, library.id_to_piece(id_).encode("utf-8", "surrogatepass"))
    return Vocabulary(pieces=pieces)


def _piece(library: Any, id_: int) -> str | None:
    return str(library.id_to_piece(id_)) if id_ >= 0 else None
