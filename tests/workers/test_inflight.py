from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tokenmill.workers.inflight import CAPACITY, Held, InFlightPage, read_page, sweep

UNIT = b"u" * 16


def ids(count):
    return [i.to_bytes(16, "big") for i in range(count)]


def test_the_page_names_samples_only_while_they_are_held(tmp_path):
    page = InFlightPage(tmp_path / "page")
    assert read_page(page.path) is None
    with page.holding(UNIT, ids(3)):
        assert read_page(page.path) == Held(unit=UNIT, samples=tuple(ids(3)))
    assert read_page(page.path) is None


def test_an_exception_in_native_code_clears_the_page(tmp_path):
    page = InFlightPage(tmp_path / "page")
    with pytest.raises(RuntimeError), page.holding(UNIT, ids(3)):
        raise RuntimeError
    assert read_page(page.path) is None


def test_a_batch_over_the_page_is_named_in_part(tmp_path):
    page = InFlightPage(tmp_path / "page")
    with page.holding(UNIT, ids(CAPACITY + 7)):
        held = read_page(page.path)
    assert held is not None and held.samples == tuple(ids(CAPACITY))


def test_a_killed_process_leaves_its_page_behind(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tokenmill.workers.inflight import InFlightPage\n"
        "with InFlightPage(Path(sys.argv[1])).holding(b'u' * 16, [b'a' * 16, b'b' * 16]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "page"
    done = subprocess.run([sys.executable, "-c", script, str(path)], env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert read_page(path) == Held(unit=UNIT, samples=(b"a" * 16, b"b" * 16))


@pytest.mark.parametrize("raw", [b"", b"x" * 100, b"tm-fly2\0" + b"u" * 16 + b"\5\0\0\0" * 2])
def test_a_torn_or_foreign_page_says_nothing(tmp_path, raw):
    path = tmp_path / "page"
    path.write_bytes(raw)
    assert read_page(path) is None
    assert read_page(tmp_path / "nowhere") is None


def test_pages_of_dead_drivers_are_swept_and_no_others(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = {f"{os.getpid()}-0-abc", "5f3a" * 8}
    for name in (f"{gone.pid}-0-abc", *kept):
        InFlightPage(tmp_path / name)
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == kept
