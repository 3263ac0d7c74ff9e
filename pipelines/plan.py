"""What is left to do: inputs minus what the ledger covers, cut into work units. Pure arithmetic.

Coverage goes by cell (stream, input, span, recipe), so a source may be cut differently every night
and a grown one costs only what is new. A unit that one stream has already committed keeps its cut
for the others: aligning them is then taking row i of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise

from tokenmill.schemas.job import MIB
from tokenmill.schemas.work import Input, ParentRows, Span, WorkUnit

Interval = tuple[int, int]

# A run is cut into about this many units, so that the last ones to finish idle few workers ...
UNITS_A_RUN = 64
# ... but none smaller: opening an input and committing a shard costs about 10 ms.
SMALLEST_UNIT = 8 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class CoveredSpan:
    """One valid cell of the ledger, as far as planning needs it."""

    input: bytes
    start: int
    end: int
    recipe: str
    unit: bytes
    ordinal: int
    seq: int = 0
    first_row: int = 0  # where its rows lie within (unit, stream)
    rows: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTask:
    """Of a child stream (pipelines/children.py): after, the parent stream whose task of this unit
    must be committed first, or parent, its committed rows."""

    unit: WorkUnit
    stream: str
    replaces: bool = False
    after: str | None = None
    parent: ParentRows | None = None

    @property
    def reads_tokens(self) -> bool:
        """Of a child: it reads no input."""
        return self.after is not None or self.parent is not None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tasks in the order they should start, and what the person should know beforehand."""

    pipeline: str
    inputs: int
    input_bytes: int
    tasks: tuple[PlannedTask, ...]
    # stream -> bytes of valid coverage under another recipe than today's
    outdated: Mapping[str, int] = field(default_factory=dict)
    # stream -> recipes of that coverage
    outdated_recipes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # children whose parent is tokenized there, but with another recipe than today's
    orphans: tuple[str, ...] = ()

    @property
    def bytes(self) -> Mapping[str, int]:
        """Bytes of input to read, by stream; a child reads tokens instead."""
        total: dict[str, int] = defaultdict(int)
        for task in self.tasks:
            if not task.reads_tokens:
                total[task.stream] += task.unit.size
        return total

    @property
    def units(self) -> int:
        return len({t.unit.id for t in self.tasks})


def subtract(whole: Interval, covered: Iterable[Interval]) -> list[Interval]:
    """`whole` minus the union of `covered`: sorted, disjoint, non-empty."""
    left, position = [], whole[0]
    for start, end in sorted(covered):
        if start > position:
            left.append((position, min(start, whole[1])))
        position = max(position, end)
        if position >= whole[1]:
            break
    if position < whole[1]:
        left.append((position, whole[1]))
    return [(a, b) for a, b in left if a < b]


def cut(
    pipeline: str,
    spans: Sequence[Span],
    *,
    unit_bytes: int,
    unit_inputs: int,
    splittable: Callable[[Input], bool],
    standing: Set[Span] = frozenset(),
) -> Iterator[WorkUnit]:
    """Cut spans, in order, into units of about `unit_bytes` and at most `unit_inputs` inputs.

    A large span of a splittable input becomes several units of nearly equal size, but for those in
    `standing`; small ones share a unit. Every byte lands in exactly one unit.
    """
    pending: list[Span] = []
    size = 0
    for span in spans:
        length = span.end - span.start
        if length > unit_bytes and span not in standing and splittable(span.input):
            parts = -(-length // unit_bytes)
            bounds = [span.start + length * k // parts for k in range(parts + 1)]
            pieces = [Span(input=span.input, start=a, end=b) for a, b in pairwise(bounds)]
        else:
            pieces = [span]
        for piece in pieces:
            length = piece.end - piece.start
            if pending and (size + length > unit_bytes or len(pending) >= unit_inputs):
                yield WorkUnit(pipeline=pipeline, spans=tuple(pending))
                pending, size = [], 0
            pending.append(piece)
            size += length
    if pending:
        yield WorkUnit(pipeline=pipeline, spans=tuple(pending))


def unit_size(total: int, most: int) -> int:
    """Bytes a unit should have: `total` over `UNITS_A_RUN`, between the bounds."""
    return min(most, max(SMALLEST_UNIT, -(-total // UNITS_A_RUN)))


def plan(
    pipeline: str,
    inputs: Sequence[Input],
    recipes: Mapping[str, str],
    coverage: Mapping[str, Sequence[CoveredSpan]],
    *,
    unit_bytes: int,
    unit_inputs: int,
    splittable: Callable[[Input], bool],
    retokenize: bool = False,
    again: Mapping[str, Collection[bytes]] | None = None,
) -> Plan:
    """What every stream still has to do.

    inputs: sorted by URI. recipes: stream -> today's recipe. coverage: stream -> valid cells of
    any recipe. Without `retokenize`, cells of another recipe count as covered and are reported as
    outdated; with it they are replaced one by one or several at once, never in part: the ledger
    hides a cell whole as soon as a later one touches it, and its other half would be lost to
    readers until the run got there. again: stream -> units whose cells are replaced likewise; with
    it nothing else is planned (`retry`).
    """
    known = {i.id: i for i in inputs}
    replaces = retokenize or again is not None
    todo: dict[str, dict[bytes, list[Interval]]] = {}
    standing: dict[str, dict[bytes, list[Interval]]] = {}  # to be replaced
    outdated: dict[str, int] = {}
    outdated_recipes: dict[str, frozenset[str]] = {}
    for stream, recipe in recipes.items():
        units = () if again is None else again.get(stream, ())
        left = left_to_do(known, recipe, coverage.get(stream, ()), retokenize, units)
        todo[stream], standing[stream] = left.todo, left.standing
        if again is not None:  # new inputs wait for the next run
            todo[stream] = {i: sorted(cells) for i, cells in left.standing.items() if i in known}
        if left.recipes:
            outdated[stream], outdated_recipes[stream] = left.outdated, left.recipes

    tasks = list(_keep_cuts(pipeline, known, todo, coverage, standing, replaces))
    total = sum(known[i].extent for i in set().union(*todo.values()) if i in known)
    target = unit_size(total, unit_bytes)
    # Inputs that several streams lack in the same way are cut once for all of them.
    groups: dict[tuple[str, ...], list[Span]] = defaultdict(list)
    fixed: set[Span] = set()
    for input_ in inputs:
        by_need: dict[tuple[tuple[Interval, bool], ...], list[str]] = defaultdict(list)
        for stream in recipes:
            need = todo[stream].get(input_.id)
            if need:
                cells = standing[stream].get(input_.id, ())
                by_need[_apart(need, cells)].append(stream)
        for need_, streams in by_need.items():
            for (start, end), stands in need_:
                span = Span(input=input_, start=start, end=end)
                groups[tuple(streams)].append(span)
                if stands:
                    fixed.add(span)
    for streams_, spans in groups.items():
        for unit in cut(
            pipeline,
            spans,
            unit_bytes=target,
            unit_inputs=unit_inputs,
            splittable=splittable,
            standing=fixed,
        ):
            tasks += [PlannedTask(unit=unit, stream=s, replaces=replaces) for s in streams_]
    return Plan(
        pipeline=pipeline,
        inputs=len(inputs),
        input_bytes=sum(i.size for i in inputs),
        tasks=tuple(tasks),
        outdated=outdated,
        outdated_recipes=outdated_recipes,
    )


def _apart(
    need: Sequence[Interval], standing: Sequence[Interval]
) -> tuple[tuple[Interval, bool], ...]:
    """`need` divided at the cells that stand in it, in order, with whether each piece is one."""
    if not standing:
        return tuple((whole, False) for whole in need)
    pieces = [(cell, True) for cell in standing if _contains(need, cell)]
    pieces += [(rest, False) for whole in need for rest in subtract(whole, standing)]
    return tuple(sorted(pieces))


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What one stream lacks: input -> intervals; standing: the cells among them that are to be
    replaced; bytes and recipes of its outdated coverage."""

    todo: dict[bytes, list[Interval]]
    standing: dict[bytes, list[Interval]]
    outdated: int
    recipes: frozenset[str]


def left_to_do(
    known: Mapping[bytes, Input],
    recipe: str,
    cells: Iterable[CoveredSpan],
    retokenize: bool,
    again: Collection[bytes] = (),
) -> Left:
    """The known inputs minus valid cells; those of another recipe count unless `retokenize`, those
    of the units in `again` never."""
    covered: dict[bytes, list[Interval]] = defaultdict(list)
    standing: dict[bytes, list[Interval]] = defaultdict(list)
    others: set[str] = set()
    outdated = 0
    for cell in cells:
        if cell.recipe != recipe and cell.input in known:
            outdated += cell.end - cell.start
            others.add(cell.recipe)
            if retokenize:
                standing[cell.input].append((cell.start, cell.end))
                continue
        if cell.unit in again:
            standing[cell.input].append((cell.start, cell.end))
            continue
        covered[cell.input].append((cell.start, cell.end))
    return Left(
        todo=_uncovered(known, covered),
        standing=standing,
        outdated=outdated,
        recipes=frozenset(others),
    )


def _uncovered(
    known: Mapping[bytes, Input], covered: Mapping[bytes, Sequence[Interval]]
) -> dict[bytes, list[Interval]]:
    """input -> intervals that are not covered; inputs that are wholly covered are left out."""
    left: dict[bytes, list[Interval]] = {}
    for id_, input_ in known.items():
        have = covered.get(id_)
        whole = (0, input_.extent)
        if have is None:
            left[id_] = [whole]
        elif have[0] != whole:  # the usual case needs no sorting
            need = subtract(whole, have)
            if need:
                left[id_] = need
    return left


def _keep_cuts(
    pipeline: str,
    known: Mapping[bytes, Input],
    todo: dict[str, dict[bytes, list[Interval]]],
    coverage: Mapping[str, Sequence[CoveredSpan]],
    standing: Mapping[str, Mapping[bytes, Sequence[Interval]]],
    replaces: bool,
) -> Iterator[PlannedTask]:
    """Tasks over units that are already committed for some stream; taken out of `todo`.

    A stream takes over a committed cut only where it lacks all of it, would replace no cell in
    part, and where all its inputs are still the listed versions; anything else is cut anew and
    joined by sample id on reading.
    """
    if not any(coverage.values()) or not any(todo.values()):
        return
    needed: set[bytes] = set().union(*todo.values())
    cells: dict[bytes, dict[int, CoveredSpan]] = defaultdict(dict)
    touched: set[bytes] = set()
    for rows in coverage.values():
        for cell in rows:
            cells[cell.unit][cell.ordinal] = cell
            if cell.input in needed:
                touched.add(cell.unit)
    for unit_id in sorted(touched):
        by_ordinal = cells[unit_id]
        ordered = [by_ordinal.get(k) for k in range(len(by_ordinal))]
        if any(c is None or c.input not in known for c in ordered):
            continue  # part of the unit was superseded: its cut is gone
        spans = tuple(
            Span(input=known[c.input], start=c.start, end=c.end) for c in ordered if c is not None
        )
        unit = WorkUnit(pipeline=pipeline, spans=spans)
        if unit.id != unit_id:
            continue
        for stream, need in todo.items():
            if all(
                _contains(need.get(s.input.id, ()), (s.start, s.end))
                and _whole_cells((s.start, s.end), standing[stream].get(s.input.id, ()))
                for s in spans
            ):
                for s in spans:
                    rest = _without(need[s.input.id], (s.start, s.end))
                    if rest:
                        need[s.input.id] = rest
                    else:
                        del need[s.input.id]
                yield PlannedTask(unit=unit, stream=stream, replaces=replaces)


def _contains(intervals: Iterable[Interval], part: Interval) -> bool:
    return any(a <= part[0] and part[1] <= b for a, b in intervals)


def _whole_cells(span: Interval, cells: Iterable[Interval]) -> bool:
    """Whether `span` touches none of `cells` in part."""
    start, end = span
    return all(b <= start or end <= a or (start <= a and b <= end) for a, b in cells)


def _without(intervals: Iterable[Interval], part: Interval) -> list[Interval]:
    return [piece for whole in intervals for piece in subtract(whole, [part])]
