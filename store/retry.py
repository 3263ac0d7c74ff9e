"""Jittered back-off for what may pass by itself; everything else comes out at once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

# Five tries wait about 2 s in all on average: longer pauses are the coordinator's business, which
# sees StoreUnavailable and can stop handing out work.
ATTEMPTS = 5
FIRST_WAIT = 0.25
LONGEST_WAIT = 4.0


def attempts() -> Iterator[int]:
    """0, 1, … ATTEMPTS - 1, sleeping before each but the first (full jitter)."""
    yield 0
    for attempt in range(1, ATTEMPTS):
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))
        time.sleep(random.uniform(0.3, 1.0) * longest)
        yield attempt
