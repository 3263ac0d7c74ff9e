"""tokenmill: raw multimodal corpora in, committed, queryable, streamable token shards out.

The one public door. Names are loaded when first used, so that `import tokenmill` costs nothing in
the processes that need little of it.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if not (_Path(__file__).parent / "schemas").is_dir():
    raise ImportError(
        "tokenmill/schemas is not a folder: this checkout was made without symbolic links. "
        "Run `git config core.symlinks true` and check out again (on Windows, inside WSL2)"
    )

__version__ = "0.1.0"

_HOMES = {
    "open": "pipelines.door",
    "load_tokenizer": "pipelines.door",
    "ray_dataset": "pipelines.door",
    "Dataset": "store.dataset",
    "Part": "store.stream.part",
    "Take": "store.stream.part",
    "Shuffle": "store.stream.part",
    "Vocabulary": "store.stream.vocabulary",
    "TokenmillError": "schemas.errors",
    "JobError": "schemas.errors",
    "SourceError": "schemas.errors",
    "SampleError": "schemas.errors",
    "TokenizerError": "schemas.errors",
    "StoreError": "schemas.errors",
    "SpaceMismatch": "schemas.errors",
}

if TYPE_CHECKING:
    from tokenmill.pipelines.door import load_tokenizer as load_tokenizer
    from tokenmill.pipelines.door import open as open
    from tokenmill.pipelines.door import ray_dataset as ray_dataset
    from tokenmill.schemas.errors import JobError as JobError
    from tokenmill.schemas.errors import SampleError as SampleError
    from tokenmill.schemas.errors import SourceError as SourceError
    from tokenmill.schemas.errors import SpaceMismatch as SpaceMismatch
    from tokenmill.schemas.errors import StoreError as StoreError
    from tokenmill.schemas.errors import TokenizerError as TokenizerError
    from tokenmill.schemas.errors import TokenmillError as TokenmillError
    from tokenmill.store.dataset import Dataset as Dataset
    from tokenmill.store.stream.part import Part as Part
    from tokenmill.store.stream.part import Shuffle as Shuffle
    from tokenmill.store.stream.part import Take as Take
    from tokenmill.store.stream.vocabulary import Vocabulary as Vocabulary

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenmill' has no attribute {name!r}")
    return getattr(_import_module(f"tokenmill.{_HOMES[name]}"), name)
