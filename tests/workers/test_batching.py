from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.schemas.tokenizer import BatchBudget
from tokenmill.workers.batching import HORIZON, Batcher

# per sample: its windows as (bucket, cost)
samples = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), max_size=6), max_size=30
)
budgets = st.builds(BatchBudget, cost=st.integers(1, 40), windows=st.integers(1, 9))


def batches(unit, budget):
    batcher = Batcher(budget)
    out = []
    for number, windows in enumerate(unit):
        for index, (bucket, cost) in enumerate(windows):
            item = (number, index, bucket, cost)
            out += batcher.add(item, sample=number, bucket=bucket, cost=cost)
    out += batcher.flush()
    return out


@given(samples, budgets)
def test_every_window_is_in_exactly_one_batch(unit, budget):
    seen = [item for batch in batches(unit, budget) for item in batch]
    wanted = [(n, i, b, c) for n, ws in enumerate(unit) for i, (b, c) in enumerate(ws)]
    assert sorted(seen) == wanted


@given(samples, budgets)
def test_a_batch_has_one_bucket_and_keeps_the_budget(unit, budget):
    for batch in batches(unit, budget):
        assert len({bucket for _, _, bucket, _ in batch}) == 1
        assert len(batch) <= budget.windows
        assert len(batch) == 1 or sum(cost for *_, cost in batch) <= budget.cost


@given(samples, budgets)
def test_windows_of_a_sample_leave_in_their_order(unit, budget):
    last: dict[int, int] = {}
    for batch in batches(unit, budget):
        for sample, index, _, _ in batch:
            assert index > last.get(sample, -1)
            last[sample] = index


@given(samples, budgets)
def test_samples_of_one_bucket_stay_in_order(unit, budget):
    by_bucket: dict[int, list[tuple[int, int]]] = {}
    for batch in batches(unit, budget):
        for sample, index, bucket, _ in batch:
            by_bucket.setdefault(bucket, []).append((sample, index))
    assert all(places == sorted(places) for places in by_bucket.values())


@given(st.integers(1, 6))
def test_rare_buckets_are_not_held_beyond_the_horizon(windows):
    batcher = Batcher(BatchBudget(cost=10**9, windows=windows))
    held = 0
    for number in range(200):  # each its own shape: no bucket ever fills
        held += 1
        for batch in batcher.add(number, sample=number, bucket=number, cost=1):
            held -= len(batch)
        assert held <= HORIZON * windows


def test_full_batches_when_everything_has_one_shape():
    unit = [[(0, 1)]] * 10
    assert [len(b) for b in batches(unit, BatchBudget(cost=100, windows=4))] == [4, 4, 2]
    assert [len(b) for b in batches(unit, BatchBudget(cost=3, windows=100))] == [3, 3, 3, 1]
