"""The raw data of a schedule: files with versions and samples, and what their tokens must be."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.work import Input, Span

ROOT = "/raw"
SAMPLE_BYTES = 10
# good; one that the tokenizer refuses; one that kills its process; one without the field of b
GOOD, REFUSED, KILLS, ABSENT = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One enumerated sample of one stream, and its verdict."""

    sample: bytes
    key: str
    verdict: str  # tokens | a quarantine reason | absent
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One version of one file. cut: an archive that ends after so many samples."""

    uri: str
    version: int
    kinds: tuple[int, ...]
    splittable: bool
    cut: int | None = None

    def input(self) -> Input:
        size = SAMPLE_BYTES * len(self.kinds)
        return Input(uri=self.uri, version=f"v{self.version}", size=size, root=ROOT)

    def indices(self, start: int, end: int) -> range:
        """The samples whose first byte lies in [start, end)."""
        last = len(self.kinds) if self.cut is None else min(self.cut, len(self.kinds))
        return range(min(-(-start // SAMPLE_BYTES), last), min(-(-end // SAMPLE_BYTES), last))


@dataclass
class Corpus:
    """A folder that people change while runs read it. changes: uri -> how often."""

    files: dict[str, File] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    versions: int = 0

    def write(
        self, uri: str, kinds: Sequence[int], *, splittable: bool, cut: int | None = None
    ) -> None:
        self.versions += 1
        self.put(
            File(
                uri=uri,
                version=self.versions,
                kinds=tuple(kinds),
                splittable=splittable,
                cut=cut,
            )
        )

    def put(self, file: File) -> None:
        self.files[file.uri] = file
        self.changes[file.uri] = self.changes.get(file.uri, 0) + 1

    def delete(self, uri: str) -> None:
        del self.files[uri]
        self.changes[uri] += 1

    def inputs(self) -> Iterator[Input]:
        for uri in sorted(self.files):
            yield self.files[uri].input()


class CorpusSource:
    """What Session needs of a source."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def list(self) -> Iterator[Input]:
        return self._corpus.inputs()

    def splittable(self, input_: Input) -> bool:
        # by name, as formats are
        return input_.uri.endswith(".txt")


def verdict(file: File, index: int, stream: str, revision: int) -> Row:
    """What an undisturbed run says of one sample: the simulator's oracle."""
    if stream == "c":
        return of_parent(verdict(file, index, "a", revision))
    kind = file.kinds[index]
    name = {GOOD: "tokens", REFUSED: "refused", KILLS: "process-died", ABSENT: "tokens"}[kind]
    if kind == ABSENT and stream == "b":
        name = "absent"
    seed = zlib.crc32(f"{file.uri} {file.version} {index} {stream} {revision}".encode())
    tokens = (seed & 0xFFFF, seed >> 16, index)[: 1 + seed % 3] if name == "tokens" else ()
    return Row(sample=sample_ids(file.uri)(str(index)), key=str(index), verdict=name, tokens=tokens)


def of_parent(row: Row) -> Row:
    """What the child stream makes of one row of its parent."""
    if row.verdict == "tokens":
        return replace(row, tokens=tuple(2 * token for token in row.tokens))
    return row if row.verdict == "absent" else replace(row, verdict="parent-quarantined")


def enumerate_span(file: File, span: Span, stream: str, revision: int) -> list[Row]:
    return [verdict(file, i, stream, revision) for i in file.indices(span.start, span.end)]
