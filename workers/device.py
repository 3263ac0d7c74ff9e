"""What the accelerator of this process holds. Never imports torch: asks it where it is at work."""

from __future__ import annotations

import sys


def peak_gpu_bytes() -> int:
    """The most that torch had allocated on its GPU so far in this process; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())
