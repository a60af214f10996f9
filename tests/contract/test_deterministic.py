"""The same bytes on a second run, from another folder, with another hash seed and another locale."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = str(REPOSITORY / "tests/cases/common/tiny.yaml")

COMMANDS = {
    "list": ["list", "--format", "json"],
    "resolve": ["resolve", "llama/3.1/8b"],
    "graph": ["graph", "llama/3.1/8b"],
    "schema": ["schema"],
    "explain": ["explain", "ops"],
    "generate": ["generate", "llama/3.2/1b", "llama/2/70b", "--to", "out"],
    "export": ["export", TINY, "--random-weights", "5", "--out", "out"],
}


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Digest of stdout and of every file written."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "llamagen", *command],
        cwd=folder,
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", **environment},
    )
    found = {"stdout": done.stdout}
    found |= {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_same_bytes_everywhere(name: str, tmp_path: Path) -> None:
    one = {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}
    other = {"PYTHONHASHSEED": "4242", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo", "COLUMNS": "50"}
    first = _run(COMMANDS[name], tmp_path / "one", one)
    second = _run(COMMANDS[name], tmp_path / "two" / "déeper folder", other)
    assert first == second


def test_a_second_generate_writes_nothing(tmp_path: Path) -> None:
    from llamagen import api
    from llamagen.emit.options import Target

    to = tmp_path / "out"
    first = list(api.generate(["llama/3.2/1b"], [Target.TEXT, Target.TORCH], to))
    made = {"resolved.txt", "graph.txt", "parallel.txt", "profiles.txt", "card.md", "modeling.py"}
    assert set(first[0].written) == made
    times = {p: p.stat().st_mtime_ns for p in to.rglob("*") if p.is_file()}
    second = list(api.generate(["llama/3.2/1b"], [Target.TEXT, Target.TORCH], to))
    assert second[0].written == ()
    assert times == {p: p.stat().st_mtime_ns for p in to.rglob("*") if p.is_file()}
