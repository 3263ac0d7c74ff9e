"""webdataset: tars whose members `<id hex>.<stream>.npy` and `<id hex>.json` are one sample.

Written by `tarfile` itself as webdataset's own writer does it (importing that library imports
torch), in USTAR with a modification time of 0: equal samples give equal bytes, and no PAX header
of 1,024 bytes stands before each member, which a fractional time would cost.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.store.dataset import Dataset
from tokenmill.store.export_facts import sample_facts
from tokenmill.store.placing import Place
from tokenmill.store.rows import Row


def webdataset_names(dataset: Dataset) -> tuple[str, ...]:
    return tuple(f"{pipeline}-{'[0-9]' * 6}.tar" for pipeline in dataset.pipelines)


def write_webdataset(
    dataset: Dataset, scratch: Path, place: Place, file_bytes: int
) -> tuple[str, ...]:
    """Ids have their axes again (`.npy` holds the shape); a stream without tokens has no member,
    and the `.json` says why. A tar holds one pipeline's samples: two pipelines over one source
    have samples of the same id."""
    tars = _Tars(scratch, place, file_bytes)
    try:
        for batch in dataset.batches():
            for row in batch.rows():
                tars.write(row, sorted(batch.columns))
        tars.finish()
    finally:
        tars.abandon()
    return ()


class _Tars:
    """One open tar, rolled between samples."""

    def __init__(self, scratch: Path, place: Place, file_bytes: int) -> None:
        self._scratch, self._place, self._file_bytes = scratch, place, file_bytes
        self._tar: tarfile.TarFile | None = None
        self._pipeline = ""
        self._count = self._rows = self._tokens = 0

    def write(self, row: Row, streams: list[str]) -> None:
        if self._tar is not None and (
            row.pipeline != self._pipeline or self._tar.offset >= self._file_bytes
        ):
            self.finish()
        if self._tar is None:
            self._pipeline = row.pipeline
            self._tar = tarfile.TarFile(self._path, "w", format=tarfile.USTAR_FORMAT)
        name = row.id.hex()
        for stream in streams:
            ids, shape = row[stream], row.shape(stream)
            if ids is not None and shape is not None:
                _add(self._tar, f"{name}.{stream}.npy", _npy(ids.reshape(shape)))
                self._tokens += ids.size
        _add(self._tar, f"{name}.json", _json(sample_facts(row, streams)))
        self._rows += 1

    def finish(self) -> None:
        """The open tar, if there is one, is whole."""
        if self._tar is None:
            return
        self._tar.close()
        name = f"{self._pipeline}-{self._count:06d}.tar"
        self._place(self._path, name, (self._rows, self._tokens))
        self._tar = None
        self._count, self._rows, self._tokens = self._count + 1, 0, 0

    def abandon(self) -> None:
        if self._tar is not None:
            self._tar.close()

    @property
    def _path(self) -> Path:
        return self._scratch / f"{self._count:06d}.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o444
    tar.addfile(member, io.BytesIO(data))
    # it would remember a kilobyte of each member, for nobody
    tar.members.clear()  # type: ignore[attr-defined]


def _npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogateescape")
