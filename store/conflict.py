"""Step 3 of a commit: what others committed meanwhile, and which results must give way. Pure.

A run remembers of its *own* commits only which (unit, stream) it wrote, and of the others' only
what came after its plan: memory grows with the rivals' work, not with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenmill.store.ledger_rows import Entry

Name = tuple[bytes, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rival:
    start: int
    end: int
    recipe: str
    seq: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What becomes of a group of entries: names of (unit, stream).

    live: to be committed. done: an earlier commit of this run, whose answer was lost, holds the
    very same shards. dropped: name -> why; their uncovered cells are to be planned anew.
    """

    live: tuple[Entry, ...]
    done: tuple[Name, ...]
    dropped: Mapping[Name, str]


@dataclass(kw_only=True, slots=True)
class Rivals:
    """What was committed to one pipeline after seq `base`, seen from one run."""

    run: str
    base: int
    seq: int = 0  # everything up to here has been learned
    own: dict[Name, frozenset[str]] = field(default_factory=dict)
    cells: dict[tuple[str, bytes], list[_Rival]] = field(default_factory=dict)
    versions: dict[tuple[str, bytes], dict[bytes, int]] = field(default_factory=dict)

    def learn_cells(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of kind input: run, seq, stream, input, source_id, span_start, span_end, recipe."""
        for row in rows:
            if row["run"] == self.run:
                continue
            rival = _Rival(
                start=row["span_start"],
                end=row["span_end"],
                recipe=row["recipe"],
                seq=row["seq"],
            )
            self.cells.setdefault((row["stream"], row["input"]), []).append(rival)
            seen = self.versions.setdefault((row["stream"], row["source_id"]), {})
            seen[row["input"]] = max(seen.get(row["input"], 0), row["seq"])

    def learn_units(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of kind unit: run, unit, stream, path."""
        for row in rows:
            if row["run"] == self.run:
                name = (row["unit"], row["stream"])
                paths = frozenset() if row["path"] is None else frozenset([row["path"]])
                self.own[name] = self.own.get(name, frozenset()) | paths

    def learn_own(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.own[entry.name] = _paths(entry)

    def split(self, entries: Sequence[Entry], planned_seq: int) -> Split:
        live: list[Entry] = []
        done: list[Name] = []
        dropped: dict[Name, str] = {}
        group = _Group()
        for entry in entries:
            written = self.own.get(entry.name)
            if written is not None and written == _paths(entry):
                done.append(entry.name)
                continue
            why = (
                "this run committed another attempt of it"
                if written is not None
                else self._conflict(entry, planned_seq) or group.conflict(entry)
            )
            if why is None:
                live.append(entry)
                group.add(entry)
            else:
                dropped[entry.name] = why
        return Split(live=tuple(live), done=tuple(done), dropped=dropped)

    def _conflict(self, entry: Entry, planned_seq: int) -> str | None:
        stream, recipe = entry.result.stream, entry.result.recipe
        for span in entry.unit.spans:
            for rival in self.cells.get((stream, span.input.id), ()):
                if rival.seq <= planned_seq or rival.end <= span.start or span.end <= rival.start:
                    continue
                if rival.recipe == recipe or not entry.replaces:
                    return f"another run committed cells of {span.input.uri}"
            for version, seq in self.versions.get((stream, span.input.source), {}).items():
                if seq > planned_seq and version != span.input.id:
                    return f"another run committed another version of {span.input.uri}"
        return None


class _Group:
    """The entries of one commit must not cover a cell twice, nor two versions of one place."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, bytes], list[tuple[int, int]]] = {}
        self._versions: dict[tuple[str, bytes], bytes] = {}

    def conflict(self, entry: Entry) -> str | None:
        stream = entry.result.stream
        for span in entry.unit.spans:
            input_ = span.input
            if self._versions.get((stream, input_.source), input_.id) != input_.id:
                return f"the same commit holds another version of {input_.uri}"
            for start, end in self._spans.get((stream, input_.id), ()):
                if start < span.end and span.start < end:
                    return f"the same commit covers these cells of {input_.uri}"
        return None

    def add(self, entry: Entry) -> None:
        stream = entry.result.stream
        for span in entry.unit.spans:
            self._versions[stream, span.input.source] = span.input.id
            self._spans.setdefault((stream, span.input.id), []).append((span.start, span.end))


def _paths(entry: Entry) -> frozenset[str]:
    return frozenset(shard.path for shard in entry.result.shards)
