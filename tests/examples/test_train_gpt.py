"""The training example in its short form: the loss falls; killed and resumed, it falls the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_training_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    """G4, seen from the trainer: SIGKILL after step 21, the checkpoint is of step 19."""
    pytest.importorskip("torch")
    command = [sys.executable, str(ROOT / "examples" / "train_gpt.py"), "--check"]
    ran = subprocess.run(
        [*command, "--folder", str(tmp_path / "gpt"), "--pictures", "60", "--steps", "36"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert "the same losses" in ran.stdout
