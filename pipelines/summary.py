"""The last word of a run and of a dry run: a table that a person understands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tokenmill.pipelines.estimate import Compared, Estimate, Quantity, spoken
from tokenmill.pipelines.run import Report
from tokenmill.pipelines.tables import human_bytes
from tokenmill.schemas.tokenizer import WorkerFacts


def show_run(report: Report, job: str, *, verb: str = "run") -> None:
    """What was done, where it is, and how to go on."""
    console = Console(file=sys.stdout, highlight=False)
    counts = report.counts
    if report.nothing_new and report.exit_code == 0:
        inputs = sum(p.inputs for p in report.plans.values())
        if verb == "retry":
            console.print(f"Nothing to retry: nothing quarantined matches in {report.store}")
        else:
            console.print(f"Nothing new: all {inputs:,} inputs are tokenized in {report.store}")
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    seconds = max(report.work_seconds, 1e-3)
    for name, value in (
        ("inputs", f"{sum(p.inputs for p in report.plans.values()):,}"),
        ("tasks committed", f"{counts.committed:,} of {counts.planned:,}"),
        ("samples", f"{counts.samples:,}"),
        ("tokens", f"{counts.tokens:,}"),
        ("quarantined", f"{counts.quarantined:,}"),
        ("absent", f"{counts.absent:,}"),
        ("damaged inputs", f"{counts.input_faults:,}"),
        ("bytes written", human_bytes(counts.stored)),
        ("tokens/s", f"{counts.tokens / seconds:,.0f}"),
        ("seconds", f"{report.work_seconds:,.1f} (and {report.start_seconds:,.1f} to start)"),
    ):
        table.add_row(name, value)
    console.print(table)
    if report.bound.by:
        console.print(f"  bounded by       {report.bound}", soft_wrap=True, markup=False)
    for (pipeline, stream), compared in report.compared.items():
        console.print(f"  estimate         {pipeline}/{stream}: {_beside(compared)}",
                      soft_wrap=True, markup=False)  # fmt: skip
    # outside the table: a path must be whole to be pasted
    console.print(f"  store            {report.store}", soft_wrap=True)
    if report.exit_code:
        console.print(f"\n{_ending(report)}", soft_wrap=True, markup=False)
        if report.exit_code in (3, 4):
            console.print(
                f"go on: {_tool()} {verb} {shlex.quote(job)}", soft_wrap=True, markup=False
            )
        return
    console.print("\nnext:")
    sql = "select stream, sum(samples) as samples, sum(tokens) as tokens from shards group by 1"
    store = shlex.quote(report.store)
    for line in (
        f"{_tool()} ls {store}",
        f'{_tool()} query {store} "{sql}"',
        f"{_tool()} verify {store}",
    ):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _beside(compared: Sequence[Compared]) -> str:
    """`tokens 1.2 M ± 4 %, came out 1.25 M (+3.1 %)`."""
    parts = []
    for each in compared:
        within = {True: "", False: ", outside", None: ""}[each.within]
        name = {"stored": "bytes"}.get(each.what, each.what)
        parts.append(
            f"{name} {spoken(each.said)}, came out {spoken(Quantity(value=each.came, error=0.0))} "
            f"({each.off:+.1%}{within})"
        )
    return "; ".join(parts)


def show_estimate(estimate: Estimate, *, gpu_price: float, cpu_price: float) -> None:
    """Tokens, bytes, hours and cost with their uncertainty, a line for each stream."""
    console = Console(file=sys.stdout, highlight=False)
    console.print(f"\nestimate, measured on {estimate.host}; ± is half a 95 % interval:")
    for each in estimate.streams:
        facts = {
            "samples": spoken(each.samples),
            "tokens": spoken(each.tokens),
            "bytes to write": spoken(each.stored, "B"),
            "worker-hours": spoken(each.worker_seconds.scaled(1 / 3600)),
        }
        if each.quarantined.value:
            facts["quarantined"] = spoken(each.quarantined)
        if each.gpus_per_worker:
            facts["GPU-hours"] = spoken(each.gpu_hours)
        facts["CPU-hours"] = spoken(each.cpu_hours)
        if gpu_price or cpu_price:
            facts["cost"] = spoken(each.cost(gpu_price, cpu_price))
        share = each.measured_bytes / each.to_read if each.to_read else 1.0
        seen = f"{each.measured_units} units, {share:.2g} of the bytes"
        console.print(f"  {each.pipeline}/{each.stream} ({seen})", markup=False)
        for name, text in facts.items():
            console.print(f"    {name:<15} {text}", soft_wrap=True, markup=False)


def _ending(report: Report) -> str:
    kinds = {1: "too much in quarantine", 2: "the job", 3: "stopped", 4: "stopped as told"}
    return f"{kinds.get(report.exit_code, 'a fault of ours')}: {report.why}"


def _tool() -> str:
    """`tokenmill` as it was called: a pasted command must work."""
    called = Path(sys.argv[0])
    return shlex.quote(sys.argv[0]) if called.name == "tokenmill" else "tokenmill"


def show_plan(report: Report, facts: Mapping[str, WorkerFacts]) -> None:
    """What there is, what is covered, and what `run` would read."""
    console = Console(file=sys.stdout, highlight=False)
    table = Table(box=None, padding=(0, 2))
    for name in ("pipeline", "stream", "inputs", "source", "to read", "tasks", "recipe"):
        table.add_column(name, justify="left" if name in ("pipeline", "stream") else "right")
    for name, plan in report.plans.items():
        for key, fact in facts.items():
            pipeline, stream = key.split("/", 1)
            if pipeline != name:
                continue
            tasks = sum(t.stream == stream for t in plan.tasks)
            table.add_row(
                name,
                stream,
                f"{plan.inputs:,}",
                human_bytes(plan.input_bytes),
                human_bytes(plan.bytes.get(stream, 0)),
                f"{tasks:,}",
                fact.identity.recipe[:12],
            )
    console.print(table)
    if report.nothing_new:
        console.print("nothing new")
