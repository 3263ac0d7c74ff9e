"""What must hold after every schedule, told by arithmetic of its own where it can be."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sim.corpus import KILLS, enumerate_span
from sim.driver import PARENTS, PIPELINE, STREAMS, Driver, facts_of
from sim.memory import MemoryAccess, MemoryTable
from sim.world import World
from tokenmill.schemas.work import Span
from tokenmill.store.alignment import FileRows, plan_pipeline
from tokenmill.store.audit import AUDIT_COLUMNS, audit
from tokenmill.store.ledger import Ledger
from tokenmill.store.snapshot import snapshot_table

Cell = Mapping[str, Any]
Verdict = tuple[str, tuple[int, ...]]


class Violation(AssertionError):
    """A guarantee does not hold; `guarantee` says which."""

    def __init__(self, guarantee: str, what: str) -> None:
        super().__init__(f"{guarantee}: {what}")
        self.guarantee = guarantee


def require(holds: bool, guarantee: str, what: str) -> None:
    if not holds:
        raise Violation(guarantee, what)


def ledger_of(world: World) -> Ledger:
    return Ledger(MemoryAccess(world.folder), MemoryTable(world.log))  # type: ignore[arg-type]


# -- during a schedule ---------------------------------------------------------------------


def check_finished(world: World, driver: Driver) -> None:
    """A run that says 0 has done everything that it listed and that did not change meanwhile."""
    require(driver.exit_code in (None, 0, 2, 3, 4), "G4", f"exit code {driver.exit_code}")
    require(driver.exit_code != 2 or world.upgraded, "G4", f"refused: {driver.why}")
    if driver.exit_code != 0:
        return
    valid = valid_by_hand(cells_of(world))
    for uri, changes in driver.listed.items():
        if world.corpus.changes[uri] == changes and uri in world.corpus.files:
            for stream in STREAMS:
                check_tiled(world, valid, uri, stream, f"{driver.settings.name} ended with 0")


# -- after it ------------------------------------------------------------------------------


def check_all(world: World) -> int:
    """Every guarantee over the whole store; how many samples were looked at."""
    cells = cells_of(world)
    check_history(cells)
    if world.upgraded:
        check_growth(cells)
    valid = valid_by_hand(cells)
    check_validity(world, valid)
    for uri in world.corpus.files:
        for stream in STREAMS:
            check_tiled(world, valid, uri, stream, "after the last run")
    check_named(world)
    problems = audit(ledger_of(world).tables(AUDIT_COLUMNS)).problems
    problems = tuple(p for p in problems if not (world.drift and p.kind == "order"))
    require(not problems, "G1", f"verify: {problems[:1]}")
    return check_verdicts(world)


def cells_of(world: World) -> list[Cell]:
    columns = ["stream", "source_id", "input", "uri", "span_start", "span_end", "seq", "recipe"]
    columns += ["unit", "ordinal", "run"]
    found: list[Cell] = []
    for commit in world.log.commits:
        if "input" in commit:
            found += commit["input"].select(columns).to_pylist()
    return found


def valid_by_hand(cells: list[Cell]) -> list[Cell]:
    """The cells that no later one hides: another version of the place, or an overlapping span."""
    by_place: dict[tuple[str, bytes], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_place[cell["stream"], cell["source_id"]].append(cell)
    return [
        c
        for rows in by_place.values()
        for c in rows
        if not any(
            later["seq"] > c["seq"] and (later["input"] != c["input"] or _overlap(later, c))
            for later in rows
        )
    ]


def _overlap(one: Cell, other: Cell) -> bool:
    return bool(one["span_start"] < other["span_end"] and other["span_start"] < one["span_end"])


def check_validity(world: World, valid: list[Cell]) -> None:
    """store/validity.py, vectorised, agrees with the definition."""
    names = ("stream", "input", "span_start", "span_end", "seq")
    coverage = ledger_of(world).coverage(PIPELINE).select(list(names)).to_pylist()
    found = sorted(tuple(row[n] for n in names) for row in coverage)
    expected = sorted(tuple(c[n] for n in names) for c in valid)
    require(found == expected, "G1", f"valid cells {found}, by definition {expected}")


def check_tiled(world: World, valid: list[Cell], uri: str, stream: str, when: str) -> None:
    """The valid cells of today's version cover it once, without gap or overlap."""
    input_ = world.corpus.files[uri].input()
    spans = sorted(
        (c["span_start"], c["span_end"])
        for c in valid
        if c["stream"] == stream and c["input"] == input_.id
    )
    at = 0
    for start, end in spans:
        require(start == at, "G1", f"{when}: {uri}/{stream} is covered by {spans}")
        at = end
    require(at == input_.extent, "G1", f"{when}: {uri}/{stream} is covered by {spans}")


def check_history(cells: list[Cell]) -> None:
    """No cell was ever committed twice by one recipe, but where another version or recipe, or new
    tokens of its parent, lay between (G5)."""
    by_place: dict[tuple[str, bytes], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_place[cell["stream"], cell["source_id"]].append(cell)
    for (stream, place), rows in by_place.items():
        above = by_place.get((PARENTS.get(stream, ""), place), [])
        for later, one in enumerate(rows):
            for other in rows[:later]:
                same = (one["input"], one["recipe"]) == (other["input"], other["recipe"])
                if same and _overlap(one, other):
                    between = any(_excuses(r, one, other) for r in rows)
                    anew = any(
                        other["seq"] < r["seq"] < one["seq"] and _overlap(r, one) for r in above
                    )
                    require(between or anew, "G5", f"committed twice: {one} and {other}")


def _excuses(row: Cell, one: Cell, other: Cell) -> bool:
    """`row` lay between the two and was another version or recipe."""
    different = row["input"] != one["input"] or (
        _overlap(row, one) and row["recipe"] != one["recipe"]
    )
    return bool(other["seq"] < row["seq"] < one["seq"] and different)


def check_growth(cells: list[Cell]) -> None:
    """No commit ever took away what was covered, but where it brought another version of the
    place: an upgrade loses readers nothing on its way."""
    before: dict[tuple[str, bytes], tuple[bytes, int]] = {}
    for seq in sorted({c["seq"] for c in cells}):
        now: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        for cell in valid_by_hand([c for c in cells if c["seq"] <= seq]):
            place = (cell["stream"], cell["source_id"])
            size = now.get(place, (b"", 0))[1] + cell["span_end"] - cell["span_start"]
            now[place] = (cell["input"], size)
        for place, (version, size) in before.items():
            found, covered = now.get(place, (version, 0))
            what = f"commit {seq} left {covered} of {size} bytes covered"
            require(found != version or covered >= size, "G1", what)
        before = now


def check_named(world: World) -> None:
    """What the ledger or a living snapshot names is there, and as it was committed (G2)."""
    files = world.folder.files
    for commit in world.log.commits:
        if "unit" not in commit:
            continue
        for row in commit["unit"].select(["path", "content_hash"]).to_pylist():
            if row["path"] is not None:
                require(row["path"] in files, "G2", f"gone: {row['path']}")
                found = hashlib.sha256(files[row["path"]][0]).digest()
                require(found == row["content_hash"], "G2", f"changed: {row['path']}")
    for pinned in world.pinned:
        if world.living(pinned):
            path = f"snapshots/{pinned.snapshot.hash}.arrow"
            require(path in files, "G2", f"a pinned snapshot is gone: {path}")
            for path in pinned.snapshot.table["path"].to_pylist():
                require(path in files, "G2", f"gone from a snapshot: {path}")


def check_verdicts(world: World) -> int:
    """Of every sample and stream one verdict, the undisturbed run's; streams stay aligned."""
    rows = snapshot_table(ledger_of(world)).to_pylist()
    content = {row["path"]: json.loads(world.folder.files[row["path"]][0]) for row in rows}
    found: dict[tuple[str, bytes], list[Verdict]] = defaultdict(list)
    for row in rows:
        hidden = {i for e in row["exclude"] for i in range(e["start"], e["end"])}
        for at, (sample, verdict, tokens) in enumerate(content[row["path"]], row["first_row"]):
            if at not in hidden:
                found[row["stream"], bytes.fromhex(sample)].append((verdict, tuple(tokens)))
    checked = 0
    for file in world.corpus.files.values():
        input_ = file.input()
        whole = Span(input=input_, start=0, end=input_.extent)
        for stream in STREAMS:
            for row_ in enumerate_span(file, whole, stream, world.revisions[stream]):
                key = (stream, row_.sample)
                checked += 1
                verdicts = found.pop(key, [])
                require(len(verdicts) == 1, "G1", f"{file.uri}#{row_.key}/{stream}: {verdicts}")
                if _killed_from_outside(world, row_.sample, verdicts[0]):
                    continue
                expected = (row_.verdict, row_.tokens)
                require(
                    verdicts[0] == expected,
                    "G6",
                    f"{file.uri}#{row_.key}/{stream}: {verdicts[0]}, not {expected}",
                )
    gone = {s for (_, s), v in found.items() if len(v) > 1}
    require(not gone, "G1", f"samples of deleted inputs are there twice: {gone}")
    check_aligned(rows, content)
    return checked


def _killed_from_outside(world: World, sample: bytes, verdict: Verdict) -> bool:
    """Not guaranteed: a sample whose process was killed from outside again and again, each time
    while the sample was alone in native code, looks like one that kills its process."""
    died = verdict[0] in ("process-died", "parent-quarantined")
    return died and world.alone.get(sample, 0) >= KILLS_ALONE


KILLS_ALONE = 2


def check_aligned(rows: Iterable[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Row by row, the streams of a piece hold the same sample (G8)."""
    names = ("pipeline", "stream", "unit", "path", "first_row", "rows", "order_hash")
    files = [
        FileRows(
            **{name: row[name] for name in names},
            space=row["space"],
            recipe=row["recipe"],
            tokenizer=row["tokenizer"],
            exclude=tuple((e["start"], e["end"]) for e in row["exclude"]),
        )
        for row in rows
    ]
    for piece in plan_pipeline(PIPELINE, files).pieces:
        orders = set()
        for parts in piece.files.values():
            ids = [
                content[f.path][at - f.first_row][0]
                for at in range(piece.start, piece.stop)
                for f in parts
                if f.first_row <= at < f.first_row + f.rows
            ]
            orders.add(tuple(ids))
        require(len(orders) == 1, "G8", f"a piece holds other samples in each stream: {orders}")


def check_swept(world: World) -> None:
    """After a vacuum a month later nothing lies in shards/ that nobody names."""
    named = {
        path
        for commit in world.log.commits
        if "unit" in commit
        for path in commit["unit"]["path"].to_pylist()
    }
    left = {p for p in world.folder.files if p.startswith("shards/")} - named
    left -= {p for x in world.pinned for p in x.snapshot.table["path"].to_pylist()}
    require(not left, "G2", f"orphans are left: {sorted(left)[:3]}")


def recipe_of(stream: str, revision: int) -> str:
    return facts_of(stream, revision).identity.recipe


__all__ = ["KILLS", "Violation", "check_all", "check_finished", "check_swept", "require"]
