"""tokenmill: raw multimodal corpora in, committed, queryable, streamable token shards out."""

from pathlib import Path as _Path

if not (_Path(__file__).parent / "schemas").is_dir():
    raise ImportError(
        "tokenmill/schemas is not a folder: this checkout was made without symbolic links. "
        "Run `git config core.symlinks true` and check out again (on Windows, inside WSL2)"
    )

__version__ = "0.1.0"
