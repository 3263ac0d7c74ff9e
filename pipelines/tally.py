"""What the committed tasks of a run cost, and what bounded it. Pure arithmetic.

Workers report seconds by activity; the encoder of a worker takes one batch at a time, so the
seconds that it starved (`wait`) say whether decoding kept up. Listing happens on the driver, before
the first task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tokenmill.schemas.work import TaskResult, TaskStats

ACTIVITIES = ("read", "prepare", "encode", "write")
# What people call them; reading a source is part of getting samples decoded.
_WORDS = {"read": "decoding", "prepare": "decoding", "encode": "encoding", "write": "writing"}


@dataclass(kw_only=True)
class StreamTally:
    """Sums over the committed tasks of one (pipeline, stream)."""

    tasks: int = 0
    samples: int = 0  # enumerated
    with_tokens: int = 0
    tokens: int = 0
    stored: int = 0  # bytes of shard files
    read: int = 0  # bytes of the source
    covered: int = 0  # bytes of the committed cells: what the plan counted
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    reasons: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    batches: int = 0
    filled: float = 0.0  # sum over batches of the share of the budget that they used
    gpu_bytes: int = 0  # the highest peak of a worker

    def add(self, result: TaskResult) -> None:
        self.tasks += 1
        self.samples += result.enumerated
        self.with_tokens += result.with_tokens
        self.tokens += result.tokens
        self.stored += sum(shard.size for shard in result.shards)
        self.covered += sum(cell.span.end - cell.span.start for cell in result.cells)
        self._add_stats(result.stats)
        for fault in (*result.quarantined, *result.input_faults):
            self.reasons[fault.reason] += 1

    def _add_stats(self, stats: TaskStats) -> None:
        self.read += stats.bytes_read
        for name in (*ACTIVITIES, "wait", "wall"):
            self.seconds[name] += getattr(stats, name)
        self.batches += stats.batches
        self.filled += stats.filled
        self.gpu_bytes = max(self.gpu_bytes, stats.gpu_bytes)

    @property
    def batch_fill(self) -> float | None:
        """Share of the batch budget that was used, on average; None where there are no batches."""
        return self.filled / self.batches if self.batches else None


@dataclass(kw_only=True)
class Tally:
    streams: dict[tuple[str, str], StreamTally] = field(
        default_factory=lambda: defaultdict(StreamTally)
    )

    def add(self, pipeline: str, results: Iterable[TaskResult]) -> None:
        for result in results:
            self.streams[pipeline, result.stream].add(result)

    def seconds(self) -> Mapping[str, float]:
        """By activity, over all streams."""
        total: dict[str, float] = defaultdict(float)
        for stream in self.streams.values():
            for name, value in stream.seconds.items():
                total[name] += value
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """by: decoding | encoding | writing | listing | starting, or "" where nothing was done.

    shares: of the workers' busy seconds, by word; they sum up to 1. starved: share of the encoders'
    time in which they had nothing to encode.
    """

    by: str
    shares: Mapping[str, float] = field(default_factory=dict)
    starved: float = 0.0

    def __str__(self) -> str:
        if not self.by:
            return "nothing was done"
        parts = [f"{word} {share:.0%}" for word, share in self.shares.items()]
        text = ", ".join(parts)
        if self.by in ("listing", "starting"):
            return f"{self.by}, before the first task" + (f" (then {text})" if text else "")
        return f"{self.by} (of the workers' time: {text}; encoders waited {self.starved:.0%})"


def bound_by(tally: Tally, *, listing: float, starting: float, working: float) -> Bound:
    """What to make faster first. listing, starting (listing included), working: wall seconds of
    the run's parts on the driver."""
    seconds = tally.seconds()
    by_word: dict[str, float] = defaultdict(float)
    for name in ACTIVITIES:
        by_word[_WORDS[name]] += seconds.get(name, 0.0)
    busy = sum(by_word.values())
    shares = {word: spent / busy for word, spent in by_word.items()} if busy > 0 else {}
    encoder = seconds.get("encode", 0.0) + seconds.get("wait", 0.0)
    starved = seconds.get("wait", 0.0) / encoder if encoder > 0 else 0.0
    if not tally.streams:
        by = ""
    elif starting > working:
        by = "listing" if listing > starting / 2 else "starting"
    else:
        by = max(shares, key=lambda word: shares[word]) if shares else "starting"
    return Bound(by=by, shares=shares, starved=starved)
