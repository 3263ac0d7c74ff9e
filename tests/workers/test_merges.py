"""Byte-pair merges over grids: the vectors, a naive reference, and what must always hold."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.workers import naive_merges as naive
from tokenmill.workers.tokenizers.bpe_image_merges import priority, region2d, sequence
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.learn import learn_pairs, learn_regions, split
from tokenmill.workers.tokenizers.bpe_image_merges.priority import learn_priorities
from tokenmill.workers.tokenizers.bpe_image_merges.region2d import Regions
from tokenmill.workers.tokenizers.bpe_image_merges.sequence import Pairs
from tokenmill.workers.tokenizers.bpe_image_merges.tally import Tally, Totals, summed

VECTORS = Path(__file__).resolve().parents[1] / "data" / "merges"
REGIONS = ["region2d_16x16_v64", "region2d_9x13_v24", "region2d_32x32_v512"]
OFFICIAL = [("official_16x16_v64", 64), ("official_32x32_v512", 512)]
PRIORITY = ["priority_9x13_v24_a0.0_s1.0", "priority_9x13_v24_a0.5_s0.5"]

# few codes, so that chains of equal codes and overlapping candidates are the rule
grids = hnp.arrays(
    np.int32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 3)
)
corpora = st.lists(grids, min_size=1, max_size=5)


def load(name: str):
    return np.load(VECTORS / f"{name}.npz", allow_pickle=False)


def made(ids, offsets) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


# -- vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_region2d_gives_the_vectors_tokens_and_decodes_them(name, part):
    vector = load(name)
    regions = Regions.of(int(vector["vocab"][0]), vector["merges"])
    codes = Grids.of(list(vector[f"{part}_codes"]))
    ids, offsets = region2d.encode(codes, regions)
    assert np.array_equal(ids, vector[f"{part}_tokens"])
    assert np.array_equal(np.diff(offsets), vector[f"{part}_len"])
    for i in range(len(codes)):
        grid = codes.grid(i)
        back = region2d.decode(ids[offsets[i] : offsets[i + 1]], *grid.shape, regions)
        assert np.array_equal(back, grid)
        if part == "heldout":
            assert np.array_equal(region2d.labels(grid, regions), vector["heldout_labels"][i])


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_region2d_learns_the_vectors_rules_with_any_number_of_workers(name, workers):
    vector = load(name)
    rules, counts, merges = learn_regions(
        Grids.of(list(vector["train_codes"])),
        int(vector["vocab"][0]),
        rules=len(vector["merges"]),
        workers=workers,
    )
    assert np.array_equal(rules, vector["merges"])
    assert np.array_equal(counts, vector["freqs"])
    assert np.array_equal(merges, vector["applied"])


@pytest.mark.parametrize(("name", "vocab"), OFFICIAL)
def test_being_vl_gives_the_vectors_tokens(name, vocab):
    vector = load(name)
    pairs = Pairs.of(vocab, vector["merges"][:, :2].copy())
    for part in ("train", "heldout"):
        ids, offsets = sequence.encode(Grids.of(list(vector[f"{part}_codes"])), pairs)
        assert np.array_equal(ids, vector[f"{part}_tokens"])
        assert np.array_equal(np.diff(offsets), vector[f"{part}_len"])
    if "heldout_tokens_after1" in vector:
        first = Pairs.of(vocab, vector["merges"][:1, :2].copy())
        ids, _ = sequence.encode(Grids.of(list(vector["heldout_codes"])), first)
        assert np.array_equal(ids, vector["heldout_tokens_after1"])


@pytest.mark.parametrize(("name", "vocab"), OFFICIAL)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_being_vl_learns_the_vectors_rules_with_any_number_of_workers(name, vocab, workers):
    vector = load(name)
    rules, counts, _ = learn_pairs(
        Grids.of(list(vector["train_codes"])), vocab, rules=len(vector["merges"]), workers=workers
    )
    assert np.array_equal(rules[:, :2], vector["merges"][:, :2])
    assert np.array_equal(counts, vector["freqs"])


@pytest.mark.parametrize(
    "case", json.loads((VECTORS / "official_micro.json").read_text())["merge_2d"],
    ids=lambda c: c["name"],
)  # fmt: skip
def test_the_two_dimensional_pass_of_being_vl(case):
    grid = np.array(case["grid"], np.int32)
    assert sequence.merge_2d(grid, *case["pair"], case["new"]).tolist() == case["out"]


@pytest.mark.parametrize(
    "case", json.loads((VECTORS / "official_micro.json").read_text())["merge_1d"],
    ids=lambda c: c["name"],
)  # fmt: skip
def test_the_one_dimensional_pass_of_being_vl(case):
    unused = (97, 98)  # rule 0, which is the two-dimensional one, finds nothing
    pairs = Pairs.of(98 + 1, np.array([unused, case["pair"]], np.int32))
    ids, _ = sequence.encode(Grids.of([np.array([case["seq"]], np.int32)]), pairs)
    assert ids.tolist() == [100 if x == case["new"] else x for x in case["out"]]


@pytest.mark.parametrize("name", PRIORITY)
def test_priority_learns_and_gives_the_vectors(name):
    vector = load(name)
    vocab = int(vector["vocab"][0])
    alpha, sigma = vector["alpha_sigma"].tolist()
    found = learn_priorities(
        Grids.of(list(vector["train_codes"])),
        vocab,
        rules=len(vector["merges"]),
        alpha=alpha,
        sigma=sigma,
    )
    assert np.array_equal(found.rules, vector["merges"])
    assert np.array_equal(found.counts, vector["freqs"])
    assert np.array_equal(found.merges, vector["applied"])
    assert np.allclose(found.scores, vector["P_S"], rtol=0, atol=1e-9)
    pairs = Pairs.of(vocab, vector["merges"], apart=0)
    for part in ("train", "heldout"):
        ids, offsets = priority.encode(Grids.of(list(vector[f"{part}_codes"])), pairs)
        assert np.array_equal(ids, vector[f"{part}_tokens"])
        assert np.array_equal(np.diff(offsets), vector[f"{part}_len"])
    for grid, labels in zip(vector["heldout_codes"], vector["heldout_labels"], strict=True):
        found_labels = priority.sequence_and_labels(grid.astype(np.int32), pairs)[1]
        assert np.array_equal(found_labels, labels)


# -- the naive reference ---------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(corpora, st.integers(1, 12), st.sampled_from([2, 3, 5, 1024]), st.integers(1, 4))
def test_region2d_learns_and_encodes_as_the_definition_says(corpus, rules, max_cells, workers):
    expected, tokens = naive.learn_regions(corpus, 4, rules, max_cells=max_cells)
    found = learn_regions(Grids.of(corpus), 4, rules=rules, max_cells=max_cells, workers=workers)
    rows = [(*r, c, m) for r, c, m in zip(*(x.tolist() for x in found), strict=True)]
    assert rows == expected
    ids, offsets = region2d.encode(Grids.of(corpus), Regions.of(4, found[0]))
    assert made(ids, offsets) == tokens, "encoding the corpus is where learning ended"


@settings(deadline=None, max_examples=60)
@given(corpora, corpora, st.integers(1, 12))
def test_region2d_encodes_unseen_grids_as_the_definition_says(corpus, unseen, rules):
    found, _, _ = learn_regions(Grids.of(corpus), 4, rules=rules)
    ids, offsets = region2d.encode(Grids.of(unseen), Regions.of(4, found))
    assert made(ids, offsets) == [naive.encode_regions(g, 4, found) for g in unseen]


@settings(deadline=None, max_examples=60)
@given(corpora, corpora, st.integers(1, 12), st.integers(1, 4))
def test_being_vl_learns_and_encodes_as_the_released_code_does(corpus, unseen, rules, workers):
    expected, lines = naive.learn_sequence(corpus, 4, rules)
    found, counts, _ = learn_pairs(Grids.of(corpus), 4, rules=rules, workers=workers)
    rows = [(a, b, c) for (a, b, _, _), c in zip(found.tolist(), counts.tolist(), strict=True)]
    assert rows == expected
    pairs = Pairs.of(4, found[:, :2].copy())
    assert made(*sequence.encode(Grids.of(corpus), pairs)) == lines
    assert made(*sequence.encode(Grids.of(unseen), pairs)) == [
        naive.encode_sequence(g, 4, found[:, :2].tolist()) for g in unseen
    ]


# -- what must always hold -------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(corpora, corpora, st.integers(0, 40))
def test_region2d_loses_nothing_on_grids_of_any_shape(corpus, unseen, rules):
    found, _, _ = learn_regions(Grids.of(corpus), 4, rules=rules)
    regions = Regions.of(4, found)
    ids, offsets = region2d.encode(Grids.of(unseen), regions)
    for i, grid in enumerate(unseen):
        back = region2d.decode(ids[offsets[i] : offsets[i + 1]], *grid.shape, regions)
        assert np.array_equal(back, grid)


@settings(deadline=None, max_examples=40)
@given(corpora, st.integers(1, 12))
def test_the_ids_of_a_grid_do_not_depend_on_its_batch(corpus, rules):
    """G6."""
    rows, _, _ = learn_regions(Grids.of(corpus), 4, rules=rules)
    regions = Regions.of(4, rows)
    pairs = Pairs.of(4, learn_pairs(Grids.of(corpus), 4, rules=rules)[0][:, :2].copy())
    for encode, table in ((region2d.encode, regions), (sequence.encode, pairs)):
        together = made(*encode(Grids.of(corpus), table))
        assert together == [encode(Grids.of([grid]), table)[0].tolist() for grid in corpus]


def test_a_constant_grid_and_single_lines():
    corpus = [np.zeros((8, 8), np.int32), np.zeros((1, 16), np.int32), np.zeros((16, 1), np.int32)]
    rules, counts, _ = learn_regions(Grids.of(corpus), 1, rules=50)
    regions = Regions.of(1, rules)
    assert counts[0] == 7 * 8 + 15 and (rules[0] == [0, 0, 0, 1]).all()
    ids, offsets = region2d.encode(Grids.of(corpus), regions)
    for i, grid in enumerate(corpus):
        part = ids[offsets[i] : offsets[i + 1]]
        assert len(part) < grid.size
        assert np.array_equal(region2d.decode(part, *grid.shape, regions), grid)


def test_no_grids_and_no_rules():
    ids, offsets = region2d.encode(Grids.of([]), Regions.of(3, np.zeros((0, 4), np.int32)))
    assert (len(ids), offsets.tolist()) == (0, [0])
    grid = np.array([[2, 1]], np.int32)
    ids, _ = sequence.encode(Grids.of([grid]), Pairs.of(3, np.zeros((0, 2), np.int32)))
    assert ids.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([0, 0, 0], "cells are left"),
        ([0, 0, 0, 0, 0], "grid is full"),
        ([0, 2, 0], "leaves the grid"),
        ([0, 0, 3, 0], "leaves the grid"),
        ([7], "outside"),
        ([], "cells are left"),
    ],
)
def test_ids_that_do_not_tile_the_grid_are_refused(ids, why):
    regions = Regions.of(2, np.array([[0, 0, 0, 1], [0, 0, 1, 0]], np.int32))
    with pytest.raises(ValueError, match=why):
        region2d.decode(np.array(ids, np.int32), 2, 2, regions)


def test_an_id_that_covers_a_taken_cell_is_refused():
    rules = np.array([[0, 0, 0, 1], [0, 2, 1, -1]], np.int32)  # an L: a cell and the two below
    regions = Regions.of(2, rules)
    vertical_then_l = np.array([0, 3, 0, 0], np.int32)
    assert region2d.decode(vertical_then_l, 2, 3, regions).shape == (2, 3)
    with pytest.raises(ValueError, match="taken"):
        region2d.decode(np.array([0, 3, 3], np.int32), 2, 4, regions)


@settings(deadline=None, max_examples=50)
@given(corpora, st.integers(1, 9))
def test_a_split_keeps_every_grid_once_and_in_order(corpus, parts):
    whole = Grids.of(corpus)
    pieces = split(whole, parts)
    assert len(pieces) <= parts and all(len(p) for p in pieces)
    assert np.array_equal(np.concatenate([p.codes for p in pieces]), whole.codes)
    assert np.array_equal(np.concatenate([p.shapes for p in pieces]), whole.shapes)


# -- counting --------------------------------------------------------------------------------


def test_a_tally_that_must_grow_counts_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    corpus = Grids.of([rng.integers(0, 3000, (40, 50)).astype(np.int32) for _ in range(6)])
    expected = learn_regions(corpus, 3000, rules=30)
    monkeypatch.setattr(Tally, "__init__", lambda self: self._resize(256))
    for one, two in zip(expected, learn_regions(corpus, 3000, rules=30), strict=True):
        assert np.array_equal(one, two)


def test_totals_find_the_greatest_when_few_candidates_wait(monkeypatch):
    """A heap of three is refilled again and again, and the order stays that of a full sort."""
    monkeypatch.setattr("tokenmill.workers.tokenizers.bpe_image_merges.tally.CANDIDATES", 3)
    rng = np.random.default_rng(5)
    keys = np.unique(rng.integers(1, 1 << 40, 400))
    counts = rng.integers(1, 30, len(keys))
    totals = Totals(min_count=2)
    totals.begin(keys, counts)
    left = dict(zip(keys.tolist(), counts.tolist(), strict=True))
    while (best := totals.best()) is not None:
        key, count = best
        assert (-count, key) == min((-n, k) for k, n in left.items() if n >= 2)
        fall = np.array([key, int(rng.choice(list(left)))])
        by = np.array([-left.pop(key), -1])
        if fall[1] in left:
            left[int(fall[1])] -= 1
        else:
            fall, by = fall[:1], by[:1]
        totals.fall(fall, by)
    assert all(n < 2 for n in left.values())


def test_changes_of_shards_add_up_in_any_order():
    one = (np.array([5, 2]), np.array([3, -1]))
    two = (np.array([2, 9]), np.array([4, 7]))
    for parts in ([one, two], [two, one]):
        keys, changes = summed(parts)
        assert (keys.tolist(), changes.tolist()) == ([2, 5, 9], [3, 3, 7])
