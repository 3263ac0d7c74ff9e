"""Videos cut into clips where samples are enumerated, so that all streams see the same spans.

Wraps the source of any format. Cutting runs in a killable child that opens local files by itself;
an object of an object store is copied to a local file first, and a value out of an archive too.
So memory holds a clip, not a video.

Clip key: `KEY@START-END` in seconds from the first frame, to the millisecond; `span` is
"START/END"; the sample id is a hash of the video's sample id and the span. What lies behind damage
is one more row, with the fault.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import clip_id
from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.samples import SampleBatch, Source, SpanDone
from tokenmill.schemas.tokenizer import Window
from tokenmill.schemas.work import Input, Span
from tokenmill.workers.child import ChildLimits, ForkServer
from tokenmill.workers.children import ChildPool
from tokenmill.workers.faults import Fault
from tokenmill.workers.sources.files import FilesSource, part_uri
from tokenmill.workers.sources.objects import Opened, blocks

MADE = ("video", "audio")  # the fields of a clip
BATCH_BYTES = 8 << 20
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _File:
    """A local media file; `again` compares it with the planned version once it has been read."""

    path: Path
    again: Opened | None = None
    copy: bool = False


class _Videos(FilesSource):
    """`format: files` whose video field is a local file instead of its bytes, of any size."""

    def __init__(self, config: SourceConfig, video: str) -> None:
        super().__init__(config)
        self._video = video

    def _value(self, input_: Input, name: str) -> Any:
        parts = [part for part in input_.parts if part.suffix.lower() == name.lower()]
        if name.lower() != self._video.lower() or len(parts) != 1:
            return super()._value(input_, name)
        uri, version = part_uri(input_, parts[0]), parts[0].version
        with Opened(uri, version, root=input_.root) as raw:
            if "://" not in uri:
                return _File(Path(uri), again=Opened(uri, version, root=input_.root))
            with _scratch() as file:
                for block in blocks(raw, _COPY_BYTES):
                    file.write(block)
        return _File(Path(file.name), copy=True)


@dataclass(slots=True)
class _Clips:
    """Clips on their way into a SampleBatch."""

    span: int
    fields: Sequence[str]
    ids: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    spans: list[str | None] = field(default_factory=list)
    values: list[Mapping[str, Any]] = field(default_factory=list)
    faults: dict[int, SampleError] = field(default_factory=dict)
    size: int = 0

    def add(self, id_: bytes, key: str, span: str | None, values: Mapping[str, Any]) -> None:
        self.ids.append(id_)
        self.keys.append(key)
        self.spans.append(span)
        self.values.append(values)
        self.size += sum(len(v) for v in values.values() if isinstance(v, (bytes, str)))

    def fault(self, id_: bytes, key: str, error: SampleError) -> None:
        self.faults[len(self.ids)] = error
        self.add(id_, key, None, {})

    def take(self) -> SampleBatch:
        batch = SampleBatch(
            span=self.span,
            ids=self.ids,
            keys=self.keys,
            fields={name: [v.get(name) for v in self.values] for name in self.fields},
            faults=self.faults,
            spans=self.spans,
            bytes_read=self.size,
        )
        self.ids, self.keys, self.spans, self.values = [], [], [], []
        self.faults, self.size = {}, 0
        return batch


class ClipSource:
    """A `schemas.samples.Source` over the clips of another one's videos."""

    def __init__(self, config: SourceConfig, inner: Source) -> None:
        assert config.clips is not None
        self._clips = config.clips
        self._inner = _Videos(config, config.clips.field) if config.format == "files" else inner

    def list(self) -> Iterator[Input]:
        return self._inner.list()

    def splittable(self, input_: Input) -> bool:
        return self._inner.splittable(input_)

    def fields(self, input_: Input) -> Sequence[str]:
        return [*MADE, *self._inner.fields(input_)]

    def read(
        self, spans: Sequence[Span], fields: Sequence[str]
    ) -> Iterator[SampleBatch | SpanDone]:
        """Raises TokenizerError where PyAV is not installed."""
        from tokenmill.workers.media.clips import ClipCutter  # noqa: PLC0415 - PyAV is an extra

        others = [name for name in fields if name not in MADE and name != self._clips.field]
        want = tuple(name for name in fields if name in MADE)
        with ExitStack() as stack:
            server = stack.enter_context(closing(ForkServer((ClipCutter.__module__,))))
            cutter = ClipCutter(clips=self._clips)
            pool: ChildPool[None] = ChildPool(server, cutter, count=1, limits=ChildLimits())
            stack.callback(pool.close)
            events = self._inner.read(spans, [self._clips.field, *others])
            for event in events:
                if isinstance(event, SpanDone):
                    yield event
                    continue
                clips = _Clips(event.span, fields)
                for place in range(len(event)):
                    for _ in self._cut(pool, event, place, want, clips):
                        if clips.size >= BATCH_BYTES:
                            yield clips.take()
                if clips.ids:
                    yield clips.take()

    def _cut(
        self,
        pool: ChildPool[None],
        batch: SampleBatch,
        place: int,
        want: Sequence[str],
        clips: _Clips,
    ) -> Iterator[None]:
        """Adds the clips of one video; a step after each, for the caller to empty `clips`."""
        id_, key = batch.ids[place], batch.keys[place]
        media = batch.fields[self._clips.field][place]
        if place in batch.faults or isinstance(media, SampleError):
            clips.fault(id_, key, batch.faults.get(place) or media)
            return
        carried = {
            name: values[place]
            for name, values in batch.fields.items()
            if name in clips.fields and name != self._clips.field
        }
        if media is None:  # no video: one sample with what else there is
            clips.add(id_, key, None, carried)
            return
        with _local(media) as file:
            sent = iter([(None, {"path": str(file.path), "want": want}, 0)])
            for _, event in pool.windows(sent):
                if isinstance(event, Window) and "start" in event.meta:
                    _add(clips, id_, key, event, carried)
                    yield
                elif isinstance(event, Fault):
                    why = SampleError(event.reason, event.message)
                    clips.fault(clip_id(id_, "damage"), f"{key}@damage", why)


def _add(clips: _Clips, id_: bytes, key: str, window: Window, carried: Mapping[str, Any]) -> None:
    start, end = f"{window.meta['start']:.3f}", f"{window.meta['end']:.3f}"
    span = f"{start}/{end}"
    made = {name: array.tobytes() for name, array in window.arrays.items()}
    clips.add(clip_id(id_, span), f"{key}@{start}-{end}", span, {**carried, **made})


class _local:
    """Context manager: the media as a local file, and no copy left behind."""

    def __init__(self, media: _File | bytes) -> None:
        if isinstance(media, bytes):
            with _scratch() as file:
                file.write(media)
            media = _File(Path(file.name), copy=True)
        self._file = media

    def __enter__(self) -> _File:
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file.copy:
            self._file.path.unlink(missing_ok=True)
        elif self._file.again is not None and kind is None:
            with self._file.again:  # raises InputChanged where it is another file by now
                pass


def _scratch() -> Any:
    return tempfile.NamedTemporaryFile(prefix="tokenmill-clip-", delete=False)
