from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.samples import SampleBatch, SpanDone
from tokenmill.schemas.work import Input, Quarantine, Span, WorkUnit
from tokenmill.workers.reading import BLOCK_SAMPLES, UnitReader


class Listed:
    """A source that yields what it is given."""

    def __init__(self, events):
        self.events = events

    def read(self, spans, fields):
        yield from self.events


def unit(spans):
    inputs = [Input(uri=f"/in/{n}", version="1", size=1) for n in range(spans)]
    return WorkUnit(pipeline="p", spans=tuple(Span(input=i, start=0, end=1) for i in inputs))


def batch(span, texts, *, first=0, **more):
    ids = [(first + n).to_bytes(16, "big") for n in range(len(texts))]
    return SampleBatch(span=span, ids=ids, keys=texts, fields={"f": texts}, **more)


def reader(spans, events):
    return UnitReader(Listed(events), unit(spans), {"text": "f"})


sizes = st.lists(st.lists(st.integers(0, 700), max_size=6), min_size=1, max_size=5)


@given(sizes)
def test_blocks_are_the_samples_in_order_and_cells_their_rows(per_span):
    events, wanted = [], []
    for span, batches in enumerate(per_span):
        for size in batches:
            texts = [f"{len(wanted) + n}" for n in range(size)]
            faults = {0: SampleError("r", "w")} if size else {}
            events.append(batch(span, texts, first=len(wanted), faults=faults))
            wanted += texts
        events.append(SpanDone(span=span))
    read = reader(len(per_span), events)
    blocks = list(read.blocks())
    assert [v for b in blocks for v in b.columns["text"]] == wanted
    assert [s for b in blocks for s in b.sources] == [
        f"/in/{n}" for n, batches in enumerate(per_span) for _ in range(sum(batches))
    ]
    faulty = [b.keys[place] for b in blocks for place in b.faults]
    assert len(faulty) == sum(size > 0 for batches in per_span for size in batches)
    assert all(len(b) < BLOCK_SAMPLES + 700 for b in blocks)
    assert all(len(b) >= BLOCK_SAMPLES for b in blocks[:-1])
    assert [c.rows for c in read.cells] == [sum(batches) for batches in per_span]
    assert read.enumerated == len(wanted)


def test_few_large_samples_fill_a_block_too():
    events = [batch(0, ["x" * (1 << 20)], first=n) for n in range(6)]
    assert [len(b) for b in reader(1, [*events, SpanDone(span=0)]).blocks()] == [2, 2, 2]


def test_a_field_that_a_batch_lacks_is_missing_in_each_sample():
    read = UnitReader(
        Listed([batch(0, ["a", "b"]), SpanDone(span=0)]), unit(1), {"text": "f", "hint": "other"}
    )
    (block,) = read.blocks()
    assert block.columns == {"text": ["a", "b"], "hint": [None, None]}


def test_clip_spans_stay_with_their_samples():
    events = [batch(0, ["a"]), batch(0, ["b"], first=1, spans=["0/5"]), SpanDone(span=0)]
    (block,) = reader(1, events).blocks()
    assert block.spans == [None, "0/5"]


def test_the_fault_of_an_archive_that_ends_early_is_kept():
    fault = Quarantine(
        sample=None, key="k", source="/in/0", row=None, reason="truncated", message="", stage="read"
    )
    read = reader(1, [batch(0, ["a"]), SpanDone(span=0, fault=fault)])
    list(read.blocks())
    assert read.input_faults == [fault]


@pytest.mark.parametrize(
    "events",
    [
        [batch(1, ["a"]), SpanDone(span=1), SpanDone(span=0)],
        [SpanDone(span=0), batch(0, ["late"]), SpanDone(span=1)],
        [SpanDone(span=0)],
    ],
)
def test_a_source_that_breaks_its_contract_is_a_programming_error(events):
    read = reader(2, events)
    with pytest.raises(RuntimeError, match="span"):
        list(read.blocks())
        _ = read.cells
