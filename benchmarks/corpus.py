"""The benchmarks' text: real sources and documentation of this machine, as Parquet files.

The corpus is what lies in the standard library and in site-packages (sources, reStructuredText,
Markdown, plain text): real text without hub or apt. Where more is asked for than there is, the
same files appear again under other names (hard links), so every contender reads the same bytes.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = {".py", ".pyi", ".rst", ".md", ".txt", ".c", ".h", ".js", ".html"}
FILE_BYTES = 25_000_000  # of text in one Parquet file
GROUP_ROWS = 1000


def documents() -> Iterator[str]:
    """Every readable text of 64 characters to 1 MB, in the order of its path."""
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    for root in sorted(roots):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size < 1_000_000:
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                if len(text) >= 64:
                    yield text


def base(folder: Path, most: int = 200_000_000) -> list[Path]:
    """The distinct Parquet files, written once: about `most` bytes of text."""
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        held: list[str] = []
        size = total = count = 0
        for text in documents():
            held.append(text)
            size += len(text.encode())
            if size >= FILE_BYTES:
                _write(folder / f"{count:03d}.parquet", held)
                total, count, held, size = total + size, count + 1, [], 0
            if total >= most:
                break
        if held and total < most:
            _write(folder / f"{count:03d}.parquet", held)
        done.touch()
    return sorted(folder.glob("*.parquet"))


def _write(path: Path, texts: list[str]) -> None:
    table = pa.table({"id": [f"{path.stem}-{n}" for n in range(len(texts))], "text": texts})
    pq.write_table(table, path, compression="zstd", row_group_size=GROUP_ROWS)


def text_bytes(files: list[Path]) -> int:
    """Bytes of UTF-8 text in `files` (each distinct file is looked into once)."""
    known: dict[int, int] = {}
    total = 0
    for file in files:
        inode = file.stat().st_ino
        if inode not in known:
            column = pq.read_table(file, columns=["text"])["text"]
            known[inode] = sum(chunk.nbytes for chunk in column.chunks)
        total += known[inode]
    return total


def repeated(folder: Path, size: int, files: list[Path]) -> Path:
    """A folder of at least `size` bytes of text: `files` again and again under other names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = count = 0
    while total < size:
        file = files[count % len(files)]
        os.link(file, folder / f"{count:05d}.parquet")
        total += text_bytes([file])
        count += 1
    return folder
