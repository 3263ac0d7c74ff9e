"""The loader on real stores: one global sequence, whatever the ranks, and every token once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.store.stream.stores import grid_store, opened, pair_store, text_store
from tokenmill.schemas.errors import JobError
from tokenmill.store.dataset import Dataset
from tokenmill.store.stream.loader import Loader
from tokenmill.store.stream.part import Part, Shuffle, Take

SMALL = Shuffle(group=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return opened(text_store(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return opened(grid_store(tmp_path_factory.mktemp("grids")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return opened(pair_store(tmp_path_factory.mktemp("pairs")))


def rows(batch: Any) -> list[list[int]]:
    """The sequences of a batch without their padding."""
    return [t[:n].tolist() for t, n in zip(batch.tokens, batch.lengths, strict=True)]


def sequences(loader: Loader, steps: int | None = None) -> list[list[int]]:
    return [s for b in itertools.islice(loader, steps) for s in rows(b)]


def by_ranks(
    make: Any, worlds: Sequence[tuple[int, int | None]]
) -> tuple[list[list[int]], list[int]]:
    """The global sequence when each (world, steps) resumes what the one before saved."""
    state, found, shares = None, [], []
    for world, steps in worlds:
        per_rank, states = [], []
        for rank in range(world):
            loader = make(rank=rank, world=world)
            if state is not None:
                loader.load_state_dict(state)
            per_rank.append([rows(b) for b in itertools.islice(loader, steps)])
            states.append(loader.state_dict())
        assert all(s == states[0] for s in states)  # the state is global
        assert len({len(batches) for batches in per_rank}) == 1  # ranks take the same steps
        state = states[0]
        for step in zip(*per_rank, strict=True):
            # slot gB + i belongs to rank i mod R
            for place in range(max(map(len, step))):
                found += [mine[place] for mine in step if place < len(mine)]
        shares += [sum(map(len, batches)) for batches in per_rank]
    return found, shares


WORLDS = [
    [(1, None)],
    [(4, 3), (2, None)],
    [(2, 3), (3, None)],
    [(2, 4), (1, None)],
    [(1, 4), (2, None)],
    [(3, 1), (4, 2), (5, None)],
]


def _makers(text: Dataset, grids: Dataset, pairs: Dataset) -> dict[str, Any]:
    joint = pairs.vocabulary()
    mixture = [
        Part(streams="image", weight=2),
        Part(streams=("image", "text"), weight=1),
        Part(streams="text", weight=3),
    ]
    return {
        "samples": lambda **k: grids.loader("image", batch=6, shuffle=SMALL, **k),
        "cut": lambda **k: text.loader("text", batch=6, sequence=32, shuffle=SMALL, **k),
        "whole": lambda **k: text.loader(
            "text", batch=6, sequence=64, packing="whole", shuffle=SMALL, **k
        ),
        "lanes": lambda **k: text.loader(
            "text", batch=6, sequence=32, shuffle=Shuffle(group=1, lanes=3), **k
        ),
        "epochs": lambda **k: grids.loader("image", batch=6, epochs=3, shuffle=SMALL, **k),
        "mixture": lambda **k: pairs.loader(
            parts=mixture, batch=6, sequence=24, vocabulary=joint, steps=40, shuffle=SMALL, **k
        ),
    }


@pytest.mark.parametrize("kind", ["samples", "cut", "whole", "lanes", "epochs", "mixture"])
def test_the_global_sequence_does_not_know_the_world_size(
    kind: str, text: Dataset, grids: Dataset, pairs: Dataset
) -> None:
    make = _makers(text, grids, pairs)[kind]
    found = [by_ranks(make, worlds)[0] for worlds in WORLDS]
    assert all(f == found[0] for f in found)
    assert len(found[0]) > 30


@pytest.mark.parametrize("kind", ["samples", "cut", "whole", "lanes", "mixture"])
def test_resume_goes_on_exactly_at_any_slot(
    kind: str, text: Dataset, grids: Dataset, pairs: Dataset
) -> None:
    make = _makers(text, grids, pairs)[kind]
    whole = sequences(make())
    total = make().last_step
    for step in range(0, total + 1, max(1, total // 7)):
        first = make()
        before = sequences(first, step)
        again = make()
        again.load_state_dict(first.state_dict())
        assert before + sequences(again) == whole
    assert len(make()) == total


@pytest.mark.parametrize("shuffle", [SMALL, Shuffle(group=3, lanes=4), None])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("kind", ["samples", "cut", "whole"])
def test_every_token_comes_exactly_once_in_an_epoch(
    kind: str, threads: int, shuffle: Shuffle | None, text: Dataset, grids: Dataset
) -> None:
    settings: dict[str, Any] = {"batch": 5, "threads": threads, "shuffle": shuffle}
    if kind == "samples":
        dataset, loader = grids, grids.loader("image", **settings)
    else:
        dataset = text
        loader = text.loader("text", sequence=40, packing=kind, **settings)  # type: ignore
    stream = "image" if kind == "samples" else "text"
    stored = np.concatenate([c.values for c in dataset.columns(stream)])
    found = [t for s in sequences(loader) for t in s]
    assert sorted(found) == sorted(stored.tolist())
    if shuffle is None and kind != "whole":
        assert found == stored.tolist()  # file order
    elif shuffle is not None:
        assert found != stored.tolist()


def test_epochs_hold_the_same_samples_in_other_orders(grids: Dataset) -> None:
    loader = grids.loader("image", batch=1, epochs=3, shuffle=SMALL)
    (n,) = loader.sequences
    found = [s[0] for s in sequences(loader)]
    epochs = [found[i * n : (i + 1) * n] for i in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(e) for e in epochs}) == 3
    other = sequences(grids.loader("image", batch=1, seed=1, shuffle=SMALL))
    assert [s[0] for s in other] != epochs[0]


def test_the_tail_is_short_or_dropped_as_told(grids: Dataset) -> None:
    total = sum(len(s) > 0 for s in sequences(grids.loader("image", batch=1)))
    short = [
        [len(b) for b in grids.loader("image", batch=8, rank=r, world=3, shuffle=SMALL)]
        for r in range(3)
    ]
    assert sum(map(sum, short)) == total
    assert len({len(s) for s in short}) == 1  # a rank may have nothing, but never fewer steps
    drop = grids.loader("image", batch=8, tail="drop")
    assert [len(b) for b in drop] == [8] * (total // 8)


def test_ids_travel_with_their_samples(text: Dataset, grids: Dataset) -> None:
    """G8: whatever the packing, each document of a batch names the sample it is from."""
    stored = {row.id: row["image"].tolist() for row in grids if row["image"] is not None}
    for batch in grids.loader("image", batch=7, shuffle=SMALL):
        for id, tokens in zip(batch.ids, batch.tokens, strict=True):
            assert stored[id.tobytes()] == tokens.tolist()
    texts = {row.id: row["text"].tolist() for row in text if row["text"] is not None}
    for packing in ("cut", "whole"):
        for batch in text.loader(
            "text",
            batch=4,
            sequence=32,
            packing=packing,
            shuffle=SMALL,  # type: ignore[arg-type]
        ):
            assert len(batch.ids) == len(batch.documents)
            for id, (row, start, stop) in zip(batch.ids, batch.documents.tolist(), strict=True):
                part = batch.tokens[row, start:stop].tolist()
                whole = texts[id.tobytes()]
                at = whole.index(part[0])
                assert whole[at : at + len(part)] == part


def test_documents_do_not_cross_sequences_when_told_so(text: Dataset) -> None:
    lengths = {row.id: len(row["text"]) for row in text if row["text"] is not None}
    seen: dict[bytes, int] = {}
    for batch in text.loader("text", batch=4, sequence=64, packing="whole", shuffle=SMALL):
        for id, (_, start, stop) in zip(batch.ids, batch.documents.tolist(), strict=True):
            assert stop - start == lengths[id.tobytes()]
            seen[id.tobytes()] = seen.get(id.tobytes(), 0) + 1
    assert set(seen.values()) == {1}
    assert set(seen) == {id for id, n in lengths.items() if n}


def test_cu_seqlens_positions_and_labels_agree_with_the_documents(text: Dataset) -> None:
    fields = ("documents", "positions", "loss_mask", "labels", "cu_seqlens")
    for batch in text.loader("text", batch=3, sequence=48, eos=60_000, fields=fields):
        width = batch.tokens.shape[1]
        edges = batch.cu_seqlens.tolist()
        assert edges[0] == 0 and edges[-1] == batch.tokens.size
        assert batch.max_seqlen == max(np.diff(edges), default=0)
        starts = {row * width + start for row, start, _ in batch.documents.tolist()}
        assert starts <= set(edges)
        flat = batch.positions.reshape(-1)
        for a, b in itertools.pairwise(edges):
            assert flat[a:b].tolist() == list(range(b - a))
        for row in range(len(batch)):
            n = int(batch.lengths[row])
            assert batch.loss_mask[row].tolist() == [True] * n + [False] * (width - n)
            for i in range(width):
                inside = i + 1 < n and batch.positions[row, i + 1] > 0
                expected = batch.tokens[row, i + 1] if inside else -100
                assert batch.labels[row, i] == expected


def test_documents_may_see_each_other_when_told_so(text: Dataset) -> None:
    batch = next(iter(text.loader("text", batch=2, sequence=48, isolate=False)))
    assert batch.positions.tolist() == [list(range(48))] * 2
    assert batch.cu_seqlens.tolist() == [0, 48, 96]


# -- vocabulary, several streams


def test_a_pair_comes_out_as_one_sequence_with_spans_and_modalities(pairs: Dataset) -> None:
    vocabulary = pairs.vocabulary(["text", "image"])
    loader = pairs.loader(
        ["image", "text"],
        batch=4,
        vocabulary=vocabulary,
        bos="<|bos|>",
        eos="<|eos|>",
        fields=("ids", "spans", "modality", "positions"),
    )
    stored = {r.id: r for r in pairs if r.get("image") is not None and r.get("text") is not None}
    image, text = vocabulary.stream("image"), vocabulary.stream("text")
    special = vocabulary.special
    seen = 0
    for batch in loader:
        spans = iter(batch.spans.tolist())
        for i, (id, tokens) in enumerate(zip(batch.ids, rows(batch), strict=True)):
            row = stored[id.tobytes()]
            pixels, words = row["image"], row["text"]
            assert pixels is not None and words is not None
            assert tokens == [
                special("<|bos|>"),
                special("<|image|>"),
                *(pixels.astype(int) + image.offsets[0]).tolist(),
                special("<|/image|>"),
                special("<|text|>"),
                *(words.astype(int) + text.offsets[0]).tolist(),
                special("<|/text|>"),
                special("<|eos|>"),
            ]
            cut = 1 + 1 + len(pixels) + 1
            assert next(spans) == [i, 0, cut, loader.codes["image"]]
            assert next(spans) == [i, cut, len(tokens), loader.codes["text"]]
            modality = batch.modality[i].tolist()
            padding = [0] * (batch.tokens.shape[1] - len(tokens))
            codes = [loader.codes["image"]] * cut + [loader.codes["text"]] * (len(tokens) - cut)
            assert modality == codes + padding
            seen += 1
    assert seen == len(stored) > 20


def test_samples_that_lack_a_stream_are_left_out_or_given_as_they_are(pairs: Dataset) -> None:
    vocabulary = pairs.vocabulary()
    both = sum(r.get("image") is not None and r.get("text") is not None for r in pairs)
    some = sum(r.get("image") is not None or r.get("text") is not None for r in pairs)
    for missing, expected in (("drop", both), ("keep", some)):
        part = Part(streams=("image", "text"), missing=missing)  # type: ignore[arg-type]
        loader = pairs.loader(parts=[part], batch=5, vocabulary=vocabulary)
        assert len(sequences(loader)) == expected
    assert some > both


def test_streams_that_share_ids_need_a_vocabulary(pairs: Dataset) -> None:
    with pytest.raises(JobError, match="joint vocabulary"):
        pairs.loader(["image", "text"], batch=2)


def test_a_cut_and_an_order_are_applied_to_each_sample(pairs: Dataset) -> None:
    plain = {s[0]: s for s in sequences(pairs.loader("image", batch=1))}
    take = Take(stream="image", order="columns", cut=6)
    for tokens in sequences(pairs.loader(take, batch=1)):
        grid = np.array(plain[tokens[0]]).reshape(4, 4)
        assert tokens == grid.T.reshape(-1)[:6].tolist()
    packed = pairs.loader(take, batch=1, sequence=9)
    whole = [t for s in sequences(packed) for t in s]
    assert sorted(whole) == sorted(t for s in sequences(pairs.loader(take, batch=1)) for t in s)


def test_tokens_that_are_not_learnt_are_masked(pairs: Dataset) -> None:
    part = Part(streams=(Take(stream="image", loss=False), "text"))
    loader = pairs.loader(
        parts=[part],
        batch=3,
        sequence=32,
        vocabulary=pairs.vocabulary(),
        fields=("loss_mask", "modality"),
    )
    for batch in loader:
        assert (batch.loss_mask == (batch.modality == loader.codes["text"])).all()


# -- mixtures


def test_a_mixture_draws_by_weight_and_a_schedule_changes_it_at_its_step(pairs: Dataset) -> None:
    parts = [Part(streams="image"), Part(streams="text")]
    loader = pairs.loader(
        parts=parts,
        batch=4,
        sequence=16,
        vocabulary=pairs.vocabulary(),
        schedule={0: {"image": 1, "text": 1}, 10: {"image": 3, "text": 1}},
        steps=20,
        fields=("modality",),
    )
    image = loader.codes["image"]
    drawn = [int((b.modality[:, 0] == image).sum()) for b in loader]
    assert drawn[:10] == [2] * 10
    assert drawn[10:] == [3] * 10


def test_a_part_may_be_chosen_by_sql(text: Dataset) -> None:
    whole = text.loader("text", batch=1)
    part = Part(streams="text", where="samples > 21")
    some = text.loader(parts=[part], batch=1)
    assert 0 < some.sequences[0] < whole.sequences[0]
    with pytest.raises(JobError, match="no samples"):
        text.loader(parts=[Part(streams="text", where="tokens < 0")], batch=1)


def test_split_parts_are_disjoint_and_together_everything(text: Dataset) -> None:
    found = [
        {i.tobytes() for b in text.loader("text", batch=9, split=s) for i in b.ids}
        for s in ((0, 2_000), (2_000, 10_000))
    ]
    whole = {i.tobytes() for b in text.loader("text", batch=9) for i in b.ids}
    assert found[0] & found[1] == set()
    assert found[0] | found[1] == whole
    assert 0.05 < len(found[0]) / len(whole) < 0.4


# -- refusals


def test_a_state_of_another_loader_is_refused(text: Dataset) -> None:
    state = text.loader("text", batch=4, sequence=32).state_dict()
    for other in (
        {"batch": 5, "sequence": 32},
        {"batch": 4, "sequence": 33},
        {"batch": 4, "sequence": 32, "seed": 1},
        {"batch": 4, "sequence": 32, "shuffle": None},
        {"batch": 4, "sequence": 32, "packing": "whole"},
        {"batch": 4, "sequence": 32, "split": (0, 9_000)},
        {"batch": 4, "sequence": 32, "tail": "drop"},
        {"batch": 4, "sequence": 32, "eos": 7},
    ):
        with pytest.raises(JobError, match="would not continue"):
            text.loader("text", **other).load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="not the state"):
        text.loader("text", batch=4, sequence=32).load_state_dict({"format": 1})
    text.loader("text", batch=4, sequence=32, threads=3, rank=1, world=2).load_state_dict(state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"sequence": 0},
        {"packing": "whole"},
        {"split": (5, 5)},
        {"rank": 2, "world": 2},
        {"fields": ("colour",)},
        {"tensors": "jax"},
        {"eos": "<|eos|>"},
        {"shuffle": Shuffle(group=0)},
        {"parts": [Part(streams="text")]},
    ],
)
def test_what_cannot_be_is_refused_when_the_loader_is_made(
    text: Dataset, wrong: dict[str, Any]
) -> None:
    with pytest.raises(JobError):
        text.loader("text", **{"batch": 2, **wrong})


def test_unknown_names_are_refused_with_the_nearest_known(text: Dataset) -> None:
    with pytest.raises(JobError, match="text"):
        text.loader("txet", batch=2)
    with pytest.raises(JobError, match="text"):
        text.loader("text", batch=2, schedule={0: {"tex": 1}})
