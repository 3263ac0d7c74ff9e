"""Questions people ask a manifest, each a file `NAME.sql` beside this one, asked by name.

A question's file begins with comments that say what it answers and what it takes:

    -- Tokens by modality, source and day.
    -- pipeline?: only this pipeline            may be left out
    -- timezone = UTC: whose days               has a default
    -- before (snapshot): a tag or a hash       its shards are the relation `before_shards`
    -- one of: path, sample, key                at least one must be given
    -- reads: samples                           the relation `samples` (store/samples.py)

Beside the views of store/views.py a question may read their private relations. Values reach
DuckDB as parameters only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pyarrow as pa

from tokenmill.schemas.errors import JobError
from tokenmill.schemas.job import nearest
from tokenmill.store.access import Access
from tokenmill.store.dataset import Dataset, open_store
from tokenmill.store.query import run_sql
from tokenmill.store.samples import samples_reader
from tokenmill.store.snapshot import tags

_PARAMETER = re.compile(r"(\w+)(\?)?(?: \((\w+)\))?(?: = (.*?))?: (.*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    name: str
    what: str
    optional: bool = False
    default: str | None = None
    kind: str = "text"  # text | snapshot

    @property
    def shown(self) -> str:
        """`pipeline?`, `timezone=UTC`, `before`."""
        return f"{self.name}={self.default}" if self.default else self.name + "?" * self.optional


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    name: str
    what: str
    sql: str
    parameters: tuple[Parameter, ...] = ()
    one_of: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()  # samples, content


@cache
def questions() -> Mapping[str, Question]:
    """All of them, by name."""
    here = resources.files(__name__)
    files = sorted(
        (f for f in here.iterdir() if f.name.endswith(".sql")), key=lambda file: file.name
    )
    found = [parse(f.name.removesuffix(".sql"), f.read_text(encoding="utf-8")) for f in files]
    return {question.name: question for question in found}


def parse(name: str, text: str) -> Question:
    """The question in a file's text. Raises ValueError: our own files are at fault."""
    comments: list[str] = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        comments.append(line.removeprefix("--").strip())
    what, *rest = comments
    parameters: list[Parameter] = []
    one_of: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    for line in rest:
        label, _, words = line.partition(": ")
        names = tuple(word.strip() for word in words.split(","))
        if label == "one of":
            one_of = names
        elif label == "reads":
            reads = frozenset(names)
        elif (match := _PARAMETER.fullmatch(line)) is not None:
            of, optional, kind, default, meaning = match.groups()
            parameters.append(
                Parameter(
                    name=of,
                    what=meaning,
                    optional=optional is not None,
                    default=default,
                    kind=kind or "text",
                )
            )
        else:
            raise ValueError(f"{name}.sql: {line!r} is no parameter")
    return Question(
        name=name,
        what=what,
        sql=text,
        parameters=tuple(parameters),
        one_of=one_of,
        reads=reads,
    )


def ask(dataset: Dataset, name: str, values: Mapping[str, str] | None = None) -> pa.Table:
    """The answer of the question `name` over a dataset's snapshot and its ledger.

    values: its parameters, as text. Raises JobError for an unknown name or parameter, for one
    that is missing and for a value that is not of its kind.
    """
    question = _known(name)
    given = _complete(question, values or {})
    tables: dict[str, Any] = {}
    for parameter in question.parameters:
        if parameter.kind == "snapshot":
            other = _snapshot(dataset, str(given.pop(parameter.name)))
            tables[f"{parameter.name}_shards"] = other.snapshot_table()
    if "samples" in question.reads:
        tables["samples"] = samples_reader(
            dataset,
            path=given.get("path"),
            pipeline=given.get("pipeline"),
            stream=given.get("stream"),
            content="content" in question.reads,
        )
    return run_sql(dataset, question.sql, given, tables=tables)


def _known(name: str) -> Question:
    known = questions()
    if name not in known:
        raise JobError(
            f"there is no question {name!r}{nearest(name, known)}",
            remedy="`tokenmill query --questions` lists them",
        )
    return known[name]


def _complete(question: Question, values: Mapping[str, str]) -> dict[str, str | None]:
    """Every parameter with its value, its default, or None where it may be left out."""
    names = [p.name for p in question.parameters]
    for name in values:
        if name not in names:
            raise JobError(
                f"the question {question.name} takes no {name!r}{nearest(name, names)}",
                remedy=f"it takes: {', '.join(p.shown for p in question.parameters) or 'nothing'}",
            )
    if question.one_of and not any(name in values for name in question.one_of):
        wanted = " or ".join(question.one_of)
        raise JobError(
            f"the question {question.name} must know {wanted}",
            remedy=f"--with {question.one_of[0]}=…",
        )
    for parameter in question.parameters:
        if parameter.name not in values and parameter.default is None and not parameter.optional:
            raise JobError(
                f"the question {question.name} must know {parameter.name}",
                why=parameter.what,
                remedy=f"--with {parameter.name}=…",
            )
    return {p.name: values.get(p.name, p.default) for p in question.parameters}


def _snapshot(dataset: Dataset, name: str) -> Dataset:
    """Another snapshot of the same store, by its tag or by its hash."""
    if name in tags(Access(dataset.uri)):
        return open_store(dataset.uri, tag=name, pin=False)
    return open_store(dataset.uri, snapshot=name, pin=False)
