"""Real pictures with real captions for `make demo`: scikit-image's data folder, from PyPI.

    python examples/demo_pictures.py FOLDER

One `name.png` or `name.jpg` and one `name.txt` (the first paragraph of the docstring of the
function that loads it) per picture. The wheel is fetched without its dependencies and not kept.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

WHEEL = "scikit-image==0.26.0"


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL]
        subprocess.run(pip, check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            code = archive.read("skimage/data/_fetchers.py").decode()
            for member, caption in captions(code):
                name = PurePosixPath(member)
                if f"skimage/{member}" in names and name.suffix in (".png", ".jpg"):
                    (out / name.name).write_bytes(archive.read(f"skimage/{member}"))
                    (out / name.name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    print(f"{len(list(out.glob('*.txt')))} pictures with captions in {out}")


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


if __name__ == "__main__":
    main()
