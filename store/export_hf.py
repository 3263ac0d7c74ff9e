"""Hugging Face `datasets`: the folder that `datasets.load_from_disk` opens without a conversion.

Arrow *stream* files, state.json that names them, dataset_info.json, and a dataset card. Features
are left out of dataset_info.json: the library reads them off the Arrow schema, whatever it calls
its feature types in that version. state.json comes last: without it nothing is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenmill.store.dataset import Dataset
from tokenmill.store.export_facts import lineage
from tokenmill.store.placing import Place
from tokenmill.store.sample_tables import samples_record, samples_schema

_STATE, _INFO, _CARD = "state.json", "dataset_info.json", "README.md"


def hf_names(dataset: Dataset) -> tuple[str, ...]:
    return (_STATE, _INFO, _CARD, f"data-{'[0-9]' * 5}.arrow")


def write_hf(dataset: Dataset, scratch: Path, place: Place, file_bytes: int) -> tuple[str, ...]:
    """Columns as in sample_tables.py, `id` of plain binary."""
    types = dataset.stream_types()
    files = _Files(samples_schema(dataset, types, fixed_ids=False), scratch, place, file_bytes)
    try:
        for batch in dataset.batches():
            tokens = sum(column.tokens for column in batch.columns.values())
            files.write(samples_record(batch, types, files.schema), tokens)
        files.finish(last=True)
    finally:
        files.abandon()
    facts = lineage(dataset)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files.names],
        "_fingerprint": dataset.snapshot[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": json.dumps(facts), "homepage": "", "license": ""}
    texts = {_CARD: _card(facts, dataset), _INFO: json.dumps(info), _STATE: json.dumps(state)}
    for name, text in texts.items():
        (scratch / name).write_text(text, encoding="utf-8")
        place(scratch / name, name, (0, 0))
    return ()


def _card(facts: dict[str, Any], dataset: Dataset) -> str:
    lines = [
        "# Tokens exported by tokenmill",
        "",
        "Open with `datasets.load_from_disk`. A row is a sample; a column is a stream's token ids,",
        "null where the sample has none.",
        "",
        f"* snapshot `{facts['snapshot']}` of pipelines {', '.join(dataset.pipelines)}",
    ]
    lines += [f"* stream `{s}`: spaces {', '.join(found)}" for s, found in facts["spaces"].items()]
    return "\n".join(lines) + "\n"


class _Files:
    """One open Arrow stream file, rolled between record batches."""

    def __init__(self, schema: pa.Schema, scratch: Path, place: Place, file_bytes: int) -> None:
        self.schema = schema
        self.names: list[str] = []
        self._scratch, self._place, self._file_bytes = scratch, place, file_bytes
        self._open: tuple[pa.ipc.RecordBatchStreamWriter, pa.NativeFile] | None = None
        self._rows = self._tokens = 0

    def _begin(self) -> tuple[pa.ipc.RecordBatchStreamWriter, pa.NativeFile]:
        sink = pa.OSFile(str(self._path), "wb")
        return pa.ipc.new_stream(sink, self.schema), sink

    def write(self, record: pa.RecordBatch, tokens: int) -> None:
        writer, sink = self._open = self._open or self._begin()
        writer.write_batch(record)
        self._rows += record.num_rows
        self._tokens += tokens
        if sink.tell() >= self._file_bytes:
            self.finish()

    def finish(self, *, last: bool = False) -> None:
        """The open file is whole. last: a dataset without a single row has one file all the
        same."""
        if self._open is None:
            if not last or self.names:
                return
            self._open = self._begin()
        writer, sink = self._open
        writer.close()
        sink.close()
        self._open = None
        name = f"data-{len(self.names):05d}.arrow"
        self._place(self._path, name, (self._rows, self._tokens))
        self.names.append(name)
        self._rows = self._tokens = 0

    def abandon(self) -> None:
        if self._open is not None:
            self._open[1].close()

    @property
    def _path(self) -> Path:
        return self._scratch / f"{len(self.names):05d}.part"
