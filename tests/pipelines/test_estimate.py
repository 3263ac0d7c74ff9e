"""Estimates from a sample: the arithmetic, and a corpus measured and then run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.jobs import make_job, write
from tokenmill.pipelines.estimate import (
    Estimate,
    Measured,
    Quantity,
    compare,
    estimate,
    spoken,
    student_t,
    total,
)
from tokenmill.pipelines.run import dry_run, run
from tokenmill.pipelines.session import Options
from tokenmill.schemas.errors import JobError


def measured(size: int, tokens: int, seconds: float = 1.0) -> Measured:
    return Measured(
        size=size, samples=1, tokens=tokens, stored=2 * tokens, quarantined=0, seconds=seconds
    )


def made(units: list[Measured], *, to_read: int = 10_000, count: int = 100) -> object:
    return estimate(
        units, pipeline="docs", stream="text", recipe="r", to_read=to_read, units=count,
        gpus_per_worker=0.5, cpus_per_worker=4,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1, max_size=40))
def test_a_sample_that_is_the_whole_has_no_error(units: list[tuple[int, int]]) -> None:
    sizes, values = zip(*units, strict=True)
    found = total(sizes, values, sum(sizes), len(units))
    assert found.value == pytest.approx(sum(values)) and found.error == 0


@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=40),
    st.floats(0.01, 100),
    st.integers(1, 10**9),
)
def test_what_is_proportional_to_bytes_is_certain(
    sizes: list[int], rate: float, to_read: int
) -> None:
    found = total(sizes, [rate * s for s in sizes], to_read, 10**6)
    assert found.value == pytest.approx(rate * to_read)
    assert found.error == pytest.approx(0, abs=1e-6 * found.value)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """A thousand samples of 20 units from a skewed corpus of 400."""
    rng = random.Random(7)
    corpus = [(s := rng.randint(500, 2000), s * rng.lognormvariate(0, 0.4)) for _ in range(400)]
    size, truth = sum(s for s, _ in corpus), sum(v for _, v in corpus)
    held = 0
    for _ in range(1000):
        sizes, values = zip(*rng.sample(corpus, 20), strict=True)
        found = total(sizes, values, size, len(corpus))
        assert found.error is not None
        held += abs(found.value - truth) <= found.error
    assert 900 <= held <= 980


def test_one_unit_says_nothing_of_its_uncertainty() -> None:
    found = total([10], [5], 100, 50)
    assert found == Quantity(value=50, error=None) and "unknown" in spoken(found)
    with pytest.raises(ValueError, match="nothing was measured"):
        total([], [], 100, 50)


def test_student_t_is_never_too_small() -> None:
    assert (student_t(1), student_t(11), student_t(1000)) == (12.706, 2.228, 2.0)


def test_hours_and_cost_go_by_what_a_worker_takes() -> None:
    found = made([measured(100, 10, 3.6), measured(100, 10, 3.6)])
    assert found.worker_seconds.value == pytest.approx(360)  # type: ignore[attr-defined]
    assert found.gpu_hours.value == pytest.approx(0.05)  # type: ignore[attr-defined]
    assert found.cpu_hours.value == pytest.approx(0.4)  # type: ignore[attr-defined]
    cost = found.cost(2.0, 0.1)  # type: ignore[attr-defined]
    assert cost.value == pytest.approx(0.05 * 2 + 0.4 * 0.1)


def test_a_part_of_a_run_is_compared_with_its_part() -> None:
    said = made([measured(100, 10), measured(100, 14)])
    (one,) = compare(said, read=5000, came={"tokens": 660.0})  # type: ignore[arg-type]
    assert one.said.value == pytest.approx(600) and one.off == pytest.approx(0.1)
    assert one.within is ((one.said.error or 0) >= 60)


def test_an_estimate_survives_its_file_and_another_format_is_refused() -> None:
    said = Estimate(streams=(made([measured(100, 10), measured(50, 9)]),), host="h")  # type: ignore[arg-type]
    assert Estimate.from_json(said.to_json(), where="x") == said
    for text in (
        "{",
        "[]",
        '{"format": 2}',
        json.dumps({"format": 1, "host": "h", "streams": [1]}),
    ):
        with pytest.raises(JobError, match="estimate cannot be read"):
            Estimate.from_json(text, where="x")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(12_345_678, 500_000, "12.3 M ± 4%"), (0.05, 0.0, "0.05"), (23_000, 2300, "23 k ± 10%"),
     (5000, 0.0, "5,000"), (2.5e12, 0.0, "2.5 T")],
)  # fmt: skip
def test_estimates_are_spoken(value: float, error: float, text: str) -> None:
    assert spoken(Quantity(value=value, error=error)) == text


def test_a_corpus_is_measured_and_the_run_says_how_far_off_that_was(tmp_path: Path) -> None:
    rng = random.Random(3)
    files = [["x" * rng.randint(20, 400) for _ in range(20)] for _ in range(40)]
    write(tmp_path, *files)
    job = make_job(tmp_path)
    options = Options(executor="local", workers=1)
    report, _ = dry_run(job, options, measure_seconds=0.01, say=lambda _: None)
    assert not (tmp_path / "store").exists(), "a dry run writes nothing"
    assert report.estimate is not None
    (said,) = report.estimate.streams
    assert 8 <= said.measured_units < 40 and said.measured_bytes < said.to_read
    truth = sum(len(text) for file in files for text in file)
    assert said.tokens.value == pytest.approx(truth, rel=0.2) and said.tokens.error
    done = run(job, Options(executor="local", workers=1, estimate=report.estimate),
               watch=lambda *_: None, say=print)  # fmt: skip
    by_name = {each.what: each for each in done.compared["docs", "text"]}
    assert by_name["tokens"].came == truth
    assert by_name["tokens"].off == pytest.approx(truth / said.tokens.value - 1)
    again, _ = dry_run(job, options, measure_seconds=0.01, say=lambda _: None)
    assert again.estimate is not None and again.estimate.streams == ()
