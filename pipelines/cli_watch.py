"""`tokenmill watch`: a screen that shows who is at work on a store, and how it grows."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tokenmill.pipelines.tables import clean
from tokenmill.pipelines.watching import AtWork, StoreState, look


def register(app: typer.Typer) -> None:
    app.command()(watch)


def watch(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A folder or s3://bucket/prefix.")],
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 5,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
) -> None:
    """Watch a store: runs at work, committed tokens, quarantine. Ctrl-C ends it."""
    console = Console(highlight=False)
    if once or not console.is_terminal:
        console.print(screen(look(store)))
        return
    with Live(screen(look(store)), console=console, screen=False, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every)
                live.update(screen(look(store)), refresh=True)
        except KeyboardInterrupt:
            return


def screen(state: StoreState) -> RenderableType:
    parts: list[RenderableType] = [Text(clean(state.store), style="bold")]
    parts += [_run(run) for run in state.at_work] or [Text("no run is at work", style="dim")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pipeline", "stream", "samples", "tokens", "tokens/s", "last commit"):
        table.add_column(name, justify="left" if name in ("pipeline", "stream") else "right")
    for each in state.streams:
        last = each.last_commit.strftime("%Y-%m-%d %H:%M:%S") if each.last_commit else "-"
        table.add_row(
            Text(clean(each.pipeline)),
            Text(clean(each.stream)),
            f"{each.samples:,}",
            f"{each.tokens:,}",
            f"{each.tokens_per_second:,.0f}",
            last,
        )
    parts.append(table)
    if state.reasons:
        shown = (f"{pipeline} {reason} {n:,}" for (pipeline, reason), n in state.reasons.items())
        parts.append(Text("quarantined in the last day: " + clean("; ".join(shown)), style="red"))
    return Group(*parts)


def _run(run: AtWork) -> Text:
    text = Text(f"{clean(run.pipeline)}: {clean(run.run)} on {clean(run.host)}")
    said = run.progress
    if said:
        text.append(f"  {_number(said, 'finished')}/{_number(said, 'tasks')} tasks")
        text.append(f"  {_number(said, 'tokens')} tokens  {_number(said, 'workers')} workers")
        if said.get("quarantined"):
            text.append(f"  {_number(said, 'quarantined')} quarantined", style="red")
        if said.get("waiting"):
            text.append("  waiting for the store", style="yellow")
    if run.lapsed:
        text.append(f"  silent for {run.silent:,.0f} s: it is dead, run again", style="red")
    return text


def _number(said: object, name: str) -> str:
    value = said.get(name) if isinstance(said, dict) else None
    return f"{value:,}" if isinstance(value, int) else "?"
