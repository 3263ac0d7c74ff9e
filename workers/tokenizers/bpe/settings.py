"""The `config` of a bpe stream and of `fit`: checked, with the nearest known key in the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.job import nearest

Policy = Literal["text", "encode", "refuse"]
EngineChoice = Literal["auto", "reference"]
Frame = bool | str  # False: none; True: what the checkpoint itself declares; "<token>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a job may say about a vocabulary file.

    special_tokens: what a special token that stands in raw text becomes. text: ordinary text,
        never the special id; encode: the special id; refuse: the sample is quarantined.
        Added tokens that the file does not call special (`"special": false`) are ordinary
        vocabulary and match under every policy, as in the file's own library.
    bos, eos: a token added before and after each document.
    post_processor: apply the template of a tokenizer.json (that may add BOS and EOS).
    pattern: the regex of a tiktoken rank file, or the name of a public one.
    tokens: special tokens of a tiktoken rank file, token -> id.
    engine, threads: how the ids are computed; they change no id and are in no recipe.
    """

    special_tokens: Policy = "text"
    bos: Frame = False
    eos: Frame = False
    post_processor: bool = False
    pattern: str | None = None
    tokens: Mapping[str, int] | None = None
    engine: EngineChoice = "auto"
    threads: int = 1

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Settings:
        """Raises TokenizerError naming the key, the value and what it may be."""
        _known(config, cls, "config")
        for key, choices in (("special_tokens", Policy), ("engine", EngineChoice)):
            if key in config and config[key] not in get_args(choices):
                raise _bad(key, config[key], "one of " + ", ".join(get_args(choices)))
        for key in ("bos", "eos"):
            if not isinstance(config.get(key, False), (bool, str)) or config.get(key) == "":
                raise _bad(key, config[key], "true, false or a token of the vocabulary")
        _check(config, "post_processor", bool, "true or false")
        _check(config, "pattern", str, "a regex or a public name such as cl100k_base")
        _check_count(config, "threads", 1)
        if config.get("tokens") is not None:
            _check_tokens(config["tokens"])
        settings = cls(**config)
        if settings.post_processor and (settings.bos or settings.eos):
            raise TokenizerError(
                "`post_processor` and `bos`/`eos` would both frame the documents",
                where="config",
                remedy="keep one of them",
            )
        return settings


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """What `fit` may be told.

    tokens: special tokens, they take the first ids. pattern: gpt2 (default), another public
    name or a regex. max_bytes: reading stops before the document that would pass it.
    """

    vocab_size: int = 8000
    min_frequency: int = 2
    tokens: Sequence[str] = field(default=("<|endoftext|>",))
    pattern: str = "gpt2"
    max_bytes: int = 256 << 20

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> FitSettings:
        _known(config, cls, "fit config")
        _check(config, "pattern", str, "a regex or a public name such as cl100k_base")
        _check_count(config, "min_frequency", 1)
        _check_count(config, "max_bytes", 1)
        _check_count(config, "vocab_size", 1)
        tokens = config.get("tokens", ())
        if isinstance(tokens, str) or not all(isinstance(t, str) and t for t in tokens):
            raise _bad("tokens", tokens, "a list of special tokens")
        settings = cls(**{**config, **({"tokens": tuple(tokens)} if "tokens" in config else {})})
        least = 256 + len(settings.tokens)
        if settings.vocab_size < least:
            raise _bad("vocab_size", settings.vocab_size, f"{least} (every byte and token) or more")
        return settings


def _known(config: Mapping[str, Any], cls: type, where: str) -> None:
    names = [f.name for f in fields(cls)]
    for key in config:
        if key not in names:
            raise TokenizerError(
                f"bpe has no setting {key!r}{nearest(str(key), names)}",
                where=where,
                remedy="settings: " + ", ".join(names),
            )


def _check(config: Mapping[str, Any], key: str, kind: type, wanted: str) -> None:
    if config.get(key) is not None and not isinstance(config[key], kind):
        raise _bad(key, config[key], wanted)


def _check_count(config: Mapping[str, Any], key: str, least: int) -> None:
    value = config.get(key, least)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _bad(key, value, f"a whole number from {least}")


def _check_tokens(tokens: object) -> None:
    wanted = 'a mapping of token to id, such as {"<|endoftext|>": 100257}'
    if not isinstance(tokens, Mapping):
        raise _bad("tokens", tokens, wanted)
    for token, id_ in tokens.items():
        if not isinstance(token, str) or not token:
            raise _bad("tokens", tokens, wanted)
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0:
            raise _bad("tokens", tokens, wanted)


def _bad(key: str, value: object, wanted: str) -> TokenizerError:
    shown = repr(value)
    return TokenizerError(
        f"bpe cannot use {key}: {shown if len(shown) < 80 else shown[:77] + '...'}",
        where=f"config.{key}",
        remedy=f"give {wanted}",
    )
