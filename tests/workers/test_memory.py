"""What a worker frees it uses again: counted in page faults, not in seconds."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np, pyarrow as pa
from tokenmill.workers.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        batch = [np.ones(4 << 20, np.uint8) for _ in range(16)]
        del batch
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
keep_freed_memory()
faults()
print(plain, faults(), pa.default_memory_pool().backend_name)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_arrays_are_not_paid_for_in_page_faults_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd="."
    )
    plain, kept, pool = done.stdout.split()
    assert int(kept) < 2000, done.stdout  # 64 arrays of 1,024 pages each
    assert int(plain) > 10 * int(kept)
    assert pool == "system"
