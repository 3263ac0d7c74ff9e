"""The short form of the chaos: a Ray cluster of three nodes, SeaweedFS, faults for half a minute.
The long form: `make chaos`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.storm import sound
from tests.conftest import _weed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_under_chaos_nothing_is_lost_and_nothing_is_there_twice() -> None:
    """G1, G2, G4, G5: verdicts and ids of the undisturbed run, whatever was killed."""
    _weed()  # or the test is skipped
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.chaos.storm",
            "--seconds",
            "20",
            "--files",
            "30",
            "--gap",
            "2",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert sound(report)
    assert sum(report["faults"].values()) >= 2, "nothing was disturbed"
    assert all(episode["checked"] > 10_000 for episode in report["episodes"])
