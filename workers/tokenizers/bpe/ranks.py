"""tiktoken rank files: a base64 piece and its rank a line; pattern and tokens by config."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import tiktoken

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.identity import json_hash
from tokenmill.schemas.job import nearest
from tokenmill.workers.tokenizers.bpe.engines import (
    EngineRefusal,
    ReferenceEngine,
    fast_engine,
    native,
)
from tokenmill.workers.tokenizers.bpe.model import File, Model
from tokenmill.workers.tokenizers.bpe.patterns import END, NAMED, guards, resolve
from tokenmill.workers.tokenizers.bpe.probes import PROBES
from tokenmill.workers.tokenizers.bpe.settings import Settings
from tokenmill.workers.tokenizers.bpe.vocabulary import MAX_ID, Vocabulary

_REMEDY = "fetch the rank file again, or give its sha256 so that a damaged copy is found"


def read(file: File, settings: Settings) -> Model:
    """Raises TokenizerError naming the file and the remedy."""
    if settings.post_processor:
        raise file.error("a rank file has no post-processor", remedy="use `bos` and `eos`")
    if settings.pattern is None:
        raise file.error(
            "a tiktoken rank file says nothing of how text is cut before merging",
            remedy=f"config: {{pattern: {' | '.join(NAMED)} or the vocabulary's own regex}}",
        )
    ranks = _parse(file)
    tokens = _tokens(file, settings, ranks)
    pattern, fast_pattern = resolve(settings.pattern)
    encoding = _encoding(file, pattern, ranks, tokens)
    split = settings.special_tokens != "encode"
    allowed: Any = set() if split else "all"

    def lists(texts: Sequence[str]) -> list[Any]:
        return [
            encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
            for text in texts
        ]

    reference = ReferenceEngine(name=f"tiktoken {tiktoken.__version__}", lists=lists)
    vocabulary = Vocabulary(
        pieces={
            **{rank: ("bytes", piece) for piece, rank in ranks.items()},
            **{id_: ("special", token.encode()) for token, id_ in tokens.items()},
        }
    )
    _check_coverage(file, settings.pattern, reference, vocabulary, tokens)
    end = END if END in tokens else None
    return Model(
        format="tiktoken",
        vocabulary=vocabulary,
        hash=json_hash(
            {"pattern": pattern, "vocabulary": vocabulary.space(), "tokens": sorted(tokens)}
        ),
        reference=reference,
        fast=lambda: fast_engine(
            lambda fast: fast.from_tiktoken(
                str(file.path), pattern=fast_pattern, special_tokens=dict(tokens)
            ),
            split=split,
            template=False,
        ),
        decode=lambda ids: vocabulary.join(ids).decode("utf-8", "replace"),
        guards=guards([fast_pattern]),
        declared=(None, end),
        lossless=True,  # the pattern of any other vocabulary was refused
    )


def _parse(file: File) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            piece, id_ = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise file.error(
                f"line {number} is not a base64 piece and its rank", remedy=_REMEDY
            ) from None
        if not piece or not 0 <= id_ <= MAX_ID or piece in ranks:
            raise file.error(
                f"line {number}: an empty or repeated piece, or an impossible rank", remedy=_REMEDY
            )
        ranks[piece] = id_
    if len(set(ranks.values())) != len(ranks):
        raise file.error("two pieces have one rank", remedy=_REMEDY)
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise file.error(
            f"{len(missing)} of the 256 bytes have no rank, the first is {missing[0]:#04x}",
            why="some texts could not be written with it",
            remedy=_REMEDY,
        )
    return ranks


def _tokens(file: File, settings: Settings, ranks: Mapping[bytes, int]) -> dict[str, int]:
    """Special tokens: those of the config, else those of the public vocabulary that this is."""
    if settings.tokens is None:
        named = NAMED.get(settings.pattern or "")
        return dict(named.specials) if named and named.ranks == len(ranks) else {}
    taken = {id_: f"the piece {piece!r}" for piece, id_ in ranks.items()}
    for token, id_ in settings.tokens.items():
        if id_ in taken or id_ > MAX_ID or token.encode("utf-8", "replace") in ranks:
            raise file.error(
                f"the special token {token!r} cannot have the id {id_}",
                why=f"{taken.get(id_, 'the id or the piece')} is in the way",
                remedy=f"give it an id from {max(ranks.values()) + 1}",
            )
        taken[id_] = f"the token {token!r}"
    return dict(settings.tokens)


def _encoding(
    file: File, pattern: str, ranks: dict[bytes, int], tokens: Mapping[str, int]
) -> tiktoken.Encoding:
    try:
        encoding: tiktoken.Encoding = native(
            tiktoken.Encoding,
            "tokenmill",
            pat_str=pattern,
            mergeable_ranks=ranks,
            special_tokens=dict(tokens),
        )
    except EngineRefusal as error:
        raise TokenizerError(
            f"the pattern {pattern[:60]!r} cannot be used{nearest(pattern, NAMED)}",
            where=f"config.pattern, for {file.where}",
            why=str(error),
            remedy="give a public name or a regex",
        ) from None
    return encoding


def _check_coverage(
    file: File,
    pattern: str,
    reference: ReferenceEngine,
    vocabulary: Vocabulary,
    tokens: Mapping[str, int],
) -> None:
    """tiktoken drops text that the pattern does not match: a vocabulary that does is refused."""
    texts = [text for text in PROBES if not any(token in text for token in tokens)]
    try:
        ids, offsets = reference.encode(texts)
    except EngineRefusal as error:
        raise file.error(
            "this pattern and these ranks cannot encode plain text",
            why=str(error),
            remedy="check `pattern`",
        ) from None
    for n, text in enumerate(texts):
        if vocabulary.join(ids[offsets[n] : offsets[n + 1]].tolist()) != text.encode():
            raise TokenizerError(
                f"the pattern {pattern[:60]!r} leaves out parts of {text[:30]!r}",
                where=f"config.pattern, for {file.where}",
                why="tiktoken drops text that no alternative matches",
                remedy=r"end the pattern with |\s+|[\s\S]",
            )
