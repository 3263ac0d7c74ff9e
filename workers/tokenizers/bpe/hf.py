"""tokenizer.json: read with a bound, cleaned of what would cut or randomise ids, by `tokenizers`.

Truncation and padding would cut documents silently and BPE dropout would make ids random: all
three are switched off, whatever the file says. The post-processor is applied on request only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.identity import json_hash
from tokenmill.workers.tokenizers.bpe.engines import (
    EngineRefusal,
    ReferenceEngine,
    fast_engine,
    native,
)
from tokenmill.workers.tokenizers.bpe.model import File, Model
from tokenmill.workers.tokenizers.bpe.patterns import guards
from tokenmill.workers.tokenizers.bpe.settings import Settings
from tokenmill.workers.tokenizers.bpe.vocabulary import (
    MAX_ID,
    Kind,
    Vocabulary,
    byte_alphabet,
    unknown_id,
)

_REMEDY = "give the tokenizer.json that the model's authors publish, or one made by `fit`"
# what of the file changes no id: how it was saved, and how ids become text again
_NOT_HASHED = ("version", "truncation", "padding", "decoder")


def read(file: File, settings: Settings) -> Model:
    """Raises TokenizerError naming the file and the remedy."""
    for key in ("pattern", "tokens"):
        if getattr(settings, key) is not None:
            raise file.error(
                f"`{key}` is a setting of tiktoken rank files; a tokenizer.json brings its own",
                remedy=f"remove `{key}`",
            )
    data = _parse(file)
    text = json.dumps(data, ensure_ascii=False)
    split = settings.special_tokens != "encode"
    try:
        library = native(tokenizers.Tokenizer.from_str, text)
        vocabulary = _vocabulary(library, data)
    except EngineRefusal as error:
        raise file.error(
            "`tokenizers` cannot read this tokenizer.json", why=str(error), remedy=_REMEDY
        ) from None
    if not 0 < vocabulary.size <= MAX_ID + 1:
        raise file.error(f"a vocabulary with ids up to {vocabulary.size - 1}", remedy=_REMEDY)
    _check_added(file, data, library)
    library.encode_special_tokens = split

    def lists(texts: Sequence[str]) -> list[list[int]]:
        found = library.encode_batch_fast(texts, add_special_tokens=settings.post_processor)
        return [encoding.ids for encoding in found]

    byte_level = vocabulary.byte_level
    return Model(
        format="tokenizer.json",
        vocabulary=vocabulary,
        hash=_hash(file, data, settings.post_processor),
        reference=ReferenceEngine(name=f"tokenizers {tokenizers.__version__}", lists=lists),
        fast=lambda: fast_engine(
            lambda fast: fast.from_json_str(_without_holes(data, text)),
            split=split,
            template=settings.post_processor,
        ),
        decode=_bytes_decoder(vocabulary) if byte_level else _text_decoder(library, vocabulary),
        guards=guards(_regexes(data)),
        declared=_declared(data.get("post_processor")),
        lossless=byte_level and not settings.post_processor and _keeps_text(data, split),
    )


def _parse(file: File) -> dict[str, Any]:
    try:
        data = json.loads(file.data)
    except (ValueError, RecursionError) as error:
        raise file.error("the checkpoint is not JSON", why=str(error), remedy=_REMEDY) from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise file.error(
            "this JSON file is no tokenizer.json: it has no `model`",
            remedy="name tokenizer.json, not tokenizer_config.json, vocab.json or config.json",
        )
    data["truncation"] = data["padding"] = None
    if "dropout" in data["model"]:
        data["model"]["dropout"] = None
    return data


def _hash(file: File, data: Mapping[str, Any], template: bool) -> str:
    kept = {k: v for k, v in data.items() if k not in _NOT_HASHED}
    if not template:
        kept.pop("post_processor", None)
    merges = data["model"].get("merges")
    if isinstance(merges, list):  # "a b" and ["a", "b"] are two spellings of one merge
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in merges]
        kept["model"] = {**data["model"], "merges": pairs}
    try:
        return json_hash(kept)
    except (ValueError, RecursionError) as error:
        raise file.error("a number or text that is no JSON", why=str(error), remedy=_REMEDY) from (
            None
        )


def _vocabulary(library: Any, data: Mapping[str, Any]) -> Vocabulary:
    stages = list(_stages(data.get("pre_tokenizer"))) + list(_stages(data.get("decoder")))
    alphabet = byte_alphabet() if any(s.get("type") == "ByteLevel" for s in stages) else None
    pieces: dict[int, tuple[Kind, bytes]] = {}
    for piece, id_ in native(library.get_vocab, with_added_tokens=True).items():
        pieces[id_] = _piece(piece, alphabet)
    for id_, token in native(library.get_added_tokens_decoder).items():
        pieces[id_] = ("special" if token.special else "added", _utf8(token.content))
    return Vocabulary(pieces=pieces)


def _check_added(file: File, data: Mapping[str, Any], library: Any) -> None:
    """`tokenizers` renumbers added tokens after a hole in the ids, and only logs it."""
    for token in data.get("added_tokens") or ():
        declared, given = token.get("id"), library.token_to_id(token.get("content"))
        if declared != given:
            raise file.error(
                f"the added token {token.get('content')!r} has the id {declared} in the file, but "
                f"`tokenizers` gives it {given}",
                why="a hole in the ids before it: its tokens would not be the model's",
                remedy="write it into `model.vocab` too, under its own id",
            )


def _without_holes(data: Mapping[str, Any], text: str) -> str:
    """fastokens wants every id in use: holes get pieces that no byte-level text can hold."""
    vocab = data["model"].get("vocab")
    if not isinstance(vocab, dict) or len(vocab) > max(vocab.values(), default=-1):
        return text
    holes = sorted(set(range(max(vocab.values()))) - set(vocab.values()))
    filled = {**vocab, **{f"\ue000{id_}": id_ for id_ in holes}}
    return json.dumps({**data, "model": {**data["model"], "vocab": filled}}, ensure_ascii=False)


def _piece(piece: str, alphabet: Mapping[str, int] | None) -> tuple[Kind, bytes]:
    if alphabet is not None:
        try:
            return "bytes", bytes([alphabet[c] for c in piece])
        except KeyError:
            pass
    return "text", _utf8(piece)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _stages(part: Any) -> list[Mapping[str, Any]]:
    """A pre-tokenizer, decoder or processor as the list of its steps, sequences opened."""
    if not isinstance(part, dict):
        return []
    for key in ("pretokenizers", "decoders", "processors", "normalizers"):
        if isinstance(part.get(key), list):
            return [stage for inner in part[key] for stage in _stages(inner)]
    return [part]


def _regexes(data: Mapping[str, Any]) -> list[str]:
    """Those that the file spells out; ByteLevel's own is compiled into every engine."""
    patterns = [stage.get("pattern") for stage in _stages(data.get("pre_tokenizer"))]
    return [str(p.get("Regex", "")) for p in patterns if isinstance(p, dict)]


def _keeps_text(data: Mapping[str, Any], split: bool) -> bool:
    """Whether a byte-level vocabulary sees all of the text as it is."""
    model = data["model"]
    if data.get("normalizer") is not None or model.get("type", "BPE") != "BPE":
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    for token in data.get("added_tokens") or ():
        eats = token.get("lstrip") or token.get("rstrip")
        if eats and not (split and token.get("special")):
            return False
    stages = _stages(data.get("pre_tokenizer"))
    return any(s.get("type") == "ByteLevel" for s in stages) and all(map(_keeps, stages))


def _keeps(stage: Mapping[str, Any]) -> bool:
    if stage.get("type") == "ByteLevel":
        return stage.get("add_prefix_space") is False
    if stage.get("type") == "Split":
        return stage.get("behavior") != "Removed"
    return stage.get("type") in ("Digits", "Punctuation") and stage.get("behavior") != "Removed"


def _declared(processor: Any) -> tuple[str | None, str | None]:
    """BOS and EOS that the template puts around one sequence."""
    for stage in _stages(processor):
        if stage.get("type") == "TemplateProcessing":
            kinds = [k for k in stage.get("single") or () if isinstance(k, dict)]
            at = next((n for n, k in enumerate(kinds) if "Sequence" in k), None)
            if at is not None:
                return _token(kinds[:at][:1]), _token(kinds[at + 1 :][-1:])
        if stage.get("type") in ("BertProcessing", "RobertaProcessing"):
            return str(stage["cls"][0]), str(stage["sep"][0])
    return None, None


def _token(items: Sequence[Mapping[str, Any]]) -> str | None:
    for item in items:
        special = item.get("SpecialToken")
        if isinstance(special, dict):
            return str(special.get("id"))
    return None


def _bytes_decoder(vocabulary: Vocabulary) -> Any:
    return lambda ids: vocabulary.join(ids).decode("utf-8", "replace")


def _text_decoder(library: Any, vocabulary: Vocabulary) -> Any:
    def decode(ids: Sequence[int]) -> str:
        for id_ in ids:
            if id_ not in vocabulary.pieces:
                raise unknown_id(id_, vocabulary.size)
        try:
            return str(native(library.decode, list(ids), skip_special_tokens=False))
        except EngineRefusal as error:
            raise TokenizerError("`tokenizers` cannot decode these ids", why=str(error)) from None

    return decode
