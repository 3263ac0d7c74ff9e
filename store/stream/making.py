"""From what a user asks for to a Loader: names checked, defaults filled in, ids placed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.schemas.job import nearest
from tokenmill.store.cache import LocalCache
from tokenmill.store.stream.batch import FIELDS
from tokenmill.store.stream.chunks import Making
from tokenmill.store.stream.layout import StreamLayout
from tokenmill.store.stream.loader import Loader, Settings
from tokenmill.store.stream.mixture import stretches_of
from tokenmill.store.stream.opened import SPLIT_PARTS, Split
from tokenmill.store.stream.packing import Packing
from tokenmill.store.stream.part import Part, Shuffle, Take, Token, stream_layouts
from tokenmill.store.stream.plan import Request
from tokenmill.store.stream.ranks import Tail
from tokenmill.store.stream.vocabularies import (
    check_spaces,
    load_vocabulary,
    save_vocabulary,
    stream_specs,
)
from tokenmill.store.stream.vocabulary import StreamSpec, Vocabulary

if TYPE_CHECKING:
    from tokenmill.store.dataset import Dataset

PATIENCE = 600.0
# Whole samples carry their ids; packed sequences what attention and loss need, too.
_OF_SAMPLES = ("ids",)
_OF_SEQUENCES = ("ids", "documents", "positions", "loss_mask", "cu_seqlens")
_OF_MANY_STREAMS = ("modality", "spans")


def make_loader(
    dataset: Dataset,
    streams: str | Take | Sequence[str | Take] | None = None,
    *,
    batch: int,
    parts: Sequence[Part] | None = None,
    schedule: Mapping[int, Mapping[str, float]] | None = None,
    sequence: int | None = None,
    packing: Packing | None = None,
    isolate: bool = True,
    vocabulary: Vocabulary | str | None = None,
    bos: Token | None = None,
    eos: Token | None = None,
    pad: Token | None = None,
    shuffle: Shuffle | None = Shuffle(),
    seed: int = 0,
    split: Split | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    tail: Tail = "short",
    rank: int | None = None,
    world: int | None = None,
    fields: Collection[str] | None = None,
    dtype: str | None = None,
    tensors: str = "numpy",
    pinned: bool = False,
    threads: int = 1,
    cache: LocalCache | bool = True,
    patience: float = PATIENCE,
) -> Loader:
    """Batches of token sequences for training: a deterministic global sequence, of which this
    rank takes its share.

    streams: of one part; or `parts`: a mixture by weight. batch: sequences of one step over all
    ranks. schedule: step -> {part's name: weight}, beginning at step 0, instead of the parts' own.
    sequence: tokens of a sequence, packed by "cut" (the default) or "whole" (packing.py); without
    it a sequence is a sample, padded to the longest of its batch. isolate: positions, labels and
    cu_seqlens begin anew in every document. vocabulary: a Vocabulary or the hash of one in the
    store; it is kept there. bos, eos: tokens before and after each sample. pad: default the
    vocabulary's, or 0. shuffle: None is file order. split: samples with hash(id) mod 10,000 in
    [low, high). epochs: default 1 for one part, for ever for a mixture. tail: "short" delivers
    what does not fill the last step, "drop" leaves it out. rank, world: default RANK and
    WORLD_SIZE of the environment, or one rank. fields: see SequenceBatch. dtype: default int64
    with a vocabulary, else that of the ids. tensors: numpy | torch; pinned: in page-locked memory.
    threads: that read ahead; 0 reads in the caller's. cache: where remote and encoded shards are
    kept; True is the default folder, False keeps the two blocks in use in memory. patience:
    seconds to wait for a store that does not answer.

    Raises JobError, SpaceMismatch (G7), StoreError.
    """
    asked = _parts(streams, parts)
    specs, dtypes = _specs(dataset, asked)
    known = _vocabulary(dataset, vocabulary)
    names = list(dict.fromkeys(t.stream for part in asked for t in part.takes))
    if known is not None:
        check_spaces(known, specs, names, dataset.uri)
    elif len(names) > 1:
        raise JobError(
            f"the streams {', '.join(names)} share the ids 0, 1, 2, …",
            remedy="give the loader a joint vocabulary: vocabulary=dataset.vocabulary()",
        )
    codes = {name: i + 1 for i, name in enumerate(known.streams if known else names)}
    layouts = tuple(stream_layouts(part, specs, dtypes, known, codes, bos, eos) for part in asked)
    request = Request(
        parts=asked,
        layouts=layouts,
        packing=_packing(sequence, packing),
        length=sequence or 0,
        shuffle=_checked_shuffle(shuffle),
        split=_checked_split(split),
    )
    settings = Settings(
        batch=_positive("batch", batch),
        seed=seed,
        **_ranks(rank, world),
        epochs=_epochs(epochs, asked),
        steps=steps,
        tail=tail,
        threads=threads,
        patience=patience,
        making=Making(
            width=sequence,
            dtype=_dtype(dtype, known, layouts),
            pad=_pad(pad, known),
            fields=_fields(fields, sequence, names),
            isolate=isolate,
        ),
    )
    return Loader(
        dataset,
        request,
        stretches_of(_schedule(asked, schedule), batch),
        settings,
        vocabulary=known,
        codes=codes,
        cache=_cache(cache),
        tensors=dataset.tensors(tensors, pinned),
    )


def make_vocabulary(
    dataset: Dataset, streams: Sequence[str] | None = None, *, specials: Sequence[str] = ()
) -> Vocabulary:
    """A joint vocabulary of these streams (default: all), in the order given, behind pad, bos, eos
    and `specials`. Raises JobError, SpaceMismatch where a stream holds two spaces."""
    chosen = dataset.select(streams=streams) if streams is not None else dataset
    chosen.check_spaces()
    specs = stream_specs(dataset.access, chosen.first_paths())
    return Vocabulary.of([specs[s][0] for s in streams or chosen.streams], specials)


def _parts(
    streams: str | Take | Sequence[str | Take] | None, parts: Sequence[Part] | None
) -> tuple[Part, ...]:
    if (streams is None) == (parts is None):
        raise JobError("give a loader either streams or parts")
    found = (Part(streams=streams),) if streams is not None else tuple(parts or ())
    labels = [p.label for p in found]
    if not found or len(set(labels)) != len(labels):
        raise JobError("a mixture has one or more parts with names of their own", why=f"{labels}")
    return found


def _specs(
    dataset: Dataset, parts: Sequence[Part]
) -> tuple[dict[str, StreamSpec], dict[str, np.dtype[Any]]]:
    """Of all streams in use. A stream of several pipelines must mean one thing in those taken."""
    specs: dict[str, StreamSpec] = {}
    dtypes: dict[str, np.dtype[Any]] = {}
    for part in parts:
        streams = [t.stream for t in part.takes]
        chosen = dataset.select(pipeline=part.pipeline).select(streams=streams)
        chosen.check_spaces()
        for name, (spec, dtype) in stream_specs(dataset.access, chosen.first_paths()).items():
            if specs.setdefault(name, spec) != spec:
                raise JobError(
                    f"stream {name!r} means different things in the parts of this mixture",
                    remedy="load one of them, or name the streams differently",
                )
            dtypes[name] = np.promote_types(dtype, dtypes.get(name, dtype))
    return specs, dtypes


def _vocabulary(dataset: Dataset, given: Vocabulary | str | None) -> Vocabulary | None:
    if isinstance(given, str):
        return load_vocabulary(dataset.access, given)
    if given is not None:
        try:
            save_vocabulary(dataset.access, given)
        except StoreError:
            pass  # a store that may not be written: its hash is in the state all the same
    return given


def _packing(sequence: int | None, packing: Packing | None) -> Packing | None:
    if sequence is None:
        if packing is not None:
            raise JobError("packing needs a length", remedy="give sequence=4096, say")
        return None
    _positive("sequence", sequence)
    if packing not in (None, "cut", "whole"):
        raise JobError(f"no packing {packing!r}", remedy="cut or whole")
    return packing or "cut"


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise JobError(f"{name} must be at least 1, not {value}")
    return value


def _checked_shuffle(shuffle: Shuffle | None) -> Shuffle | None:
    if shuffle is not None:
        _positive("shuffle.group", shuffle.group)
        _positive("shuffle.lanes", shuffle.lanes)
    return shuffle


def _checked_split(split: Split | None) -> Split | None:
    if split is not None and not 0 <= split[0] < split[1] <= SPLIT_PARTS:
        raise JobError(
            f"{split} is not a part of the split",
            why=f"it is (low, high) with 0 <= low < high <= {SPLIT_PARTS:,}",
        )
    return None if split is None else (int(split[0]), int(split[1]))


def _ranks(rank: int | None, world: int | None) -> dict[str, int]:
    found = {
        "rank": int(os.environ.get("RANK", "0")) if rank is None else rank,
        "world": int(os.environ.get("WORLD_SIZE", "1")) if world is None else world,
    }
    if not 0 <= found["rank"] < found["world"]:
        raise JobError(f"rank {found['rank']} of {found['world']} ranks")
    return found


def _epochs(epochs: int | None, parts: Sequence[Part]) -> int | None:
    if len(parts) == 1:
        return 1 if epochs is None else _positive("epochs", epochs)
    if epochs is not None:
        raise JobError(
            "the parts of a mixture have epochs of their own",
            remedy="end it with steps=, or take one part",
        )
    return None


def _schedule(
    parts: Sequence[Part], schedule: Mapping[int, Mapping[str, float]] | None
) -> dict[int, list[float]]:
    if schedule is None:
        return {0: [part.weight for part in parts]}
    labels = [part.label for part in parts]
    for weights in schedule.values():
        for name in weights:
            if name not in labels:
                raise JobError(f"the schedule names no part {name!r}{nearest(name, labels)}")
    return {step: [w.get(label, 0) for label in labels] for step, w in schedule.items()}


def _dtype(
    asked: str | None, vocabulary: Vocabulary | None, layouts: Sequence[Sequence[StreamLayout]]
) -> np.dtype[Any]:
    if asked is not None:
        dtype: np.dtype[Any] = np.dtype(asked)
    elif vocabulary is not None:
        dtype = np.dtype(np.int64)
    else:
        dtype = np.result_type(*(layout.dtype for part in layouts for layout in part))
    if vocabulary is not None and dtype.kind in "iu" and np.iinfo(dtype).max < vocabulary.size - 1:
        raise JobError(f"{dtype} cannot hold the {vocabulary.size:,} ids of the vocabulary")
    return dtype


def _pad(pad: Token | None, vocabulary: Vocabulary | None) -> int:
    if isinstance(pad, int):
        return pad
    if vocabulary is None:
        if pad is not None:
            raise JobError("a pad token by name needs a vocabulary")
        return 0
    return vocabulary.pad if pad is None else vocabulary.special(pad)


def _fields(
    fields: Collection[str] | None, sequence: int | None, streams: Sequence[str]
) -> frozenset[str]:
    if fields is None:
        chosen = _OF_SAMPLES if sequence is None else _OF_SEQUENCES
        return frozenset((*chosen, *(_OF_MANY_STREAMS if len(streams) > 1 else ())))
    for name in fields:
        if name not in FIELDS and name not in ("tokens", "lengths"):
            raise JobError(f"a batch has no field {name!r}{nearest(name, FIELDS)}")
    return frozenset(fields)


def _cache(cache: LocalCache | bool) -> LocalCache | None:
    if isinstance(cache, LocalCache):
        return cache
    return LocalCache() if cache else None
