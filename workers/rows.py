"""Rows on their way to the shard: exactly one verdict per enumerated sample (G1), counted here."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.ledger import FORGOTTEN
from tokenmill.schemas.shard import TokenRows, Verdict
from tokenmill.schemas.work import Quarantine, Task
from tokenmill.store.shards import ShardWriter
from tokenmill.workers.faults import Fault, StormDetector, SystematicFault, sample_fault
from tokenmill.workers.reading import Block

# position in a block -> why it has no tokens; None: an optional field is not there (absent)
Bad = Mapping[int, Fault | None]


class SharedStorms:
    """The worker's storm detector, fed by both slots."""

    def __init__(self, detector: StormDetector | None = None) -> None:
        self._lock = threading.Lock()
        self._detector = detector or StormDetector()

    def feed(self, ids: Sequence[bytes], bad: Bad, tolerate: frozenset[str]) -> None:
        """One block's verdicts, in order. Raises SystematicFault."""
        with self._lock:
            at = 0
            for place in sorted(bad):
                fault = bad[place]
                if fault is None or not fault.unexpected or fault.error in tolerate:
                    continue
                self._good(ids, bad, at, place)
                at = place + 1
                storm = self._detector.fault(fault.error, fault.message, ids[place])
                if storm is not None:
                    raise SystematicFault(storm)
            self._good(ids, bad, at, len(ids))

    def _good(self, ids: Sequence[bytes], bad: Bad, start: int, end: int) -> None:
        known = next((ids[i] for i in range(end - 1, start - 1, -1) if i not in bad), None)
        self._detector.good(end - start, known)


class RowSink:
    """Takes a unit's rows in enumeration order, counts their verdicts, writes them."""

    def __init__(self, task: Task, writer: ShardWriter, storms: SharedStorms) -> None:
        self._task = task
        self._writer = writer
        self._storms = storms
        self.samples = 0
        self.tokens = 0
        self.with_tokens = 0
        self.absent = 0
        self.quarantined: list[Quarantine] = []
        self.seconds = 0.0

    def append(
        self,
        block: Block,
        bad: Bad,
        values: NDArray[Any],
        lengths: NDArray[np.int64],
        *,
        shapes: NDArray[np.int32] | None = None,
        n_valid: NDArray[np.int32] | None = None,
        media_valid: NDArray[np.int64] | None = None,
    ) -> None:
        """Rows of one block; values and lengths as in TokenRows. Raises SystematicFault."""
        n = len(block)
        verdicts = np.zeros(n, dtype=np.uint8)
        if bad:
            self._judge(block, bad, verdicts)
        self._storms.feed(block.ids, bad, self._task.tolerate)
        before = time.perf_counter()
        self._writer.append(
            TokenRows(
                ids=b"".join(block.ids),
                keys=_keys(block, bad),
                sources=block.sources,
                verdicts=verdicts,
                values=values,
                lengths=lengths,
                shapes=shapes,
                spans=block.spans,
                n_valid=n_valid,
                media_valid=media_valid,
            )
        )
        self.seconds += time.perf_counter() - before
        self.samples += n
        self.with_tokens += n - len(bad)
        self.tokens += len(values)

    def _judge(self, block: Block, bad: Bad, verdicts: NDArray[np.uint8]) -> None:
        for place in sorted(bad):
            fault = bad[place]
            if fault is None:
                verdicts[place] = Verdict.ABSENT
                self.absent += 1
            else:
                verdicts[place] = Verdict.QUARANTINED
                self.quarantined.append(
                    fault.row(
                        sample=block.ids[place],
                        key="" if fault.reason == FORGOTTEN else block.keys[place],
                        source=block.sources[place],
                        row=self.samples + place,
                    )
                )


def _keys(block: Block, bad: Bad) -> Sequence[str]:
    """Keys as people see them, but for samples that were taken out: their key may say who it is."""
    gone = {at for at, fault in bad.items() if fault is not None and fault.reason == FORGOTTEN}
    if not gone:
        return block.keys
    return ["" if at in gone else key for at, key in enumerate(block.keys)]


def judged(block: Block, task: Task, *, required: bool) -> dict[int, Fault | None]:
    """The samples of a block that need not be encoded, and why. {} for most of text, at once."""
    columns = list(block.columns.values())
    plain = all(set(map(type, values)) <= {str, bytes} for values in columns)
    condemned = task.condemned and not task.condemned.keys().isdisjoint(block.ids)
    if plain and not block.faults and not condemned:
        return {}
    bad: dict[int, Fault | None] = {}
    for place, sample in enumerate(block.ids):
        found = [values[place] for values in columns]
        error = block.faults.get(place) or next(
            (v for v in found if isinstance(v, Exception)), None
        )
        if sample in task.condemned:
            reason, message = task.condemned[sample]
            bad[place] = Fault(reason=reason, message=message, stage="encode", error=reason)
        elif error is not None:
            bad[place] = sample_fault(error, "read")
        elif any(v is None for v in found):
            bad[place] = _missing(block, place) if required else None
    return bad


def _missing(block: Block, place: int) -> Fault:
    names = [role for role, values in block.columns.items() if values[place] is None]
    return Fault(
        reason="missing-field",
        message=f"the stream is required and the sample has no {', '.join(names)}",
        stage="read",
        error="missing-field",
    )
