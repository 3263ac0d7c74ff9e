"""`plan --measure`: encode a random sample of what is left, into a folder that is thrown away.

Workers of this machine do it, so measure on a machine like those of the run: seconds are its own;
tokens and bytes hold anywhere.
"""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokenmill.pipelines.coordinator import Answered, Pool, WorkerFailed, WorkerLost, WorkerReady
from tokenmill.pipelines.estimate import Estimate, Measured, StreamEstimate, estimate
from tokenmill.pipelines.executors import LocalExecutor
from tokenmill.pipelines.plan import Plan, cut
from tokenmill.schemas.errors import JobError, StoreError
from tokenmill.schemas.job import Job, Resources
from tokenmill.schemas.samples import Source
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.schemas.work import Span, Task, TaskFailure, TaskResult, WorkUnit
from tokenmill.workers.local import SLOTS

# Small units, so that a few minutes see many places of the corpus ...
UNIT_BYTES, UNIT_INPUTS = 1 << 20, 64
# ... and enough of them that the spread between them means something.
LEAST_UNITS, MOST_UNITS = 8, 200
# The sample is of a fixed seed: measuring twice measures the same.
SEED = 20_260_101


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What a measurement needs of a session."""

    job: Job
    plans: Mapping[str, Plan]
    sources: Mapping[str, Source]
    facts: Mapping[Pool, WorkerFacts]


def measure(
    what: Measuring, *, seconds: float, say: Callable[[str], None] = lambda _: None
) -> Estimate:
    """An estimate of every stream that has something left. seconds: about so long for each.

    Raises JobError where a sampled task fails for the job's reasons, StoreError for others.
    """
    found: list[StreamEstimate] = []
    for (name, stream), facts in what.facts.items():
        tasks = [task for task in what.plans[name].tasks if task.stream == stream]
        # a child reads tokens that are not there yet, and costs little beside its parent
        units = [task.unit for task in tasks if not task.reads_tokens]
        if not units:
            continue
        small = _small_units(name, units, what.sources[name])
        chosen = random.Random(SEED).sample(small, min(len(small), MOST_UNITS))
        say(f"measuring {name}/{stream}: up to {len(chosen)} of {len(small)} units")
        with tempfile.TemporaryDirectory(prefix="tokenmill-measure-") as scratch:
            job = what.job.model_copy(update={"store": scratch})
            measured = _encode(job, (name, stream), facts.identity.recipe, chosen, seconds)
        need = what.job.resources.get(stream, Resources())
        found.append(
            estimate(
                measured,
                pipeline=name,
                stream=stream,
                recipe=facts.identity.recipe,
                to_read=sum(unit.size for unit in units),
                units=len(small),
                gpus_per_worker=need.gpus_per_worker,
                cpus_per_worker=need.cpus_per_worker,
            )
        )
    return Estimate(streams=tuple(found), host=socket.gethostname())


def _small_units(pipeline: str, units: Sequence[WorkUnit], source: Source) -> list[WorkUnit]:
    spans: list[Span] = [span for unit in units for span in unit.spans]
    size = max(1, min(UNIT_BYTES, sum(unit.size for unit in units) // (4 * LEAST_UNITS)))
    return list(
        cut(
            pipeline,
            spans,
            unit_bytes=size,
            unit_inputs=min(UNIT_INPUTS, max(1, len(spans) // (4 * LEAST_UNITS))),
            splittable=source.splittable,
        )
    )


def _encode(
    job: Job, pool: Pool, recipe: str, units: Sequence[WorkUnit], seconds: float
) -> list[Measured]:
    """Both slots of one worker busy, for `seconds`, but at least LEAST_UNITS."""
    executor = LocalExecutor(job)
    results: list[TaskResult] = []
    waiting = [
        Task(unit=unit, stream=pool[1], recipe=recipe, attempt=i, run="measure")
        for i, unit in enumerate(units)
    ]
    waiting.reverse()
    running = 0
    try:
        executor.start(0, pool)
        _await_ready(executor)
        began = time.monotonic()
        while waiting or running:
            enough = time.monotonic() - began > seconds and len(results) + running >= LEAST_UNITS
            while waiting and running < SLOTS and not enough:
                executor.assign(0, waiting.pop())
                running += 1
            if not running:
                break
            for event in executor.wait(1.0):
                if isinstance(event, Answered):
                    running -= 1
                    results.append(_result(event.answer))
                elif isinstance(event, WorkerLost):
                    raise StoreError(
                        f"the worker of {pool[1]!r} died while it was measured", why=event.why
                    )
        elapsed = time.monotonic() - began
    finally:
        executor.close()
    return _measured(results, {unit.id: unit.size for unit in units}, elapsed)


def _await_ready(executor: LocalExecutor) -> None:
    while True:
        for event in executor.wait(5.0):
            if isinstance(event, WorkerReady):
                return
            if isinstance(event, WorkerFailed):
                raise event.error
            if isinstance(event, WorkerLost):
                raise StoreError("a worker died at its start", why=event.why)


def _result(answer: TaskResult | TaskFailure) -> TaskResult:
    if isinstance(answer, TaskResult):
        return answer
    if answer.error is not None:
        raise answer.error
    raise JobError("a sampled unit cannot be encoded", why=answer.message)


def _measured(
    results: Sequence[TaskResult], sizes: Mapping[bytes, int], elapsed: float
) -> list[Measured]:
    """Wall seconds of tasks overlap: shared out so that they sum up to what went by."""
    walls = sum(result.stats.wall for result in results)
    factor = elapsed / walls if walls else 0.0
    return [
        Measured(
            size=sizes[result.unit],
            samples=result.enumerated,
            tokens=result.tokens,
            stored=sum(shard.size for shard in result.shards),
            quarantined=len(result.quarantined),
            seconds=result.stats.wall * factor,
        )
        for result in results
    ]
