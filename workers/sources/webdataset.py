"""WebDataset: tar archives whose consecutive members of one key are one sample.

Of a member `train/000001.seg.png` the key is `train/000001` (up to the first dot of the base
name; a leading `./` is dropped) and the field `seg.png`, lower-case; a member without a dot is the
field "". Hidden members (base name with a leading dot) and folders are passed over. Values are
bytes. Only the fields that are asked for are read, all else is sought past. Archives may be
.tar.gz, .tgz, .tar.zst.

Sample locator: the key, and its ordinal where the key comes again: a key that is not next to its
first sample, or a field that the sample has already, begins a new sample (`key#2`). A sample with a
link, a device, a sparse file or a name that leaves the archive is a fault (`unsafe-member`); so is
the last sample of an archive that is cut (`truncated`): what is missing of it cannot be known.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.samples import SampleBatch
from tokenmill.schemas.work import Input, Span
from tokenmill.workers.sources.base import BATCH_BYTES, BATCH_ROWS, FormatSource, clean_key
from tokenmill.workers.sources.bounded import Damaged, byte_stream, compression
from tokenmill.workers.sources.objects import open_input
from tokenmill.workers.sources.tar import Member, TarWalk

# A sample has a handful of members; only an archive made to hurt has more.
_MEMBERS = 4096
_MEMBERS_FOR_FIELDS = 200


@dataclass(kw_only=True, slots=True)
class _Sample:
    """The sample that is being gathered."""

    key: str
    ordinal: int
    values: dict[str, Any] = field(default_factory=dict)
    names: set[int] = field(default_factory=set)  # hashes of all its field names
    size: int = 0
    fault: SampleError | None = None

    @property
    def shown(self) -> str:
        return self.key if self.ordinal == 1 else f"{self.key}#{self.ordinal}"

    @property
    def locator(self) -> str:
        # no member's name holds a zero byte: `a#2` and the second `a` stay apart
        return self.key if self.ordinal == 1 else f"{self.key}\0{self.ordinal}"


class WebDatasetSource(FormatSource):
    """`format: webdataset`."""

    suffixes = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst")
    compressible = True

    def fields(self, input_: Input) -> Sequence[str]:
        """The field names of the first two hundred members, in order of appearance."""
        found: dict[str, None] = {}
        try:
            with open_input(input_, buffered=True) as raw:
                walk = TarWalk(byte_stream(raw, compression(input_.uri), input_.size))
                for member in islice(walk, _MEMBERS_FOR_FIELDS):
                    if not _passed_over(member):
                        found[_split(member.name)[1]] = None
        except Damaged:
            pass  # reading will say so; the names before the damage are still of use
        return list(found)

    def _samples(self, index: int, span: Span, fields: Sequence[str]) -> Iterator[SampleBatch]:
        input_ = span.input
        batch = _Batch(index, input_, fields)
        with open_input(input_, buffered=True) as raw:
            walk = TarWalk(byte_stream(raw, compression(input_.uri), input_.size))
            damage = None
            gathering = _Gathering(self, walk, input_, fields)
            try:
                for sample in gathering:
                    batch.add(sample)
                    if batch.full:
                        yield batch.take()
            except Damaged as error:
                damage = error
            if gathering.open is not None:
                if damage is not None and not walk.ended:
                    gathering.open.fault = SampleError(
                        damage.reason, damage.message, where=f"{input_.uri}, {gathering.open.shown}"
                    )
                batch.add(gathering.open)
            if batch.samples:
                yield batch.take()
            if damage is not None:
                raise damage


class _Gathering:
    """Members to samples. The sample that is still open when the walk ends or breaks is `open`."""

    def __init__(
        self, source: WebDatasetSource, walk: TarWalk, input_: Input, fields: Sequence[str]
    ) -> None:
        self.open: _Sample | None = None
        self._limit = source.config.max_sample_bytes
        self._source = source
        self._walk = walk
        self._uri = input_.uri
        self._wanted = {name.lower(): name for name in fields}
        # 64-bit hashes instead of names: a million samples are tens of megabytes, not hundreds
        self._seen: set[int] = set()
        self._again: dict[int, int] = {}

    def __iter__(self) -> Iterator[_Sample]:
        for member in self._walk:
            if _passed_over(member):
                continue
            key, name = _split(member.name)
            if self.open is None or not self._belongs(self.open, key, name):
                done, self.open = self.open, None
                if done is not None:
                    yield done
                self.open = _Sample(key=key, ordinal=self._ordinal(key))
            self._add(self.open, member, name)

    def _belongs(self, sample: _Sample, key: str, name: str) -> bool:
        return sample.key == key and hash(name) not in sample.names

    def _ordinal(self, key: str) -> int:
        mark = hash(key)
        if mark not in self._seen:
            self._seen.add(mark)
            return 1
        self._again[mark] = self._again.get(mark, 1) + 1
        return self._again[mark]

    def _add(self, sample: _Sample, member: Member, name: str) -> None:
        where = f"{self._uri}, {clean_key(member.name)}"
        if member.unsafe is not None:
            sample.fault = sample.fault or SampleError(
                "unsafe-member", f"the archive has {member.unsafe}", where=where
            )
        elif len(sample.names) >= _MEMBERS:
            sample.fault = sample.fault or SampleError(
                "too-large", f"more than {_MEMBERS:,} members of one key", where=where
            )
        elif name in self._wanted:
            if member.size > self._limit:
                value: Any = self._source._too_large(member.size, where)
            else:
                value = self._walk.read()
                sample.size += len(value)
            sample.values[self._wanted[name]] = value
        if len(sample.names) < _MEMBERS:
            sample.names.add(hash(name))


class _Batch:
    """Samples on their way into a SampleBatch."""

    def __init__(self, index: int, input_: Input, fields: Sequence[str]) -> None:
        self.samples: list[_Sample] = []
        self._index = index
        self._fields = fields
        self._size = 0
        self._sample_id = sample_ids(input_.uri)

    @property
    def full(self) -> bool:
        return len(self.samples) >= BATCH_ROWS or self._size >= BATCH_BYTES

    def add(self, sample: _Sample) -> None:
        if sample.fault is not None:
            sample.values.clear()
        self.samples.append(sample)
        self._size += sample.size

    def take(self) -> SampleBatch:
        samples, size = self.samples, self._size
        self.samples, self._size = [], 0
        return SampleBatch(
            span=self._index,
            ids=[self._sample_id(sample.locator) for sample in samples],
            keys=[clean_key(sample.shown) for sample in samples],
            fields={name: [s.values.get(name) for s in samples] for name in self._fields},
            faults={n: s.fault for n, s in enumerate(samples) if s.fault is not None},
            bytes_read=size,
        )


def _passed_over(member: Member) -> bool:
    return member.unsafe is None and posixpath.basename(member.name).startswith(".")


def _split(name: str) -> tuple[str, str]:
    """(key, field) of a member's path."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()
