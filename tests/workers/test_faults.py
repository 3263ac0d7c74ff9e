from __future__ import annotations

import pytest

from tokenmill.schemas.errors import (
    InputChanged,
    JobError,
    SampleError,
    SourceError,
    StoreError,
    StoreUnavailable,
    TokenizerError,
)
from tokenmill.schemas.work import FailureClass, Input, Span, Task, WorkUnit
from tokenmill.workers.faults import StormDetector, raised_at, sample_fault, task_failure

INPUT = Input(uri="/a", version="1", size=1)
TASK = Task(
    unit=WorkUnit(pipeline="p", spans=(Span(input=INPUT, start=0, end=1),)),
    stream="s",
    recipe="r",
    attempt=2,
    run="run",
)


def caught(error):
    try:
        raise error
    except type(error) as same:
        return same


def test_an_exception_is_grouped_by_type_and_line():
    text = raised_at(caught(ValueError("x")))
    assert text.startswith("ValueError at test_faults.py:")
    assert raised_at(ValueError("never raised")) == "ValueError"


def test_a_deliberate_refusal_keeps_its_reason_and_is_not_unexpected():
    fault = sample_fault(caught(SampleError("invalid-utf8", "byte 3")), "read")
    assert (fault.reason, fault.stage, fault.unexpected) == ("invalid-utf8", "read", False)


def test_any_other_exception_of_prepare_is_an_unexpected_verdict():
    fault = sample_fault(caught(KeyError("x" * 10_000)), "prepare")
    assert fault.reason == "prepare-failed" and fault.unexpected
    assert len(fault.message) <= 500
    assert sample_fault(caught(MemoryError()), "prepare").reason == "out-of-memory"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InputChanged("x", uri="s3://b/k"), FailureClass.INPUT_CHANGED, 3),
        (StoreUnavailable("x"), FailureClass.STORE, 3),
        (StoreError("x"), FailureClass.JOB, 3),
        (SourceError("x"), FailureClass.JOB, 3),
        (JobError("x"), FailureClass.JOB, 2),
        (TokenizerError("x"), FailureClass.JOB, 2),
        (SampleError("r", "escaped from where no sample is"), FailureClass.PROGRAM, 70),
        (ZeroDivisionError("x"), FailureClass.PROGRAM, 70),
    ],
)
def test_failure_classes(error, kind, code):
    failure = task_failure(caught(error), TASK)
    assert (failure.kind, failure.exit_code, failure.attempt) == (kind, code, 2)
    assert ("traceback" in failure.details) == (kind is FailureClass.PROGRAM)
    assert failure.changed == (("s3://b/k",) if kind is FailureClass.INPUT_CHANGED else ())


def feed(detector, pattern):
    """'.' a good sample, a letter an unexpected fault of that name; where the storm broke out."""
    for at, mark in enumerate(pattern):
        if mark == ".":
            detector.good(1, b"good")
        elif storm := detector.fault(mark, "why", at.to_bytes(16, "big")):
            return at, storm
    return None, None


def test_twenty_in_a_row_are_a_storm_and_nineteen_are_not():
    assert feed(StormDetector(), "x" * 19 + "." + "x" * 19) == (None, None)
    at, storm = feed(StormDetector(), "." + "x" * 20)
    assert at == 20
    assert (storm.error, storm.good, len(storm.examples)) == ("x", b"good", 3)


def test_another_error_between_breaks_the_row():
    assert feed(StormDetector(), "x" * 19 + "y" + "x" * 19)[0] is None


def test_over_five_per_cent_of_the_last_thousand_are_a_storm():
    sparse = ("x" + "." * 19) * 50  # exactly 5 %
    assert feed(StormDetector(), sparse * 3)[0] is None
    assert feed(StormDetector(), sparse + "xx")[0] is not None


def test_old_faults_are_forgotten():
    detector = StormDetector()
    assert feed(detector, "x." * 45)[0] is None
    detector.good(1000)
    assert feed(detector, "x." * 45)[0] is None


def test_without_a_good_sample_the_storm_says_so_and_counting_begins_anew():
    detector = StormDetector()
    assert feed(detector, "x" * 20)[1].good is None
    assert feed(detector, "x" * 19)[0] is None
