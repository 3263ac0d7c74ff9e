"""Sources: one module per format, and the listing that they share."""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.schemas.job import Source as SourceConfig
from tokenmill.schemas.samples import Source
from tokenmill.workers.sources.clips import ClipSource
from tokenmill.workers.sources.files import FilesSource
from tokenmill.workers.sources.jsonl import JsonlSource
from tokenmill.workers.sources.parquet import ParquetSource
from tokenmill.workers.sources.text import TextSource
from tokenmill.workers.sources.webdataset import WebDatasetSource

__all__ = ["open_source"]

_FORMATS: dict[str, Callable[[SourceConfig], Source]] = {
    "text": TextSource,
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
    "files": FilesSource,
}


def open_source(config: SourceConfig) -> Source:
    """The source that `config` describes. Opens nothing; listing and reading do."""
    source = _FORMATS[config.format](config)
    return source if config.clips is None else ClipSource(config, source)
