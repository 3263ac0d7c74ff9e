"""What travels between driver and workers: inputs, cells, work units, tasks and their results.

Everything here is a frozen, picklable record with no behaviour beyond arithmetic.

Spans. A span is a half-open range of *bytes of the input object*, whatever its format: a JSONL
line belongs to the span that holds its first byte, a Parquet row group to the span that holds its
first byte, an archive or a compressed file is never cut. So planning never opens an input. An
empty object has the extent 1, so that it too has a cell to cover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tokenmill.schemas.identity import input_id, source_id, unit_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One object of a multi-object input (`format: files` groups by stem)."""

    suffix: str  # without the dot: "jpg", "txt"
    version: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One listed object and its version: etag or version id; local size, mtime_ns and inode.

    With `format: files`, `uri` is the stem and `parts` its objects, sorted by suffix
    (the object of a part is `f"{uri}.{suffix}"`).
    `root` is the listed prefix: keys are relative to it.
    """

    uri: str  # canonical
    version: str
    size: int
    root: str = ""
    parts: tuple[Part, ...] = ()
    # what the identity mode lets into the id: the version, a content hash, or "" (path)
    identity: str | None = None

    @property
    def id(self) -> bytes:
        return input_id(self.uri, self.version if self.identity is None else self.identity)

    @property
    def source(self) -> bytes:
        return source_id(self.uri)

    @property
    def extent(self) -> int:
        return max(self.size, 1)

    @property
    def key(self) -> str:
        """The path below the listed root: what people see."""
        relative = self.uri[len(self.root) :] if self.uri.startswith(self.root) else self.uri
        return relative.lstrip("/") or self.uri.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Bytes [start, end) of one input: with a pipeline, a stream and a recipe it is a *cell*."""

    input: Input
    start: int
    end: int

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.end == self.input.extent


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkUnit:
    """A planned slice of a source, the unit of retry. All its tasks enumerate the same samples."""

    pipeline: str
    spans: tuple[Span, ...]

    @property
    def id(self) -> bytes:
        return unit_id(self.pipeline, ((s.input.id, s.start, s.end) for s in self.spans))

    @property
    def size(self) -> int:
        return sum(s.end - s.start for s in self.spans)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentFile:
    """One committed shard file of a parent stream: its place in the store and its rows."""

    path: str
    first_row: int  # number of its first row within (unit, stream)
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentRows:
    """What a child stream reads instead of the source: committed rows of one (unit, stream).

    unit: the parent's; the child's has the same spans, or those of them that are still valid.
    spans: for each span of the child's unit, first row and number of rows.
    """

    stream: str
    space: str
    recipe: str
    unit: bytes
    files: tuple[ParentFile, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """(unit, stream) under one attempt token; `recipe` is the plan's and the worker must agree.

    parent: the rows that a child stream reads; None for a stream that reads the source.
    isolate: sample ids that an earlier attempt died on or beside: each is encoded alone.
    condemned: sample id -> (reason, message): quarantined without being touched again.
    tolerate: error strings (`Quarantine.error`) found to be the samples' own fault: however many
        of them come, the worker goes on instead of calling it a systematic fault.
    """

    unit: WorkUnit
    stream: str
    recipe: str
    attempt: int
    run: str
    isolate: frozenset[bytes] = frozenset()
    condemned: Mapping[bytes, tuple[str, str]] = field(default_factory=dict)
    tolerate: frozenset[str] = frozenset()
    parent: ParentRows | None = None

    @property
    def name(self) -> tuple[bytes, str]:
        return self.unit.id, self.stream


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One written shard file, not yet visible: the ledger makes it so."""

    path: str  # relative to the store's root
    first_row: int  # number of its first row within (unit, stream)
    rows: int  # one per enumerated sample
    samples: int  # rows with tokens
    tokens: int
    size: int  # bytes
    content_hash: bytes  # SHA-256 over (sample id, dtype, shape, ids), see schemas/shard.py
    encoding: str  # plain | zstd | packed
    written_at: float  # store's clock, Unix seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one task covered of one input, and where its rows lie within (unit, stream)."""

    span: Span
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine:
    """One sample (or, with `sample` None, one input) that has no tokens, and why."""

    sample: bytes | None
    key: str
    source: str
    row: int | None  # row within (unit, stream); None for an input-level row
    reason: str
    message: str
    stage: str  # read | prepare | encode | join
    error: str = ""  # exception type and the line that raised it: groups systematic faults


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskStats:
    """Seconds of wall time by activity, and bytes in; `wait` is the encoder starving."""

    read: float = 0.0
    prepare: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    wait: float = 0.0
    wall: float = 0.0
    bytes_read: int = 0
    batches: int = 0  # of windows; a text tokenizer has none
    filled: float = 0.0  # sum over these of the share of the budget that they used
    gpu_bytes: int = 0  # the worker's peak so far


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """All the driver must know of a finished task: O(inputs + quarantined), never O(samples).

    enumerated = tokens + quarantined + absent is checked here and in the commit (G1).
    """

    unit: bytes
    stream: str
    attempt: int
    recipe: str
    space: str
    shards: tuple[ShardFile, ...]
    cells: tuple[Cell, ...]
    enumerated: int
    with_tokens: int
    absent: int
    tokens: int
    quarantined: tuple[Quarantine, ...]  # sample-level
    input_faults: tuple[Quarantine, ...]  # input-level, outside G1's equation
    order_hash: bytes  # 16 bytes over the unit's ordered sample ids: guards alignment of streams
    stats: TaskStats = TaskStats()
    notes: tuple[str, ...] = ()  # e.g. why the fast engine was not used

    def __post_init__(self) -> None:
        total = self.with_tokens + len(self.quarantined) + self.absent
        if total != self.enumerated:
            raise ValueError(
                f"G1: {self.enumerated} samples enumerated, but {self.with_tokens} with tokens + "
                f"{len(self.quarantined)} quarantined + {self.absent} absent = {total}"
            )

    def as_parent(self) -> ParentRows:
        """Where a child finds these rows, once they are committed."""
        return ParentRows(
            stream=self.stream,
            space=self.space,
            recipe=self.recipe,
            unit=self.unit,
            files=tuple(
                ParentFile(path=s.path, first_row=s.first_row, rows=s.rows) for s in self.shards
            ),
            spans=tuple((cell.first_row, cell.rows) for cell in self.cells),
        )


class FailureClass(StrEnum):
    """What a failure may cost (design section 3)."""

    WORKER = "worker"  # the process died, its node lives: one of the attempts
    PLACE = "place"  # node lost, preempted, drained: never an attempt
    STORE = "store"  # pause with back-off, never a verdict
    INPUT_CHANGED = "input-changed"  # back to planning
    SYSTEMATIC = "systematic"  # the same fault again and again: find out whose it is
    JOB = "job"  # the user's: stop, exit 2
    PROGRAM = "program"  # ours: stop, exit 70


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFailure:
    """Why a task has no result. `in_flight`: sample ids that native code held when it died."""

    unit: bytes
    stream: str
    attempt: int
    kind: FailureClass
    message: str
    in_flight: tuple[bytes, ...] = ()
    changed: tuple[str, ...] = ()  # URIs, with INPUT_CHANGED
    error: Exception | None = None
    exit_code: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
