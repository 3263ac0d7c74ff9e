"""The main verb: list, plan, tasks, shards, commit. `dry_run` stops after the plan."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tokenmill.pipelines.coordinator import Coordinator, Counts, Finish, NewTask, Pool
from tokenmill.pipelines.estimate import Compared, Estimate, compare
from tokenmill.pipelines.executors import Executor, Running
from tokenmill.pipelines.loop import Committer, Stops, Watcher, drive
from tokenmill.pipelines.measure import Measuring, measure
from tokenmill.pipelines.observing import Observing
from tokenmill.pipelines.plan import Plan
from tokenmill.pipelines.session import Options, Session, refuse_outdated
from tokenmill.pipelines.tally import Bound, Tally, bound_by
from tokenmill.schemas.job import Job
from tokenmill.schemas.tokenizer import WorkerFacts
from tokenmill.store.lease import Lease, this_process
from tokenmill.store.ledger import Ledger, StreamFacts

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Report:
    """How a run ended; `exit_code` as in the README."""

    run: str
    store: str
    exit_code: int = 0
    why: str = ""
    error: Exception | None = None
    plans: Mapping[str, Plan] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    start_seconds: float = 0.0  # until the first task could go out
    work_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    bound: Bound = field(default_factory=lambda: Bound(by=""))
    estimate: Estimate | None = None  # of a dry run that measured
    # stream -> what an earlier estimate said beside what came out
    compared: Mapping[Pool, Sequence[Compared]] = field(default_factory=dict)

    @property
    def nothing_new(self) -> bool:
        return not any(p.tasks for p in self.plans.values())


def dry_run(
    job: Job, options: Options, *, measure_seconds: float | None = None, say: Say = print
) -> tuple[Report, Mapping[str, WorkerFacts]]:
    """What `run` would do; writes nothing. measure_seconds: encode a sample for about so long a
    stream, and estimate."""
    session = Session(job, options)
    with ExitStack() as stack:
        executor = session.executor()
        stack.callback(executor.close)
        session.probe(executor, session.limits(executor))
        session.check_fields()
        ledger = session.existing_ledger()
        plans = session.plan(ledger)
        report = Report(run="", store=session.access.uri)
        report.plans = {name: made for name, (made, _) in plans.items()}
        facts = {f"{p}/{s}": f for (p, s), f in session.facts.items()}
        if ledger is not None and not options.retokenize:
            refuse_outdated(plans, session, ledger)
    # after the probe's workers are gone: they would share its CPUs
    if measure_seconds is not None:
        what = Measuring(job=job, plans=report.plans, sources=session.sources, facts=session.facts)
        report.estimate = measure(what, seconds=measure_seconds, say=say)
    return report, facts


def run(job: Job, options: Options, *, watch: Watcher, say: Say) -> Report:
    """Tokenize what the ledger does not cover yet.

    Raises TokenmillError for what cannot begin; how a run that began has ended is in the report.
    """
    began = time.monotonic()
    run_id = f"{job.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    session = Session(job, options)
    stops = Stops()
    with ExitStack() as stack:
        stack.enter_context(stops.signals())  # first of all: a stop while we list is a stop too
        session.access.check()
        report = Report(run=run_id, store=session.access.uri)
        leases = [stack.enter_context(x) for x in _leases(session, run_id)]
        executor = session.executor()
        stack.callback(executor.close)
        stack.enter_context(stops.signals())  # again: `ray.init` puts its own handlers in place
        limits = session.limits(executor)
        session.probe(executor, limits)
        session.check_fields()
        ledger = Ledger.open(session.access, create=True)
        plans = session.plan(ledger)
        report.plans = {name: made for name, (made, _) in plans.items()}
        if not options.retokenize:
            refuse_outdated(plans, session, ledger)
        coordinator = Coordinator(
            run=run_id,
            pools=limits,
            cpus=executor.cpus,
            gpus=executor.gpus,
            attempts=job.policy.attempts,
            store_patience=job.policy.store_patience,
            nodes=executor.nodes(),
        )
        coordinator.add(session.tasks(plans))
        for worker, pool in session.kept.items():
            coordinator.adopt(worker, pool)
        report.start_seconds = time.monotonic() - began
        observing = Observing(
            job=job.name, run=run_id, leases=leases, log=options.log, executor=executor
        )
        stops.begin(job.limits, lost=lambda: any(x.lost for x in leases), gpus=executor.gpus)
        finish = _drive(
            session, executor, coordinator, ledger, report, stops, watch, say, observing
        )
        report.counts = coordinator.counts
        report.work_seconds = time.monotonic() - began - report.start_seconds
        _judge(job, report, finish)
        report.tally = observing.tally
        report.bound = bound_by(
            observing.tally,
            listing=session.listing_seconds,
            starting=report.start_seconds,
            working=report.work_seconds,
        )
        report.compared = _compared(options.estimate, session, observing.tally)
        observing.ended(report.exit_code, report.why, coordinator)
        _finish_runs(ledger, report)
    return report


def _compared(
    said: Estimate | None, session: Session, tally: Tally
) -> Mapping[Pool, Sequence[Compared]]:
    found: dict[Pool, Sequence[Compared]] = {}
    for pool, done in tally.streams.items():
        one = said.of(*pool, session.facts[pool].identity.recipe) if said else None
        if one is not None:
            came = {"tokens": done.tokens, "stored": done.stored, "samples": done.samples}
            found[pool] = compare(one, read=done.covered, came=came)
    return found


def _leases(session: Session, run_id: str) -> list[Lease]:
    if not session.options.lease:
        return []
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = {**this_process(), "run": run_id, "started": started}
    return [Lease.acquire(session.access, name, holder) for name in sorted(session.job.pipelines)]


def _drive(
    session: Session,
    executor: Executor,
    coordinator: Coordinator,
    ledger: Ledger,
    report: Report,
    stops: Stops,
    watch: Watcher,
    say: Say,
    observing: Observing,
) -> Finish:
    facts: dict[str, dict[str, StreamFacts]] = defaultdict(dict)
    for (pipeline, stream), found in session.facts.items():
        facts[pipeline][stream] = StreamFacts(
            stream=stream,
            modality=found.modality,
            identity=found.identity,
            descriptor=found.descriptor,
            checkpoint=found.checkpoint,
            checkpoint_sha256=found.checkpoint_sha256,
            config=found.config,
        )

    def replan(pipeline: str, uris: Sequence[str]) -> Sequence[NewTask]:
        say(f"planning again: {len(uris)} input(s) of {pipeline!r} changed or were done elsewhere")
        return list(session.tasks(session.plan(ledger, only=(pipeline, uris))))

    committer = Committer(
        ledger=ledger,
        run=report.run,
        facts=facts,
        run_row={
            "job": session.job.name,
            "host": socket.gethostname(),
            "job_json": json.dumps(session.job_without_secrets(), sort_keys=True),
        },
        observers=(observing.committed,),
    )

    def watch_all(coordinator: Coordinator, running: Running) -> None:
        watch(coordinator, running)
        observing.watch(coordinator, running)

    return drive(coordinator, executor, committer, replan=replan, watch=watch_all, stops=stops)


def _judge(job: Job, report: Report, finish: Finish) -> None:
    """The exit code: how the loop ended, or too large a share in quarantine."""
    report.exit_code, report.why, report.error = finish.exit_code, finish.why, finish.error
    counts = report.counts
    share = counts.quarantined / counts.samples if counts.samples else 0.0
    if finish.exit_code == 0 and share > job.policy.quarantine_share:
        report.exit_code = 1
        report.why = (
            f"{counts.quarantined:,} of {counts.samples:,} samples quarantined ({share:.1%}), "
            f"more than policy.quarantine_share ({job.policy.quarantine_share:.1%})"
        )


def _finish_runs(ledger: Ledger, report: Report) -> None:
    """The run's closing row; the ledger leaves it out where this run committed nothing (G3)."""
    state = {0: "finished", 1: "finished", 4: "stopped"}.get(report.exit_code, "failed")
    summary = {
        "exit_code": report.exit_code,
        "why": report.why,
        "samples": report.counts.samples,
        "tokens": report.counts.tokens,
        "quarantined": report.counts.quarantined,
        "absent": report.counts.absent,
        "seconds": round(report.start_seconds + report.work_seconds, 3),
        "bound_by": report.bound.by,
        "estimate_off": {
            f"{pipeline}/{stream}": {each.what: round(each.off, 4) for each in compared}
            for (pipeline, stream), compared in report.compared.items()
        },
    }
    for pipeline in report.plans:
        ledger.finish_run(pipeline, report.run, state, summary)
