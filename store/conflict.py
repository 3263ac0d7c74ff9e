"""Step 3 of a commit: what others committed meanwhile, and which results must give way. Pure.

A run remembers of its *own* commits only which (unit, stream) it wrote, and of the others' only
what came after its plan: memory grows with the rivals' work, not with the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tokenmill.store.ledger_rows import Entry, tokenizer_key

Name = tuple[bytes, str]
_Claim = tuple[bytes, bytes, int, int, str]  # input id, place, start, end, URI


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
    done: tuple[Entry, ...]
    dropped: Mapping[Name, str]


@dataclass(kw_only=True, slots=True)
class Rivals:
    """What was committed to one pipeline after seq `base`, seen from one run."""

    run: str
    base: int
    seq: int = 0  # everything up to here has been learned
    states: set[str] = field(default_factory=set)  # this run's rows: started, finished, ...
    described: set[str] = field(default_factory=set)  # tokenizer rows of the pipeline, by key
    # what this run wrote: the sum of the hashes of the shards' paths, and the seq
    own: dict[Name, tuple[int, int]] = field(default_factory=dict)
    cells: dict[tuple[str, bytes], list[_Rival]] = field(default_factory=dict)
    versions: dict[tuple[str, bytes], dict[bytes, int]] = field(default_factory=dict)
    forgotten: dict[bytes, int] = field(default_factory=dict)  # place -> seq of the last forget

    def learn(self, news: Mapping[str, pa.Table]) -> None:
        """Rows after `seq`, by kind: input, unit, forgotten, tokenizer and run."""
        self.learn_pipeline(news)
        self.learn_cells(news["input"].to_pylist())
        self.learn_units(news["unit"].sort_by("seq").to_pylist())
        for row in news["forgotten"].to_pylist():
            place = row["source_id"]
            self.forgotten[place] = max(self.forgotten.get(place, 0), row["seq"])

    def learn_pipeline(self, rows: Mapping[str, pa.Table]) -> None:
        """Rows of kind tokenizer (TOKENIZER_KEY) and run (run, state)."""
        self.described |= {tokenizer_key(row) for row in rows["tokenizer"].to_pylist()}
        self.states |= {r["state"] for r in rows["run"].to_pylist() if r["run"] == self.run}

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
        """Rows of kind unit, those of a commit together: run, seq, unit, stream, path."""
        for row in rows:
            if row["run"] == self.run:
                name = (row["unit"], row["stream"])
                written = 0 if row["path"] is None else hash(row["path"])
                before, seq = self.own.get(name, (0, 0))
                more = before if seq == row["seq"] else 0
                self.own[name] = (more + written, row["seq"])

    def learn_own(self, entries: Iterable[Entry], seq: int) -> None:
        for entry in entries:
            self.own[entry.name] = (_written(entry), seq)

    def split(self, entries: Sequence[Entry], planned_seq: int) -> Split:
        live: list[Entry] = []
        done: list[Entry] = []
        dropped: dict[Name, str] = {}
        group = _Group()
        for entry in entries:
            written, seq = self.own.get(entry.name, (None, 0))
            if written == _written(entry):
                done.append(entry)
                continue
            claims = _claims(entry)
            why = (
                "this run committed another attempt of it"
                if seq > planned_seq
                else self._conflict(entry, claims, planned_seq) or group.conflict(entry, claims)
            )
            if why is None:
                live.append(entry)
                group.add(entry, claims)
            else:
                dropped[entry.name] = why
        return Split(live=tuple(live), done=tuple(done), dropped=dropped)

    def _conflict(self, entry: Entry, claims: Sequence[_Claim], planned_seq: int) -> str | None:
        stream, recipe = entry.result.stream, entry.result.recipe
        if not self.cells and not self.forgotten:
            return None
        for input_, place, start, end, uri in claims:
            if self.forgotten.get(place, 0) > planned_seq:
                return f"samples of {uri} were forgotten meanwhile"
            for rival in self.cells.get((stream, input_), ()):
                if rival.seq <= planned_seq or rival.end <= start or end <= rival.start:
                    continue
                if rival.recipe == recipe or not entry.replaces:
                    return f"another run committed cells of {uri}"
                if rival.start < start or end < rival.end:
                    return f"another run committed cells of {uri} that this would hide in part"
            for version, seq in self.versions.get((stream, place), {}).items():
                if seq > planned_seq and version != input_:
                    return f"another run committed another version of {uri}"
            if entry.parent is not None and self._parent_moved(
                (entry.parent, input_), start, end, planned_seq
            ):
                return f"another run committed its parent's cells of {uri} anew"
        return None

    def _parent_moved(
        self, place: tuple[str, bytes], start: int, end: int, planned_seq: int
    ) -> bool:
        """A child goes by the rows of its parent that are valid when it is committed."""
        return any(
            rival.seq > planned_seq and rival.start < end and start < rival.end
            for rival in self.cells.get(place, ())
        )


class _Group:
    """The entries of one commit must not cover a cell twice, nor two versions of one place."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, bytes], list[tuple[int, int]]] = {}
        self._versions: dict[tuple[str, bytes], bytes] = {}

    def conflict(self, entry: Entry, claims: Sequence[_Claim]) -> str | None:
        stream = entry.result.stream
        for input_, place, start, end, uri in claims:
            if self._versions.get((stream, place), input_) != input_:
                return f"the same commit holds another version of {uri}"
            for other_start, other_end in self._spans.get((stream, input_), ()):
                if other_start < end and start < other_end:
                    return f"the same commit covers these cells of {uri}"
        return None

    def add(self, entry: Entry, claims: Sequence[_Claim]) -> None:
        stream = entry.result.stream
        for input_, place, start, end, _ in claims:
            self._versions[stream, place] = input_
            self._spans.setdefault((stream, input_), []).append((start, end))


def _claims(entry: Entry) -> list[_Claim]:
    return [(s.input.id, s.input.source, s.start, s.end, s.input.uri) for s in entry.unit.spans]


def _written(entry: Entry) -> int:
    return sum(hash(shard.path) for shard in entry.result.shards)
