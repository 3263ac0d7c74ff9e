"""What a loader does with the world: object stores, caches, growth, refusals, faults, pickling."""

from __future__ import annotations

import itertools
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tokenmill
from tests.store.built import Builder, doc, input_
from tests.store.stream.stores import grid_store, opened, pair_store, simulated, text_store
from tokenmill.schemas.errors import CorruptStore, JobError, SpaceMismatch, StoreUnavailable
from tokenmill.store.cache import LocalCache
from tokenmill.store.dataset import open_store
from tokenmill.store.stream import held
from tokenmill.store.stream.held import patiently
from tokenmill.store.stream.part import Part, Shuffle
from tokenmill.store.stream.regions import one_array
from tokenmill.store.stream.spans import make_spans
from tokenmill.store.stream.vocabularies import load_vocabulary
from tokenmill.store.stream.vocabulary import Vocabulary

SMALL = Shuffle(group=2)


def tokens(loader: Any, steps: int | None = None) -> list[list[int]]:
    return [
        t[:n].tolist()
        for b in itertools.islice(loader, steps)
        for t, n in zip(b.tokens, b.lengths, strict=True)
    ]


# -- where the bytes lie


@pytest.mark.s3
def test_a_loader_reads_the_same_from_s3_through_a_bounded_cache(
    s3: Callable[[], str], tmp_path: Path
) -> None:
    """The cache holds decoded shards, fewer bytes than the epoch, hash checked, and is enough."""
    remote, local = text_store(s3()), text_store(tmp_path / "local")
    settings: dict[str, Any] = {"batch": 4, "sequence": 32, "shuffle": SMALL}
    expected = tokens(opened(local).loader("text", **settings))
    cache = LocalCache(tmp_path / "cache", max_bytes=20_000)
    assert tokens(opened(remote).loader("text", cache=cache, **settings)) == expected
    kept = list((tmp_path / "cache" / "objects").glob("*.arrow"))
    assert 0 < sum(f.stat().st_size for f in kept) < 40_000
    first = opened(remote).loader("text", cache=False, **settings)
    before = tokens(first, 5)
    again = opened(remote).loader("text", cache=cache, **settings)
    again.load_state_dict(first.state_dict())
    assert before + tokens(again) == expected


def test_a_shard_is_decoded_once_for_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(text_store(tmp_path / "store"))
    cache = LocalCache(tmp_path / "cache")
    for rank in range(2):
        for _ in dataset.loader("text", batch=4, rank=rank, world=2, cache=cache):
            pass
    files = list((tmp_path / "cache" / "objects").glob("*.arrow"))
    assert len(files) == 7

    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("tokenmill.store.stream.mapped._decode", no_decoding)
    assert len(tokens(dataset.loader("text", batch=4, cache=cache))) > 100


def test_a_shard_whose_content_is_another_is_refused_and_not_cached(tmp_path: Path) -> None:
    builder = text_store(tmp_path / "store", files=2)
    dataset = opened(builder)
    one, two = sorted((tmp_path / "store" / "shards" / "docs" / "text").glob("*.arrow"))
    one.write_bytes(two.read_bytes())
    cache = LocalCache(tmp_path / "cache")
    with pytest.raises(CorruptStore):
        tokens(dataset.loader("text", batch=4, cache=cache))
    kept = [f.name for f in (tmp_path / "cache" / "objects").glob("*.arrow")]
    assert len(kept) <= 1


def test_offsets_of_a_damaged_plain_shard_are_refused(tmp_path: Path) -> None:
    """G9: a map is read only where its own offsets, checked, say so."""
    dataset = opened(grid_store(tmp_path / "store", files=1))
    (shard,) = (tmp_path / "store" / "shards" / "pics" / "image").glob("*.arrow")
    data = shard.read_bytes()
    offsets = np.arange(0, 24 * 16, 16, dtype=np.int32).tobytes()
    at = data.index(offsets[:64])
    for place, bad in ((2, 1 << 30), (2, -5), (0, -5)):
        where = at + 4 * place
        shard.write_bytes(data[:where] + np.int32(bad).tobytes() + data[where + 4 :])
        with pytest.raises(CorruptStore):
            tokens(dataset.loader("image", batch=4))


def test_shards_of_different_widths_are_one_array() -> None:
    narrow, wide = np.arange(5, dtype=np.uint8), np.arange(500, 505, dtype=np.uint32)
    joined, shifts = one_array([narrow, None, wide])
    assert joined.dtype == np.uint32
    assert joined[shifts[0] : shifts[0] + 5].tolist() == narrow.tolist()
    assert joined[shifts[2] : shifts[2] + 5].tolist() == wide.tolist()


def test_a_store_that_does_not_answer_is_waited_for_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held, "FIRST_WAIT", 0.001)
    answers = iter([StoreUnavailable("no answer"), StoreUnavailable("no answer"), 7])

    def attempt() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with caplog.at_level(logging.WARNING, "tokenmill.loader"):
        assert patiently(attempt, 60.0) == 7
    assert [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()]
    assert len(caplog.records) == 2

    def never() -> int:
        raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        patiently(never, 0.0)


def test_a_fault_in_a_reading_thread_reaches_the_trainer(tmp_path: Path) -> None:
    dataset = opened(grid_store(tmp_path / "store"))
    shards = sorted((tmp_path / "store" / "shards" / "pics" / "image").glob("*.arrow"))
    shards[2].write_bytes(b"ARROW1 and nothing more")
    with pytest.raises(CorruptStore):
        tokens(dataset.loader("image", batch=4, threads=2))


# -- growth


def _more(builder: Builder, first: int) -> None:
    grids = [doc(f"n{i}", (4, 4), image=np.arange(16) + (first + i) * 16) for i in range(12)]
    builder.encode("pics", "image", {input_(f"new{first}"): grids}, encoding="plain")


def test_a_loader_stays_on_its_snapshot_and_moves_when_told(tmp_path: Path) -> None:
    builder = grid_store(tmp_path / "store")
    loader = opened(builder).loader("image", batch=5, shuffle=SMALL)
    (old,) = loader.sequences
    before = tokens(loader, 3)
    _more(builder, 1000)
    assert loader.sequences == (old,)
    state = loader.state_dict()
    fresh = opened(builder).loader("image", batch=5, shuffle=SMALL)  # a grown store
    assert fresh.sequences == (old + 12,)
    fresh.load_state_dict(state)
    assert fresh.snapshot == loader.snapshot  # resumed where it was
    assert fresh.advance() == 15
    assert fresh.sequences == (old + 12,)
    moved = tokens(fresh, 4)
    saved = fresh.state_dict()
    assert [e["slot"] for e in saved["eras"]] == [0, 15]
    rest = tokens(fresh)
    assert len({t[0] for t in moved + rest}) == old + 12  # an epoch of the new snapshot
    again = opened(builder).loader("image", batch=5, shuffle=SMALL)
    again.load_state_dict(saved)
    assert tokens(again) == rest
    assert before


def test_ranks_agree_after_they_advance(tmp_path: Path) -> None:
    builder = grid_store(tmp_path / "store")
    loaders = [
        opened(builder).loader("image", batch=6, rank=r, world=2, shuffle=SMALL) for r in range(2)
    ]
    for loader in loaders:
        tokens(loader, 2)
    _more(builder, 1000)
    found = []
    for loader in loaders:
        assert loader.advance() == 12
        found += tokens(loader)
    assert len(found) == len({t[0] for t in found}) == loaders[0].sequences[0]


def test_a_split_survives_growth(tmp_path: Path) -> None:
    builder = grid_store(tmp_path / "store")
    settings: dict[str, Any] = {"batch": 3, "split": (0, 3_000)}
    before = {t[0] for t in tokens(opened(builder).loader("image", **settings))}
    _more(builder, 1000)
    after = {t[0] for t in tokens(opened(builder).loader("image", **settings))}
    assert before <= after
    assert {t for t in after if t < 16_000} == before


def test_rows_that_a_later_commit_replaced_do_not_come(tmp_path: Path) -> None:
    """G2: only what the snapshot shows, here a file of which a part is superseded."""
    builder = grid_store(tmp_path / "store", files=0)
    old = {
        input_("a"): [doc(f"a{i}", (4, 4), image=np.arange(16) + i * 16) for i in range(6)],
        input_("b"): [doc(f"b{i}", (4, 4), image=np.arange(16) + (6 + i) * 16) for i in range(6)],
    }
    builder.encode("pics", "image", old, encoding="plain")
    new = [doc(f"b{i}", (4, 4), image=np.arange(16) + (50 + i) * 16) for i in range(6)]
    builder.encode("pics", "image", {input_("b", "v2"): new}, encoding="plain")
    dataset = opened(builder)
    stored = sorted(row["image"].tolist() for row in dataset)
    for packing in (None, "cut"):
        loader = dataset.loader(
            "image", batch=4, sequence=16 if packing else None, packing=packing, shuffle=SMALL
        )
        assert sorted(tokens(loader)) == stored


# -- data beside the shards


def test_what_had_to_be_counted_is_kept_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(text_store(tmp_path / "store"))
    settings: dict[str, Any] = {"batch": 4, "sequence": 64, "packing": "whole"}
    first = dataset.loader("text", **settings)
    (census,) = (tmp_path / "store" / "census").iterdir()

    def no_counting(*_: object) -> None:
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr("tokenmill.store.stream.plan.read_span", no_counting)
        assert dataset.loader("text", **settings).sequences == first.sequences
    census.write_bytes(b"damaged")  # not believed: counted again
    assert dataset.loader("text", **settings).sequences == first.sequences


def test_a_vocabulary_is_kept_with_the_store_and_found_by_its_hash(tmp_path: Path) -> None:
    dataset = opened(pair_store(tmp_path / "store"))
    vocabulary = dataset.vocabulary(["image", "text"], specials=["<|user|>"])
    loader = dataset.loader(["image", "text"], batch=2, vocabulary=vocabulary)
    assert load_vocabulary(dataset.access, vocabulary.hash) == vocabulary
    again = dataset.loader(["image", "text"], batch=2, vocabulary=vocabulary.hash)
    assert tokens(again) == tokens(loader)
    again.load_state_dict(loader.state_dict())
    other = dataset.vocabulary(["text", "image"])
    with pytest.raises(JobError, match="vocabulary"):
        dataset.loader(["image", "text"], batch=2, vocabulary=other).load_state_dict(
            loader.state_dict()
        )
    path = tmp_path / "store" / "vocabularies" / f"{vocabulary.hash}.json"
    path.write_bytes(path.read_bytes().replace(b"<|user|>", b"<|evil|>"))
    with pytest.raises(CorruptStore):
        load_vocabulary(dataset.access, vocabulary.hash)


def test_tokens_of_another_space_than_the_vocabularys_are_refused(tmp_path: Path) -> None:
    """G7."""
    dataset = opened(grid_store(tmp_path / "one"))
    other = Builder(str(tmp_path / "two"))
    other.encode(
        "pics", "image", {input_("x"): [doc("x", (4, 4), image=range(16))]}, space="another"
    )
    with pytest.raises(SpaceMismatch):
        opened(other).loader("image", batch=1, vocabulary=dataset.vocabulary())


def test_streams_that_were_cut_differently_are_refused_by_name(tmp_path: Path) -> None:
    builder = Builder(str(tmp_path / "store"))
    docs = [doc(f"k{i}", (4, 4), image=np.arange(16), text=[i]) for i in range(4)]
    builder.encode("pairs", "image", {input_("a"): docs[:2], input_("b"): docs[2:]})
    builder.encode("pairs", "text", {input_("a"): docs[:2]})
    builder.encode("pairs", "text", {input_("b"): docs[2:]})
    dataset = opened(builder)
    with pytest.raises(JobError, match="cut differently"):
        dataset.loader(["image", "text"], batch=1, vocabulary=dataset.vocabulary())


# -- torch


def test_batches_are_torch_tensors_and_workers_give_the_same_batches(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    builder = text_store(tmp_path / "store")
    settings: dict[str, Any] = {"batch": 4, "sequence": 32, "shuffle": SMALL, "tensors": "torch"}
    dataset = tokenmill.open(builder.uri)
    loader = dataset.loader("text", **settings)
    expected = tokens(dataset.loader("text", **settings))
    for workers in (0, 2):
        steps = pickle.loads(pickle.dumps(loader.iterable_dataset()))  # as spawned workers get it
        data = torch.utils.data.DataLoader(steps, batch_size=None, num_workers=workers)
        seen, states = [], []
        for batch in data:
            assert isinstance(batch.tokens, torch.Tensor)
            assert isinstance(batch.cu_seqlens, torch.Tensor)
            seen += [t[:n].tolist() for t, n in zip(batch.tokens, batch.lengths, strict=True)]
            states.append((len(seen), loader.state_dict(batch)))
        assert seen == expected
        count, state = states[len(states) // 2]
        resumed = dataset.loader("text", **settings)
        resumed.load_state_dict(state)
        assert tokens(resumed) == expected[count:]
    if not torch.cuda.is_available():
        with pytest.raises(JobError, match="page-locked"):
            dataset.loader("text", **{**settings, "pinned": True})
    with pytest.raises(JobError):
        dataset.loader("text", batch=1).iterable_dataset()


def test_a_loader_is_picklable_and_a_copy_goes_on_where_it_was(tmp_path: Path) -> None:
    loader = opened(text_store(tmp_path / "store")).loader("text", batch=4, sequence=32)
    tokens(loader, 3)
    copy = pickle.loads(pickle.dumps(loader))
    assert tokens(copy) == tokens(loader)


def test_the_numpy_path_does_not_import_torch(tmp_path: Path) -> None:
    builder = text_store(tmp_path / "store", files=2)
    code = (
        "import sys, tokenmill\n"
        f"ds = tokenmill.open({builder.uri!r})\n"
        "assert len(list(ds.loader('text', batch=4, sequence=16))) > 1\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_million_shards_are_numbers_and_not_objects() -> None:
    """The order over a large snapshot is made of arrays: spans without a Python object each."""
    spans = make_spans(simulated(100_000), ["image"], "drop")
    assert isinstance(spans.files, pa.Table)
    assert len(spans) == 100_000
    assert spans.samples.sum() == simulated(100_000)["samples"].to_numpy().sum()


def test_open_store_gives_numpy_loaders_only(tmp_path: Path) -> None:
    dataset = open_store(grid_store(tmp_path / "store", files=1).uri)
    with pytest.raises(JobError, match=r"tokenmill\.open"):
        dataset.loader("image", batch=1, tensors="torch")
    assert Vocabulary.of([]).size == 3
    assert Part(streams="image").label == "image"


def test_every_encoding_gives_the_same_tokens(tmp_path: Path) -> None:
    found = []
    for encoding in ("plain", "zstd", "packed"):
        dataset = opened(text_store(tmp_path / encoding, files=3, encoding=encoding))
        assert set(dataset.snapshot_table()["encoding"].to_pylist()) == {encoding}
        found.append(tokens(dataset.loader("text", batch=4, sequence=32, shuffle=SMALL)))
    assert found[0] == found[1] == found[2]


def test_filters_that_choose_other_shards_on_resume_are_refused(tmp_path: Path) -> None:
    """The predicate's text is the same, what it chooses is not: the hash of the choice says so."""
    builder = text_store(tmp_path / "store", files=3)
    part = Part(streams="text", where="committed_at <= (select max(committed_at) from shards)")
    settings: dict[str, Any] = {"parts": [part], "batch": 4}
    state = opened(builder).loader(**settings).state_dict()
    state["eras"][0]["selection"] = "00" * 32
    with pytest.raises(JobError, match="choose other shards"):
        opened(builder).loader(**settings).load_state_dict(state)
