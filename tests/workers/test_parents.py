"""The worker of a child stream: it reads the rows of committed shards, not the source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.workers.jobs import TOY, make_job, make_unit, run, write
from tokenmill.schemas.job import Job
from tokenmill.schemas.work import FailureClass, ParentRows, Task, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.workers.worker import StreamWorker


def family(folder) -> Job:
    job = make_job(folder, tokenizer="Flat")
    data = job.model_dump()
    data["pipelines"]["docs"]["streams"]["child"] = {
        "tokenizer": f"{TOY.replace('toy', 'toy_children')}:Double",
        "parent": "text",
    }
    return Job.model_validate(data)


def child(job: Job, parent: ParentRows, unit: WorkUnit) -> TaskResult:
    worker = StreamWorker(job, "docs", "child")
    try:
        identity = worker.facts().identity.child_of(parent.space, parent.recipe)
        task = Task(unit=unit, stream="child", recipe=identity.recipe, attempt=0, run="r",
                    parent=parent)  # fmt: skip
        return worker.run(task)
    finally:
        worker.close()


def ids(job: Job, result: TaskResult) -> list[list[int] | None]:
    found = []
    for shard in result.shards:
        with ShardReader(Access(job.store), shard.path) as reader:
            rows = [reader.ids(row) for row in range(reader.rows)]
            found += [None if r is None else r.tolist() for r in rows]
    return found


TEXTS = [["a", "bb", "<refuse>"], [], ["c" * 40, {"other": 1}], [f"{n}" for n in range(1500)]]


def doubled(text) -> list[int] | None:
    return None if isinstance(text, dict) or "<" in text else [2 * x for x in text.encode()]


def test_a_child_has_its_parents_rows_in_its_parents_cells(tmp_path):
    """G1, G8: the same samples in the same order, several record batches and an empty input."""
    write(tmp_path, *TEXTS)
    job = family(tmp_path)
    parent = run(job)
    made = child(job, parent.as_parent(), make_unit(job))
    assert made.cells == parent.cells and made.order_hash == parent.order_hash
    assert ids(job, made) == [doubled(t) for file in TEXTS for t in file]
    assert [(q.row, q.reason, q.stage) for q in made.quarantined] == [
        (2, "parent-quarantined", "read")
    ]
    assert (made.absent, made.enumerated) == (1, parent.enumerated)
    assert made.recipe != parent.recipe and made.stats.bytes_read > 0
    one = (parent.quarantined[0].key, parent.quarantined[0].sample)
    assert (made.quarantined[0].key, made.quarantined[0].sample) == one


def test_cells_that_are_no_longer_valid_are_left_out(tmp_path):
    write(tmp_path, *TEXTS)
    job = family(tmp_path)
    rows = run(job).as_parent()
    unit = make_unit(job)
    kept = [0, 3]
    part = replace(rows, spans=tuple(rows.spans[n] for n in kept))
    made = child(job, part, replace(unit, spans=tuple(unit.spans[n] for n in kept)))
    assert ids(job, made) == [doubled(t) for n in kept for t in TEXTS[n]]
    assert [(c.first_row, c.rows) for c in made.cells] == [(0, 3), (3, 1500)]


def test_a_shard_of_another_recipe_than_the_ledger_says_is_not_read(tmp_path):
    """G7."""
    write(tmp_path, ["a"])
    job = family(tmp_path)
    rows = run(job).as_parent()
    failure = child(job, replace(rows, recipe="ff" * 32), make_unit(job))
    assert (failure.kind, failure.exit_code) == (FailureClass.JOB, 3)
    assert "of another recipe than the ledger says" in failure.message


def test_a_shard_that_is_gone_or_short_ends_the_run_and_no_sample(tmp_path):
    write(tmp_path, ["a", "b"])
    job = family(tmp_path)
    rows = run(job).as_parent()
    longer = replace(rows, files=(replace(rows.files[0], rows=3),), spans=((0, 3),))
    failure = child(job, longer, make_unit(job))
    assert (failure.kind, failure.exit_code) == (FailureClass.JOB, 3)
    (tmp_path / "store" / rows.files[0].path).unlink()
    failure = child(job, rows, make_unit(job))
    assert (failure.kind, failure.exit_code) == (FailureClass.JOB, 3)


def test_a_task_without_the_parents_recipe_is_refused(tmp_path):
    write(tmp_path, ["a"])
    job = family(tmp_path)
    rows = run(job).as_parent()
    worker = StreamWorker(job, "docs", "child")
    own = worker.facts().identity.recipe
    task = Task(unit=make_unit(job), stream="child", recipe=own, attempt=0, run="r", parent=rows)
    failure = worker.run(task)
    worker.close()
    assert failure.kind is FailureClass.JOB and "recipe is not the plan's" in failure.message


@pytest.mark.parametrize("spans", [((0, 1),), ((0, 2), (2, 0))])
def test_cells_that_do_not_add_up_are_a_fault_of_ours(tmp_path, spans):
    write(tmp_path, ["a", "b"], ["c"])
    job = family(tmp_path)
    rows = run(job).as_parent()
    failure = child(job, replace(rows, spans=((0, 2), (2, 1), *spans)), make_unit(job))
    assert failure.kind is FailureClass.PROGRAM
