"""What a user asks a loader for: parts of a mixture, the streams of each, how they are shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenmill.schemas.errors import JobError
from tokenmill.store.stream.flattening import Flattening, check_flattening
from tokenmill.store.stream.layout import StreamLayout
from tokenmill.store.stream.spans import Missing
from tokenmill.store.stream.vocabulary import StreamSpec, Vocabulary

Token = int | str  # an id, or the name of a special token of the vocabulary
# Blocks of 16 shards: two are held, and a batch sees 16 places of the corpus.
GROUP = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """One stream of a sample, and how it becomes tokens.

    order: see flattening.py. cut: at most so many tokens, for streams of which a beginning is
    itself valid. before, after: tokens around the span; by default the vocabulary's begin and end
    of this stream, none without a vocabulary. loss: whether its tokens are learnt.
    """

    stream: str
    order: Flattening = "raster"
    cut: int | None = None
    before: tuple[Token, ...] | None = None
    after: tuple[Token, ...] | None = None
    loss: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of a mixture: samples with these streams, in this order within a sample.

    where: an SQL predicate over the view `shards` (`tokenizer = 'bpe' and run = 'tuesday'`).
    missing: "drop" leaves samples out that lack a stream, "keep" gives what they have.
    """

    streams: str | Take | Sequence[str | Take]
    weight: float = 1
    name: str | None = None
    pipeline: str | None = None
    where: str | None = None
    missing: Missing = "drop"

    @property
    def takes(self) -> tuple[Take, ...]:
        given = [self.streams] if isinstance(self.streams, str | Take) else self.streams
        return tuple(Take(stream=s) if isinstance(s, str) else s for s in given)

    @property
    def label(self) -> str:
        return self.name or "+".join(t.stream for t in self.takes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffle:
    """Spans (shards) are permuted, then rows within blocks of `group` of them.

    A batch mixes `group` x `lanes` shards; each rank holds two blocks per lane that it reads.
    lanes: see blocks.in_lanes; with as many lanes as nodes (or a multiple), a node reads only its
    own share of the shards. Both fix the order: they are in the state.
    """

    group: int = GROUP
    lanes: int = 1


def stream_layouts(
    part: Part,
    specs: Mapping[str, StreamSpec],
    dtypes: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    codes: Mapping[str, int],
    bos: Token | None,
    eos: Token | None,
) -> tuple[StreamLayout, ...]:
    """The layout of each of the part's streams. Raises JobError."""
    takes = part.takes
    if not takes or len({t.stream for t in takes}) != len(takes):
        raise JobError("a part takes one or more different streams", where=f"part {part.label!r}")
    if part.missing == "keep" and (bos, eos) != (None, None) and len(takes) > 1:
        raise JobError(
            "bos and eos need samples that have every stream",
            where=f"part {part.label!r}",
            remedy="leave missing='drop', or put tokens around the streams: Take(before=…)",
        )
    layouts = [
        _layout(t, specs[t.stream], str(dtypes[t.stream]), vocabulary, codes[t.stream])
        for t in takes
    ]
    if bos is not None:
        first = layouts[0]
        layouts[0] = replace(first, before=(token_id(bos, vocabulary), *first.before))
    if eos is not None:
        last = layouts[-1]
        layouts[-1] = replace(last, after=(*last.after, token_id(eos, vocabulary)))
    return tuple(layouts)


def _layout(
    take: Take, spec: StreamSpec, dtype: str, vocabulary: Vocabulary | None, code: int
) -> StreamLayout:
    check_flattening(take.order, spec.axes, take.stream)
    if take.cut is not None and take.cut < 1:
        raise JobError("a cut keeps at least one token", where=f"stream {take.stream!r}")
    codebooks = max(1, len(spec.codebook_sizes))
    offsets: tuple[int, ...] = (0,) * codebooks
    around: tuple[tuple[Token, ...], tuple[Token, ...]] = ((), ())
    fill = 0
    if vocabulary is not None:
        place = vocabulary.stream(take.stream)
        offsets, fill = place.offsets, vocabulary.pad
        around = ((place.begin,), (place.end,))
    elif take.order == "delayed":
        raise JobError(
            "the delayed order needs a fill token",
            where=f"stream {take.stream!r}",
            remedy="give the loader a vocabulary: dataset.vocabulary()",
        )
    before = around[0] if take.before is None else take.before
    after = around[1] if take.after is None else take.after
    return StreamLayout(
        stream=take.stream,
        dtype=dtype,
        axes=spec.axes,
        codebooks=codebooks,
        offsets=offsets,
        order=take.order,
        cut=take.cut,
        before=tuple(token_id(t, vocabulary) for t in before),
        after=tuple(token_id(t, vocabulary) for t in after),
        fill=fill,
        code=code,
        in_loss=take.loss,
    )


def token_id(token: Token, vocabulary: Vocabulary | None) -> int:
    """Raises JobError for a name without a vocabulary, or one that it does not have."""
    if isinstance(token, int):
        return token
    if vocabulary is None:
        raise JobError(
            f"{token!r} is the name of a special token, and the loader has no vocabulary",
            remedy="give its id, or vocabulary=dataset.vocabulary()",
        )
    return vocabulary.special(token)
