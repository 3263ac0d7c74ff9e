"""A snapshot as a Ray Data dataset: the edge where Ray Data belongs (design, section 3).

The snapshot is pinned on the driver; read tasks are runs of whole shard files, of about equal size,
and every block has the streams of its samples side by side. `tokenmill.ray_dataset` is the door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from tokenmill.store.dataset import Dataset, StreamType
from tokenmill.store.parts import Part
from tokenmill.store.sample_tables import samples_record, samples_schema

ROW_BYTES = 128  # id, key, source, pipeline in memory, near enough


def read(dataset: Dataset, options: Mapping[str, Any]) -> ray.data.Dataset:
    """options: of `ray.data.read_datasource`. Raises SpaceMismatch, JobError."""
    found: ray.data.Dataset = ray.data.read_datasource(SnapshotDatasource(dataset), **options)
    return found


class SnapshotDatasource(ray.data.Datasource):
    """One pinned snapshot, or a choice of it, with the columns of sample_tables.py."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        dataset.check_spaces()
        self._types = dataset.stream_types()
        self._schema = samples_schema(dataset, self._types)
        self._parts = dataset.parts()
        table = dataset.snapshot_table()
        tokens = zip(table["path"].to_pylist(), table["tokens"].to_pylist(), strict=True)
        widths = zip(table["path"].to_pylist(), table["stream"].to_pylist(), strict=True)
        itemsize = {path: self._types[stream].dtype.itemsize for path, stream in widths}
        self._bytes = {path: count * itemsize[path] for path, count in tokens}

    def get_name(self) -> str:
        return "TokenmillSnapshot"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all ids, and a little for every sample."""
        return sum(self._size(part) for part in self._parts)

    def _size(self, part: Part) -> int:
        files = {f.path: f.rows for files in part.piece.files.values() for f in files}
        share = (part.piece.rows / max(rows, part.piece.rows, 1) for rows in files.values())
        ids = sum(self._bytes[path] * s for path, s in zip(files, share, strict=True))
        return int(ids) + ROW_BYTES * part.rows

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ray.data.ReadTask]:
        """At most `parallelism` runs of consecutive parts, of about equal bytes."""
        return [self._task(run, per_task_row_limit) for run in self._runs(max(1, parallelism))]

    def _runs(self, count: int) -> Iterator[list[Part]]:
        share, run, size = self.estimate_inmemory_data_size() / count, [], 0
        for part in self._parts:
            run.append(part)
            size += self._size(part)
            if size >= share:
                yield run
                run, size = [], 0
        if run:
            yield run

    def _task(self, run: Sequence[Part], limit: int | None) -> ray.data.ReadTask:
        metadata = ray.data.block.BlockMetadata(
            num_rows=sum(part.rows for part in run),
            size_bytes=sum(self._size(part) for part in run),
            input_files=tuple(part.access.full(path) for part in run for path in part.paths),
            exec_stats=None,
        )
        read = _reader(tuple(run), self._types, self._schema)
        return ray.data.ReadTask(read, metadata, self._schema, limit)


def _reader(
    run: Sequence[Part], types: Mapping[str, StreamType], schema: pa.Schema
) -> Callable[[], Iterator[pa.Table]]:
    """What a read task runs: it carries its own parts and nothing of the datasource."""

    def read() -> Iterator[pa.Table]:
        for part in run:
            for batch in part.batches():
                yield pa.Table.from_batches([samples_record(batch, types, schema)])

    return read
