"""How these tests read a source: everything of every input, flattened to rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.samples import SampleBatch, SpanDone
from tokenmill.schemas.work import Input, Quarantine, Span
from tokenmill.workers.sources import open_source


def config(uri: str | Path | list[str], format: str, **settings: Any) -> SourceConfig:
    where = uri if isinstance(uri, list) else str(uri)
    return SourceConfig.model_validate({"uri": where, "format": format, **settings})


@dataclass(frozen=True, kw_only=True)
class Row:
    id: bytes
    key: str
    values: dict[str, Any]  # a SampleError stands as ("!", reason)
    fault: str | None


@dataclass(kw_only=True)
class Read:
    rows: list[Row] = field(default_factory=list)
    done: list[SpanDone] = field(default_factory=list)
    batches: list[SampleBatch] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        return [row.key for row in self.rows]

    @property
    def faults(self) -> list[Quarantine]:
        return [done.fault for done in self.done if done.fault is not None]

    def values(self, name: str) -> list[Any]:
        return [row.values[name] for row in self.rows]

    def verdicts(self, name: str) -> list[Any]:
        """One value a row: the whole sample's fault comes first."""
        return [("!", row.fault) if row.fault else row.values[name] for row in self.rows]


def whole(input_: Input) -> Span:
    return Span(input=input_, start=0, end=input_.extent)


def plain(value: Any) -> Any:
    return ("!", value.reason) if isinstance(value, SampleError) else value


def read_spans(config: SourceConfig, spans: Iterable[Span], fields: Sequence[str]) -> Read:
    read = Read()
    for item in open_source(config).read(list(spans), fields):
        if isinstance(item, SpanDone):
            read.done.append(item)
            continue
        read.batches.append(item)
        assert set(item.fields) == set(fields)
        for n, (id_, key) in enumerate(zip(item.ids, item.keys, strict=True)):
            values = {name: plain(item.fields[name][n]) for name in fields}
            fault = item.faults[n].reason if n in item.faults else None
            read.rows.append(Row(id=id_, key=key, values=values, fault=fault))
    return read


def read_all(config: SourceConfig, *fields: str) -> Read:
    return read_spans(config, map(whole, open_source(config).list()), fields)


def cut(input_: Input, cuts: Iterable[int]) -> list[Span]:
    """[0, extent) of `input_` cut at `cuts`."""
    edges = sorted({0, input_.extent, *(c % (input_.extent + 1) for c in cuts)})
    return [Span(input=input_, start=a, end=b) for a, b in pairwise(edges)]
