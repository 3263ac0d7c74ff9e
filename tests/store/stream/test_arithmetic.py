"""The order of a loader, without a file: permutations, blocks, lanes, mixtures, ranks, packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.schemas.errors import JobError
from tokenmill.store.stream.blocks import epoch_order, in_lanes, lanes_of_rank
from tokenmill.store.stream.mixture import Mixture, Stretch, stretches_of, whole_weights
from tokenmill.store.stream.packing import pack_whole, windows
from tokenmill.store.stream.permutation import permutation, permuted_rows, stream_key
from tokenmill.store.stream.ranks import share, step_count

seeds = st.integers(0, 2**63 - 1)


# -- permutations


def test_permutations_are_these_on_every_machine_and_numpy() -> None:
    """A resumed run may find another numpy: what we use is frozen, and pinned here."""
    key = stream_key(7, "spans", 0, 3)
    assert key.hex() == "4300d1d36a98980a43897241032672b1"
    assert permutation(12, key).tolist() == [5, 8, 9, 11, 2, 1, 3, 0, 4, 10, 6, 7]
    assert permuted_rows(np.array([0, 5]), 6, key).tolist() == [
        [0, 3, 5, 4, 2, 1],
        [5, 3, 0, 2, 4, 1],
    ]


@given(n=st.integers(0, 300), seed=seeds)
def test_permutation_takes_every_number_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, stream_key(seed)).tolist()) == list(range(n))


def test_permutations_are_uniform() -> None:
    """Chi-squared over where each of 6 elements lands, for both kinds; 25 degrees, far tail 60."""
    for orders in (
        np.stack([permutation(6, stream_key(s, "a")) for s in range(6000)]),
        permuted_rows(np.arange(6000), 6, stream_key(1, "b")),
    ):
        table = np.stack([np.bincount(orders[:, i], minlength=6) for i in range(6)])
        assert ((table - 1000) ** 2 / 1000).sum() < 60


# -- blocks and lanes


@given(
    counts=st.lists(st.integers(0, 20), max_size=40),
    group=st.integers(1, 9),
    seed=seeds,
    epoch=st.integers(0, 3),
    shuffled=st.booleans(),
)
def test_every_span_is_in_one_block_of_an_epoch(
    counts: list[int], group: int, seed: int, epoch: int, shuffled: bool
) -> None:
    sizes = np.array(counts, np.int64)
    order = epoch_order(sizes, group=group, seed=seed, part=0, epoch=epoch, shuffled=shuffled)
    blocks = len(order.edges) - 1
    members = [order.members(b).tolist() for b in range(blocks)]
    assert sorted(s for m in members for s in m) == list(range(len(counts)))
    assert order.length == sizes.sum()  # the same in every epoch: resume is a division
    for position, block in enumerate(order.block_of(np.arange(order.length)).tolist()):
        assert order.line[block] <= position < order.line[block + 1]
    if not shuffled:
        assert order.spans.tolist() == list(range(len(counts)))


@given(length=st.integers(0, 200), lanes=st.integers(1, 12))
def test_lanes_are_a_bijection(length: int, lanes: int) -> None:
    assert sorted(in_lanes(np.arange(length), length, lanes).tolist()) == list(range(length))


@given(each=st.integers(1, 20), ranks=st.integers(1, 4), per_rank=st.integers(1, 4))
def test_ranks_that_divide_the_lanes_read_disjoint_stretches(
    each: int, ranks: int, per_rank: int
) -> None:
    lanes = ranks * per_rank
    length = each * lanes
    for rank in range(ranks):
        mine = in_lanes(np.arange(rank, length, ranks), length, lanes)
        assert len(set((mine // each).tolist())) == per_rank == lanes_of_rank(lanes, ranks)


# -- mixtures


mixtures = st.lists(
    st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any), min_size=1, max_size=4
)


def _mixture(weights: list[list[int]], gap: int, seed: int) -> Mixture:
    return Mixture([Stretch(start=i * gap, weights=tuple(w)) for i, w in enumerate(weights)], seed)


@given(weights=mixtures, gap=st.integers(1, 60), seed=seeds, n=st.integers(1, 300))
def test_every_part_is_drawn_in_order_and_exactly_counted(
    weights: list[list[int]], gap: int, seed: int, n: int
) -> None:
    mixture = _mixture(weights, gap, seed)
    part, draw = mixture.draws(np.arange(n))
    for p in range(3):
        assert draw[part == p].tolist() == list(range(int((part == p).sum())))
    for slot in {0, n // 3, n}:
        assert mixture.counts(slot).tolist() == np.bincount(part[:slot], minlength=3).tolist()


@given(weights=mixtures, gap=st.integers(1, 60), seed=seeds, data=st.data())
def test_a_slot_draws_the_same_wherever_one_starts(
    weights: list[list[int]], gap: int, seed: int, data: st.DataObject
) -> None:
    mixture = _mixture(weights, gap, seed)
    whole = mixture.draws(np.arange(200))
    chosen = np.array(data.draw(st.lists(st.integers(0, 199), min_size=1, max_size=20)))
    part, draw = mixture.draws(chosen)
    assert part.tolist() == whole[0][chosen].tolist()
    assert draw.tolist() == whole[1][chosen].tolist()


def test_counts_over_a_long_run_are_exact() -> None:
    mixture = Mixture([Stretch(start=0, weights=(7, 2, 1))], seed=3)
    assert mixture.counts(10**15).tolist() == [7 * 10**14, 2 * 10**14, 10**14]


@given(cycle=st.integers(0, 10**6), seed=seeds)
def test_counts_are_never_a_cycle_off(cycle: int, seed: int) -> None:
    mixture = Mixture([Stretch(start=0, weights=(7, 2, 1))], seed)
    part, _ = mixture.draws(np.arange(cycle * 10, cycle * 10 + 10))
    assert np.bincount(part).tolist() == [7, 2, 1]


def test_weights_become_the_smallest_whole_numbers() -> None:
    assert whole_weights([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert whole_weights([4, 2, 0]) == (2, 1, 0)
    assert stretches_of({0: [1, 1], 10: [1, 3]}, 8)[1] == Stretch(start=80, weights=(1, 3))
    for bad in ([0, 0], [-1, 2], [1, 1e-9]):
        with pytest.raises(JobError):
            whole_weights(bad)
    with pytest.raises(JobError):
        stretches_of({5: [1]}, 8)


# -- ranks


@given(
    batch=st.integers(1, 12),
    end=st.integers(0, 90),
    worlds=st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_every_slot_is_taken_once_whatever_the_worlds(
    batch: int, end: int, worlds: list[int]
) -> None:
    """The world size may change at any step; with a short tail nothing is lost or repeated."""
    taken: list[int] = []
    for step in range(step_count(end, batch, "short")):
        world = worlds[step % len(worlds)]
        shares = [
            share(step, batch=batch, rank=r, world=world, end=end).tolist() for r in range(world)
        ]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        taken += sorted(s for mine in shares for s in mine)
    assert taken == list(range(end))
    assert step_count(end, batch, "drop") == end // batch


# -- packing


@given(lengths=st.lists(st.integers(0, 30), max_size=40), length=st.integers(1, 24))
def test_cutting_a_line_takes_every_token_once(lengths: list[int], length: int) -> None:
    line = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)
    begin = np.arange(0, line[-1], length)
    end = np.minimum(begin + length, line[-1])
    window, sample, start, stop = windows(line, begin, end)
    tokens = [
        (s, t)
        for s, a, b in zip(sample.tolist(), start.tolist(), stop.tolist(), strict=True)
        for t in range(a, b)
    ]
    assert tokens == [(s, t) for s, n in enumerate(lengths) for t in range(n)]
    sizes = np.bincount(window, stop - start, minlength=len(begin)) if len(begin) else []
    assert list(sizes) == (end - begin).tolist()


@given(lengths=st.lists(st.integers(0, 60), max_size=60), length=st.integers(1, 24))
def test_whole_packing_takes_every_token_once_within_the_length(
    lengths: list[int], length: int
) -> None:
    packs = pack_whole(np.array(lengths, np.int64), length)
    tokens = [
        (s, t)
        for s, a, b in zip(
            packs.sample.tolist(), packs.begin.tolist(), packs.end.tolist(), strict=True
        )
        for t in range(a, b)
    ]
    assert sorted(tokens) == [(s, t) for s, n in enumerate(lengths) for t in range(n)]
    sizes = packs.end - packs.begin
    for p in range(packs.count):
        assert 0 < sizes[packs.edges[p] : packs.edges[p + 1]].sum() <= length
    crossing = [s for s, n in enumerate(lengths) if n <= length]
    assert all((packs.sample == s).sum() <= 1 for s in crossing)


def test_whole_packing_wastes_little() -> None:
    """Best-fit decreasing on log-uniform documents: under 1 % of padding."""
    lengths = np.exp(np.random.RandomState(0).uniform(np.log(50), np.log(5000), 5000)).astype(int)
    packs = pack_whole(lengths, 4096)
    assert lengths.sum() / (packs.count * 4096) > 0.99


def test_shuffling_mixes_as_the_page_says() -> None:
    """docs/loader.md: of neighbours, 1 in `group` is of the same shard; a shard may come anywhere,
    and its samples stay within one block."""
    shards, samples, group = 64, 100, 16
    places = []
    for epoch in range(40):
        order = epoch_order(
            np.full(shards, samples), group=group, seed=5, part=0, epoch=epoch, shuffled=True
        )
        line = np.concatenate(
            [
                np.repeat(order.members(b), samples)[
                    permutation(group * samples, stream_key(5, "rows", 0, epoch, b))
                ]
                for b in range(shards // group)
            ]
        )
        same = float((line[1:] == line[:-1]).mean())
        assert abs(same - 1 / group) < 0.02
        where = np.flatnonzero(line == 0)
        assert where[-1] - where[0] < group * samples
        places.append(float(where.mean()) / len(line))
    assert 0.35 < np.mean(places) < 0.65  # uniform over the epoch: mean 1/2, deviation 0.28
    assert 0.2 < np.std(places) < 0.36
