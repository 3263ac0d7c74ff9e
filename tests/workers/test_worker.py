from __future__ import annotations

import pickle
import shutil
import threading

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers import toy
from tests.workers.jobs import TOY, make_job, make_task, make_unit, rows, run, sample_ids, write
from tokenmill.schemas.errors import JobError, TokenizerError
from tokenmill.schemas.tokenizer import EngineMismatch
from tokenmill.schemas.work import FailureClass, TaskFailure, TaskResult
from tokenmill.workers.child import ChildLimits
from tokenmill.workers.worker import StreamWorker

PATHS = ["Flat", "Bytes"]


def worker_of(job, **more):
    return StreamWorker(job, "docs", "text", **more)


def reasons(result):
    return {q.row: q.reason for q in result.quarantined}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("child", [False, True])
def test_every_sample_has_its_row_in_order(tmp_path, kind, child):
    texts = [[f"{f}-{n} " + "x" * (n * 7 % 60) for n in range(40)] for f in range(3)]
    write(tmp_path, *texts)
    job = make_job(tmp_path, tokenizer=kind, stream={"config": {"child": child}})
    result = run(job)
    assert isinstance(result, TaskResult), result
    flat = [t.encode() for file in texts for t in file]
    assert rows(job, result) == flat
    assert (result.enumerated, result.with_tokens, result.tokens) == (120, 120, len(b"".join(flat)))
    assert [(c.first_row, c.rows) for c in result.cells] == [(0, 40), (40, 40), (80, 40)]
    assert [s.path.rpartition("/")[0] for s in result.shards] == ["shards/docs/text"]
    assert result.stats.wall >= result.stats.encode > 0


def test_both_paths_give_the_same_rows_and_the_same_order(tmp_path):
    write(tmp_path, ["a", {"other": 1}, "b" * 100, {"text": 7}], [], ["c"])
    results = {}
    for kind in PATHS:
        job = make_job(tmp_path, tokenizer=kind)
        results[kind] = run(job)
    flat, windows = results["Flat"], results["Bytes"]
    assert rows(job, flat) == rows(job, windows)
    assert flat.order_hash == windows.order_hash
    assert reasons(flat) == reasons(windows)
    assert flat.cells == windows.cells


@pytest.mark.parametrize("kind", PATHS)
def test_a_missing_field_is_absent_or_quarantined_where_required(tmp_path, kind):
    write(tmp_path, ["a", {"other": 1}, "b"])
    result = run(make_job(tmp_path, tokenizer=kind))
    assert (result.absent, result.quarantined) == (1, ())
    result = run(make_job(tmp_path, tokenizer=kind, stream={"required": True}))
    assert (result.absent, reasons(result)) == (0, {1: "missing-field"})


@pytest.mark.parametrize("kind", PATHS)
def test_a_stream_may_ask_for_packed_ids(tmp_path, kind):
    texts = ["plain ascii", "", "seven bits"]
    write(tmp_path, texts)
    stream = {"encoding": "packed", "config": {"codebooks": [128]}}
    result = run(job := make_job(tmp_path, tokenizer=kind, stream=stream))
    assert [s.encoding for s in result.shards] == ["packed"]
    assert rows(job, result) == [t.encode() for t in texts]


def test_ids_of_nobody_knows_what_size_cannot_be_packed(tmp_path):
    write(tmp_path, ["a"])
    job = make_job(tmp_path, stream={"encoding": "packed", "config": {"codebooks": []}})
    with pytest.raises(TokenizerError, match="cannot be packed"):
        worker_of(job)


@pytest.mark.parametrize("kind", PATHS)
def test_a_unit_without_samples_has_cells_and_no_shard(tmp_path, kind):
    write(tmp_path, [], [])
    result = run(make_job(tmp_path, tokenizer=kind))
    assert (result.shards, result.enumerated, len(result.cells)) == ((), 0, 2)


@pytest.mark.parametrize(("kind", "marker"), [("Flat", "<refuse>"), ("Bytes", "<enc-refuse>")])
def test_the_sample_that_encode_refuses_is_found_in_its_batch(tmp_path, kind, marker):
    texts = ["a", "b", marker, "c", "d" * 30]
    write(tmp_path, texts)
    job = make_job(tmp_path, tokenizer=kind)
    result = run(job)
    assert reasons(result) == {2: "toy-refused"}
    assert result.quarantined[0].stage == "encode"
    assert rows(job, result) == [b"a", b"b", None, b"c", b"d" * 30]


def test_a_fault_of_one_position_and_a_refusal_of_join_are_verdicts(tmp_path):
    write(tmp_path, ["a", "<fault>", "b"])
    assert reasons(run(make_job(tmp_path))) == {1: "toy-fault"}
    write(tmp_path, ["a", "<join-refuse>", "b"])
    result = run(make_job(tmp_path, tokenizer="Bytes"))
    assert (reasons(result), result.quarantined[0].stage) == ({1: "toy-refused"}, "join")


@pytest.mark.parametrize("child", [False, True])
def test_an_exception_of_prepare_is_a_verdict_and_of_encode_a_programming_error(tmp_path, child):
    config = {"config": {"child": child}}
    write(tmp_path, ["a", "<raise>", "x" * 20 + "<late>", "b"])
    job = make_job(tmp_path, tokenizer="Bytes", stream=config)
    result = run(job)
    assert reasons(result) == {1: "prepare-failed", 2: "prepare-failed"}
    assert result.quarantined[0].error.startswith("ValueError at toy.py:")
    assert rows(job, result) == [b"a", None, None, b"b"]
    write(tmp_path, ["a", "<enc-raise>", "b"])
    failure = run(job)
    assert isinstance(failure, TaskFailure)
    assert (failure.kind, failure.exit_code) == (FailureClass.PROGRAM, 70)
    assert "ZeroDivisionError" in failure.details["traceback"]
    pickle.loads(pickle.dumps(failure))


@pytest.mark.parametrize(
    ("marker", "reason"),
    [("<crash>", "process-died"), ("<hang>", "timeout"), ("<eat>", "out-of-memory")],
)
def test_a_sample_that_kills_its_child_costs_only_itself(tmp_path, marker, reason):
    write(tmp_path, ["a", marker, "b"])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    worker = worker_of(job, limits=ChildLimits(progress=5.0 if marker == "<hang>" else 60.0))
    result = run(job, worker)
    worker.close()
    assert reasons(result) == {1: reason}
    assert rows(job, result) == [b"a", None, b"b"]


@pytest.mark.parametrize("kind", PATHS)
def test_condemned_samples_are_not_touched_and_suspects_go_alone(tmp_path, kind):
    write(tmp_path, ["a", "b", "<crash><enc-crash>", "c", "d"])
    job = make_job(tmp_path, tokenizer=kind)
    ids = sample_ids(job)
    worker = worker_of(job)
    result = run(
        job,
        worker,
        condemned={ids[2]: ("process-died", "twice")},
        isolate=frozenset([ids[1], ids[4]]),
    )
    assert reasons(result) == {2: "process-died"}
    assert rows(job, result) == [b"a", b"b", None, b"c", b"d"]
    tokenizer = worker._tokenizer
    if kind == "Flat":
        assert tokenizer.calls == [1, 1, 1, 1]  # a; b; c; d
    else:
        assert tokenizer.batches == [[b"a", b"c"], [b"b"], [b"d"]]
    worker.close()


@pytest.mark.parametrize("kind", PATHS)
def test_out_of_device_memory_halves_that_batch_and_is_noted(tmp_path, kind):
    texts = ["x" * 10] * 8
    write(tmp_path, texts)
    job = make_job(tmp_path, tokenizer=kind, stream={"config": {"memory": 25}})
    result = run(job)
    assert rows(job, result) == [t.encode() for t in texts]
    assert "halved" in result.notes[0]
    write(tmp_path, ["a", "x" * 30])
    config = {"config": {"memory": 25, "window": 100}}
    result = run(make_job(tmp_path, tokenizer=kind, stream=config))
    assert reasons(result) == {1: "out-of-memory"}


def test_a_changed_engine_begins_the_task_anew(tmp_path, monkeypatch):
    original = toy.Flat.encode_flat
    texts = [f"{n}" for n in range(3000)]  # three calls
    write(tmp_path, texts)

    def encode_flat(self, values):
        if len(self.calls) == 1 and not self.switched:
            self.switched = True
            raise EngineMismatch
        return original(self, values)

    monkeypatch.setattr(toy.Flat, "encode_flat", encode_flat)
    job = make_job(tmp_path)
    result = run(job)
    assert rows(job, result) == [t.encode() for t in texts]
    assert result.enumerated == 3000
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file()]
    assert len([p for p in left if p.suffix == ".arrow"]) == 1, left


def test_the_other_slot_does_not_keep_rows_of_an_engine_found_wrong(tmp_path, monkeypatch):
    """Task A has encoded with the engine that task B finds wrong: A begins anew too."""
    original = toy.Flat.encode_flat
    write(tmp_path, [f"{n}" for n in range(3000)])
    first_is_in, wrong_is_found = threading.Event(), threading.Event()
    owner = []

    def encode_flat(self, values):
        me = threading.current_thread().name
        owner.append(me)
        if me == "B" and not self.switched:
            self.switched = True
            raise EngineMismatch
        return original(self, values)

    monkeypatch.setattr(toy.Flat, "encode_flat", encode_flat)
    job = make_job(tmp_path)
    worker = worker_of(job)
    append = worker._storms.feed

    def feed(*args):
        append(*args)
        if threading.current_thread().name == "A" and not first_is_in.is_set():
            first_is_in.set()
            assert wrong_is_found.wait(30)

    monkeypatch.setattr(worker._storms, "feed", feed)
    results = {}

    def task_a():
        results["A"] = run(job, worker, attempt=1)

    def task_b():
        assert first_is_in.wait(30)
        results["B"] = run(job, worker, attempt=2)
        wrong_is_found.set()

    threads = [threading.Thread(target=task_a, name="A"), threading.Thread(target=task_b, name="B")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert results["A"].enumerated == results["B"].enumerated == 3000
    assert owner.count("A") == 4  # one call of the wrong engine, then all three again
    assert "-r1-" in results["A"].shards[0].path


def test_a_storm_of_unexpected_faults_is_systematic_and_can_be_tolerated(tmp_path):
    write(tmp_path, ["good"] + ["<raise>"] * 30)
    job = make_job(tmp_path, tokenizer="Bytes")
    failure = run(job)
    assert failure.kind is FailureClass.SYSTEMATIC
    ids = sample_ids(job)
    assert failure.details["good"] == ids[0]
    assert set(failure.details["examples"]) <= set(ids[1:])
    assert not list((tmp_path / "store").rglob("*.arrow"))
    result = run(job, tolerate=frozenset([failure.details["error"]]))
    assert len(result.quarantined) == 30


def test_deliberate_refusals_are_never_a_storm(tmp_path):
    write(tmp_path, ["<refuse>"] * 60)
    result = run(make_job(tmp_path, tokenizer="Bytes"))
    assert len(result.quarantined) == 60


def test_a_changed_input_goes_back_to_planning(tmp_path):
    write(tmp_path, ["a"])
    job = make_job(tmp_path)
    worker = worker_of(job)
    task = make_task(job, worker.facts().identity.recipe)
    write(tmp_path, ["something else"])
    failure = worker.run(task)
    worker.close()
    assert failure.kind is FailureClass.INPUT_CHANGED
    assert failure.changed == (str(tmp_path / "in" / "0.jsonl"),)


def test_another_recipe_than_the_plans_is_refused(tmp_path):
    write(tmp_path, ["a"])
    failure = run(make_job(tmp_path), recipe="0" * 64)
    assert (failure.kind, failure.exit_code) == (FailureClass.JOB, 2)
    assert isinstance(failure.error, JobError)


def test_batches_are_a_function_of_the_unit_whoever_prepares(tmp_path):
    write(tmp_path, ["x" * (n * 13 % 70) for n in range(60)])
    seen = []
    for child in (False, True):
        job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": child}})
        worker = worker_of(job)
        assert isinstance(run(job, worker), TaskResult)
        seen.append(worker._tokenizer.batches)
        worker.close()
    assert seen[0] == seen[1]


def test_shapes_go_with_the_rows_of_a_grid(tmp_path):
    write(tmp_path, ["abc", {"other": 1}, "x" * 40])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"grid": True}})
    result = run(job)
    assert rows(job, result) == [b"abc", None, b"x" * 40]


def test_two_tasks_at_once_share_one_tokenizer(tmp_path):
    write(tmp_path, [f"{n}" * 20 for n in range(200)])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    worker = worker_of(job)
    results = {}

    def slot(attempt):
        results[attempt] = run(job, worker, attempt=attempt)

    threads = [threading.Thread(target=slot, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert rows(job, results[0]) == rows(job, results[1])
    assert [s.content_hash for s in results[0].shards] == [
        s.content_hash for s in results[1].shards
    ]


def test_facts_are_picklable_and_name_no_secret(tmp_path):
    write(tmp_path, ["a"])
    checkpoint = "https://user:password@host/tokenizer.json?signature=abc"
    job = make_job(tmp_path, stream={"checkpoint": checkpoint})
    worker = worker_of(job)
    facts = pickle.loads(pickle.dumps(worker.facts()))
    worker.close()
    assert facts.checkpoint == "https://host/tokenizer.json"
    assert (facts.stream, facts.modality, facts.output.name) == ("text", "text", "ids")


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        ({"config": {"use_policy": "non-commercial"}}, "policy"),
        ({"output": "pictures"}, "no output 'pictures'"),
        ({"field": None, "fields": {"txt": "a"}}, "did you mean 'text'"),
        ({"tokenizer": f"{TOY}:Nowhere"}, "Nowhere"),
    ],
)
def test_what_a_stream_cannot_have_is_a_tokenizer_error(tmp_path, stream, word):
    with pytest.raises(TokenizerError, match=word):
        worker_of(make_job(tmp_path, stream=stream))


def test_a_stream_that_the_job_lacks_is_a_job_error(tmp_path):
    with pytest.raises(JobError):
        StreamWorker(make_job(tmp_path), "docs", "audio")


def test_the_unit_is_what_the_source_lists(tmp_path):
    write(tmp_path, ["a"], ["b"])
    assert len(make_unit(make_job(tmp_path)).spans) == 2


def test_a_dead_fork_server_costs_an_attempt_and_the_next_task_has_a_new_one(tmp_path):
    write(tmp_path, ["a"] * 50)
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    worker = worker_of(job)
    assert isinstance(run(job, worker), TaskResult)
    server = worker._pools._server.process
    server.kill()
    assert isinstance(run(job, worker), TaskFailure | TaskResult)
    server.wait()
    assert isinstance(run(job, worker), TaskResult)
    worker.close()


def test_a_fork_server_that_dies_during_a_task_is_a_worker_failure(tmp_path):
    write(tmp_path, ["a", "<hang>"])
    job = make_job(tmp_path, tokenizer="Bytes", stream={"config": {"child": True}})
    worker = worker_of(job)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(run(job, worker)))
    thread.start()
    while (
        not (pools := worker._pools)._server
        or not psutil.Process(pools._server.process.pid).children()
    ):
        thread.join(0.01)
    worker._pools._server.process.kill()
    thread.join()
    assert answers[0].kind is FailureClass.WORKER
    worker.close()


TEXTS = st.lists(
    st.one_of(
        st.text(alphabet="abc", max_size=50),
        st.sampled_from(["<refuse>", "<enc-refuse>", "<raise>", "x" * 20 + "<late>"]),
        st.just({"other": 1}),
        st.just({"text": 5}),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(TEXTS, min_size=1, max_size=3), required=st.booleans(), windows=st.integers(1, 9)
)
def test_every_enumerated_sample_has_exactly_one_verdict(tmp_path, files, required, windows):
    """G1 by windows, whatever the mix of good, bad and missing."""
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    write(tmp_path, *files)
    config = {"required": required, "config": {"windows": windows}}
    job = make_job(tmp_path, tokenizer="Bytes", stream=config)
    result = run(job)
    assert isinstance(result, TaskResult), result
    samples = [s for file in files for s in file]
    bad = [not isinstance(s, str) or "<" in s for s in samples]
    wanted = [None if b else s.encode() for s, b in zip(samples, bad, strict=True)]
    assert rows(job, result) == wanted
    missing = sum(s == {"other": 1} for s in samples)
    assert result.absent == (0 if required else missing)
    assert len(result.quarantined) == sum(bad) - result.absent
    ids = sample_ids(job)
    assert [q.sample for q in result.quarantined] == [ids[q.row] for q in result.quarantined]
