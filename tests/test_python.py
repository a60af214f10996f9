"""Other versions of Python than the one that runs the tests: the readers of specs, in an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEWER = tuple(f"3.{minor}" for minor in (12, 13, 14))
COMMANDS = (
    ("check",),
    ("show", "llama/3.2/1b"),
    ("explain", "llama/3.2/1b", "hyperparameters.rope.factor"),
    ("diff", "llama/2/7b", "llama/3/8b"),
    ("generate", "llama/3.2/1b", "--target", "torch", "--to", "generated"),
)
READERS = (
    "pydantic",
    "pyyaml",
    "typer",
    "rich",
    "jinja2",
    "networkx",
    "numpy",
    "ml_dtypes",
    "pillow",
    "filelock",
    "ruff",
)
"""Distributions that commands need which run no model."""


def interpreters(version: str) -> Iterator[str]:
    """``python3.12`` on the path, and those of pyenv."""
    yield f"python{version}"
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(root.glob(f"versions/{version}.*/bin/python")))


def interpreter(version: str) -> str | None:
    """One that starts."""
    for name in interpreters(version):
        found = shutil.which(name)
        words = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if found and subprocess.run(words, capture_output=True, text=True).stdout == f"{version}\n":
            return found
    return None


def wanted() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for line in project["dependencies"] if line.startswith(READERS)]
    assert len(lines) == len(READERS)
    return lines


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", NEWER)
def test_the_readers_run(version: str, tmp_path: Path) -> None:
    found = interpreter(version)
    if found is None:
        pytest.skip(f"no Python {version}: neither python{version} on the path nor one of pyenv")
    place = tmp_path / "venv"
    subprocess.run([found, "-m", "venv", str(place)], check=True)
    python = str(place / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted()], check=True)
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in COMMANDS:
        texts = {
            program: subprocess.run(
                [program, "-m", "llamagen", *words],
                cwd=tmp_path,
                env=here,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for program in (sys.executable, python)
        }
        if words[0] != "generate":
            assert texts[sys.executable] == texts[python] != "", words
    made = (tmp_path / "generated/llama/3.2/1b/modeling.py").read_text(encoding="utf-8")
    assert made == (ROOT / "generated/llama/3.2/1b/modeling.py").read_text(encoding="utf-8")
