from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.workers.toy import Broken, BytesPreparer
from tokenmill.schemas.errors import TokenizerError
from tokenmill.schemas.tokenizer import Window
from tokenmill.workers.child import ChildLimits, ForkServer, clean_environment
from tokenmill.workers.children import ChildPool

LIMITS = ChildLimits(progress=1.0)


@pytest.fixture(scope="module")
def server():
    server = ForkServer(("tests.workers.toy",))
    yield server
    server.close()


@pytest.fixture
def pool(server):
    made = []

    def make(count=1, limits=LIMITS, preparer=None):
        made.append(ChildPool(server, preparer or BytesPreparer(16), count=count, limits=limits))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def outcome(pool, texts):
    """Per sample: its bytes, or the reason why not."""
    out = [b""] * len(texts)
    order = []
    for token, event in pool.windows((n, {"text": t}, n) for n, t in enumerate(texts)):
        order.append(token)
        if isinstance(event, Window):
            out[token] += event.arrays["bytes"].tobytes()
        elif event is not None:
            out[token] = event.reason
    assert order == sorted(order)
    assert set(order) == set(range(len(texts)))
    return out


@pytest.mark.parametrize("count", [1, 3])
def test_windows_come_back_whole_and_in_sample_order(pool, count):
    texts = [f"{n}:" + "x" * (n * 37 % 200) for n in range(60)]
    assert outcome(pool(count), texts) == [t.encode() for t in texts]


def test_large_media_cross_in_both_directions(pool):
    big = os.urandom(3 << 20)
    pool = pool(preparer=BytesPreparer(1 << 20))
    assert outcome(pool, [big, b"small", big]) == [big, b"small", big]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        ("<crash>", "process-died"),
        ("<exit>", "process-died"),
        ("<segv>", "process-died"),
        ("<hang>", "timeout"),
        ("<eat>", "out-of-memory"),
        ("<fill>", "prepare-failed"),
        ("<raise>", "prepare-failed"),
        ("<eof>", "prepare-failed"),
        ("<refuse>", "toy-refused"),
        ("<object>", "prepare-failed"),
    ],
)
def test_a_bad_sample_costs_its_own_verdict_only(pool, server, marker, reason, count):
    limits = ChildLimits(progress=1.0, file=8 << 20)
    texts = ["a", "b", marker, "c", marker, marker, "d" * 40, "e"]
    wanted = [b"a", b"b", reason, b"c", reason, reason, b"d" * 40, b"e"]
    assert outcome(pool(count, limits), texts) == wanted


def test_a_child_holding_the_gil_and_the_cpu_is_killed(pool):
    assert outcome(pool(), ["<spin>", "fine"]) == ["timeout", b"fine"]


def test_a_slow_but_progressing_sample_is_not_killed(pool):
    limits = ChildLimits(progress=0.5)
    text = "<slow>" + "x" * 16 * 15  # 16 windows of 0.05 s: longer than the limit in all
    assert outcome(pool(limits=limits), [text]) == [text.encode()]


def test_a_sample_over_its_total_is_killed(pool):
    limits = ChildLimits(progress=5.0, total=0.3, total_per_mib=0)
    text = "<slow>" + "x" * 16 * 200
    assert outcome(pool(limits=limits), [text, "after"]) == ["timeout", b"after"]


def test_a_child_waiting_for_credit_is_not_called_hanging(pool):
    limits = ChildLimits(progress=0.2, credit=64)
    texts = ["x" * 16 * 20, "y" * 16 * 20]
    got = [b"", b""]
    for token, event in pool(limits=limits).windows(
        (n, {"text": t}, n) for n, t in enumerate(texts)
    ):
        if isinstance(event, Window):
            got[token] += event.arrays["bytes"].tobytes()
            if event.index == 3:
                time.sleep(0.5)  # the encoder is busy: longer than the progress limit
        else:
            assert event is None
    assert got == [t.encode() for t in texts]


def test_bytes_in_flight_are_bounded_by_the_credit(pool):
    limits = ChildLimits(credit=4 << 20)
    text = b"x" * (16 << 20)
    pool = pool(limits=limits, preparer=BytesPreparer(1 << 20))
    events = pool.windows(iter([("t", {"text": text}, 0)]))
    next(events)
    child = psutil.Process(pool.pids()[0])
    while child.status() != psutil.STATUS_SLEEPING:
        time.sleep(0.01)
    mapped = sum(
        m.rss for m in psutil.Process().memory_maps(grouped=False) if "memfd:tokenmill" in m.path
    )
    assert mapped <= 8 << 20
    assert sum(1 for _ in events) == 16


def test_children_are_reused(pool):
    pool = pool(2)
    outcome(pool, ["a"] * 10)
    before = pool.pids()
    outcome(pool, ["b"] * 10)
    assert pool.pids() == before and len(before) <= 2


def test_an_abandoned_task_leaves_no_work_behind(pool):
    pool = pool(2)
    events = pool.windows((n, {"text": "x" * 100}, n) for n in range(100))
    next(events)
    events.close()
    assert pool.pids() == []
    assert outcome(pool, ["next"]) == [b"next"]


def test_the_random_state_is_the_samples(pool):
    def noise(order):
        found = {}
        for token, event in pool(2).windows((n, {"text": "t"}, n) for n in order):
            if event is not None:
                found[token] = event.meta["noise"]
        return found

    assert noise([1, 2, 3]) == noise([3, 1, 2])


def test_a_child_sees_no_credentials(pool, server, monkeypatch):
    (got,) = outcome(pool(preparer=BytesPreparer(1 << 20)), ["<env>"])
    assert b"PATH" in got.split()
    dirty = {"AWS_PROFILE": "x", "HF_TOKEN": "x", "API_KEY": "x", "MY_SECRET_1": "x", "HOME": "/r"}
    assert clean_environment(dirty).keys() & dirty.keys() == {"HOME"}
    environ = Path(f"/proc/{server.process.pid}/environ").read_bytes()
    assert b"SECRET" not in environ and b"OMP_NUM_THREADS=1" in environ


def test_a_preparer_that_children_cannot_load_is_a_tokenizer_error(pool):
    with pytest.raises(TokenizerError, match="cannot start"):
        outcome(pool(preparer=Broken({}).preparer()), ["a"])
    with pytest.raises(TokenizerError, match="cannot be pickled"):
        pool(preparer=lambda: None)


PARENT = """
import sys
from tests.workers.toy import BytesPreparer
from tokenmill.workers.child import ChildLimits, ForkServer
from tokenmill.workers.children import ChildPool
server = ForkServer()
pool = ChildPool(server, BytesPreparer(16), count=2, limits=ChildLimits())
texts = [sys.argv[1]] * 2
samples = ((n, {"text": t}, n) for n, t in enumerate(texts))
import threading, time
threading.Thread(target=lambda: list(pool.windows(samples)), daemon=True).start()
while len(pool.pids()) < 2: time.sleep(0.01)
print(server.process.pid, *pool.pids(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("marker", ["<spin>", "<hang>", "fine"])
def test_a_killed_worker_leaves_no_child_behind(marker):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, marker], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert len(pids) == 3
    left = [psutil.Process(pid) for pid in pids]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


def test_windows_arrive_writable(pool):
    for _, event in pool(preparer=BytesPreparer(1 << 20)).windows(
        iter([(0, {"text": b"x" * n}, 0) for n in (10, 1 << 20)][1:])
    ):
        if isinstance(event, Window):
            event.arrays["bytes"][0] = 1
            assert isinstance(event.arrays["bytes"], np.ndarray)
