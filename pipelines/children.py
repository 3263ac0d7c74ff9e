"""Streams made from another stream's tokens: what they still have to do. Pure arithmetic.

A child follows its parent's cut, cell by cell: where the parent is committed it reads the rows that
lie there, whatever run wrote them; where the parent is planned in this run it takes the very same
unit and waits for that commit. So a child never reads the source, and a killed run's parents are
finished by the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tokenmill.pipelines.plan import CoveredSpan, Interval, Plan, PlannedTask, left_to_do, subtract
from tokenmill.schemas.work import Input, ParentFile, ParentRows, Span, WorkUnit

# Stream, unit, seq: what one commit wrote of one (unit, stream).
Attempt = tuple[str, bytes, int]
Coverage = Mapping[str, Sequence[CoveredSpan]]
Files = Mapping[Attempt, Sequence[ParentFile]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A child stream, its recipe today, and what it reads."""

    stream: str
    recipe: str
    parent: str
    parent_space: str
    parent_recipe: str


def plan_children(
    made: Plan,
    inputs: Sequence[Input],
    children: Sequence[Child],
    coverage: Coverage,
    files: Files,
    *,
    retokenize: bool = False,
) -> Plan:
    """`made` with the tasks of its children, each behind its parent's.

    children: each after its parent. coverage: stream -> valid cells. files: of parents.
    """
    known = {i.id: i for i in inputs}
    for child in children:
        cells = _up_to_date(coverage.get(child.stream, ()), coverage.get(child.parent, ()))
        left = left_to_do(known, child.recipe, cells, retokenize)
        tasks = _tasks(made, child, known, left.todo, coverage, files)
        made = replace(made, tasks=(*made.tasks, *tasks))
        if _lacking(left.todo, tasks):
            made = replace(made, orphans=(*made.orphans, child.stream))
        if left.recipes:
            made = replace(
                made,
                outdated={**made.outdated, child.stream: left.outdated},
                outdated_recipes={**made.outdated_recipes, child.stream: left.recipes},
            )
    return made


def _up_to_date(
    cells: Iterable[CoveredSpan], parents: Iterable[CoveredSpan]
) -> Iterator[CoveredSpan]:
    """The child's cells that were made from what their parent holds now.

    A parent's cell that was committed later than the child's was made anew, by a retry perhaps,
    and is not what the child has read.
    """
    by_input: dict[bytes, list[CoveredSpan]] = defaultdict(list)
    for cell in parents:
        by_input[cell.input].append(cell)
    for cell in cells:
        later = (
            p.seq > cell.seq and p.start < cell.end and cell.start < p.end
            for p in by_input.get(cell.input, ())
        )
        if not any(later):
            yield cell


def _tasks(
    made: Plan,
    child: Child,
    known: Mapping[bytes, Input],
    todo: Mapping[bytes, Sequence[Interval]],
    coverage: Coverage,
    files: Files,
) -> list[PlannedTask]:
    had = _intervals(coverage.get(child.stream, ()))
    coming = [task for task in made.tasks if task.stream == child.parent]
    tasks = [
        PlannedTask(
            unit=task.unit,
            stream=child.stream,
            replaces=task.replaces or any(_meets(had, span) for span in task.unit.spans),
            after=child.parent,
        )
        for task in coming
    ]
    soon: dict[bytes, list[Interval]] = defaultdict(list)
    for task in coming:
        for span in task.unit.spans:
            soon[span.input.id].append((span.start, span.end))
    wanted = {
        input_: [piece for part in parts for piece in subtract(part, soon.get(input_, ()))]
        for input_, parts in todo.items()
    }
    for attempt, cells in _committed(child, known, wanted, coverage).items():
        spans = tuple(Span(input=known[c.input], start=c.start, end=c.end) for c in cells)
        tasks.append(
            PlannedTask(
                unit=WorkUnit(pipeline=made.pipeline, spans=spans),
                stream=child.stream,
                replaces=any(_meets(had, span) for span in spans),
                parent=ParentRows(
                    stream=child.parent,
                    space=child.parent_space,
                    recipe=child.parent_recipe,
                    unit=attempt[1],
                    files=tuple(files.get(attempt, ())),
                    spans=tuple((c.first_row, c.rows) for c in cells),
                ),
            )
        )
    return tasks


def _lacking(todo: Mapping[bytes, Sequence[Interval]], tasks: Iterable[PlannedTask]) -> bool:
    """Whether something to do is in none of the tasks."""
    planned: dict[bytes, list[Interval]] = defaultdict(list)
    for task in tasks:
        for span in task.unit.spans:
            planned[span.input.id].append((span.start, span.end))
    return any(subtract(p, planned.get(i, ())) for i, parts in todo.items() for p in parts)


def _committed(
    child: Child,
    known: Mapping[bytes, Input],
    wanted: Mapping[bytes, Sequence[Interval]],
    coverage: Coverage,
) -> dict[Attempt, list[CoveredSpan]]:
    """The parent's valid cells that hold what the child wants, as their commits wrote them."""
    found: dict[Attempt, list[CoveredSpan]] = defaultdict(list)
    for cell in coverage.get(child.parent, ()):
        if cell.recipe != child.parent_recipe or cell.input not in known:
            continue
        if any(a < cell.end and cell.start < b for a, b in wanted.get(cell.input, ())):
            found[child.parent, cell.unit, cell.seq].append(cell)
    return {
        attempt: sorted(cells, key=lambda cell: cell.ordinal)
        for attempt, cells in sorted(found.items())
    }


def _intervals(cells: Iterable[CoveredSpan]) -> dict[bytes, list[Interval]]:
    found: dict[bytes, list[Interval]] = defaultdict(list)
    for cell in cells:
        found[cell.input].append((cell.start, cell.end))
    return found


def _meets(had: Mapping[bytes, Sequence[Interval]], span: Span) -> bool:
    return any(a < span.end and span.start < b for a, b in had.get(span.input.id, ()))
