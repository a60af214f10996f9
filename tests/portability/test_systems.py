"""What is promised elsewhere, tried with what other systems lack: all on macOS, readers and `generate` on Windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/cases/common/tiny.yaml"

_CODE = """
import json, sys, warnings
from tests.portability.lacking import take_away
take_away(sys.argv[1])
warnings.filterwarnings("error", category=EncodingWarning, module="llamagen")  # other systems have other defaults
from llamagen.cli import main
for words in json.loads(sys.argv[2]):
    code = main(words)
    print("exit", code, words[0], file=sys.stderr)
"""

MACOS = (
    "random-checkpoint tiny.yaml --out checkpoint --dtype float32",
    "random-checkpoint tiny.yaml --out checkpoint --dtype float32 --overwrite",
    "export tiny.yaml --checkpoint checkpoint --out out",
    "export tiny.yaml --checkpoint checkpoint --out out --overwrite",
    "export tiny.yaml --checkpoint checkpoint --out linked --weights reference",
    "convert checkpoint --from tiny.yaml --out converted",
    "verify out --against torch --steps 1 --report report.html",
    "verify out --integrity",
    "run out --ids 1,2,3 --max-new-tokens 2",
)
WINDOWS = (
    "list",
    "check tiny.yaml",
    "show tiny.yaml",
    "explain LG021",
    "resolve tiny.yaml",
    "diff llama/2/7b llama/3/8b",
    "cost llama/3/8b",
    "sql select(count(*))from(models)",
    "fmt tiny.yaml",
    "schema --to schema.json",
    "generate tiny.yaml --to generated --target torch --target text",
    "generate tiny.yaml --to generated --target torch --target text",
)


def run(system: str, commands: tuple[str, ...], folder: Path) -> list[str]:
    """The exit codes of commands that one process runs as on another system."""
    (folder / "tiny.yaml").write_text(TINY.read_text().replace("vocab_size: ", "vocab_size:   "))
    words = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", _CODE, system, words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    codes = [line for line in done.stderr.splitlines() if line.startswith("exit ")]
    assert len(codes) == len(commands), done.stderr
    assert "LG999" not in done.stderr, done.stderr
    return [f"{line.split()[1]} {command}" for line, command in zip(codes, commands, strict=True)]


@pytest.mark.parametrize(("system", "commands"), [("macos", MACOS), ("windows", WINDOWS)])
def test_a_system(system: str, commands: tuple[str, ...], tmp_path: Path) -> None:
    codes = run(system, commands, tmp_path)
    allowed = ("1 diff",)  # findings
    assert [c for c in codes if not c.startswith(("0 ", *allowed))] == []
    assert not list(tmp_path.rglob("*.llamagen")), "nothing is left over"


def test_windows_refuses_to_write_weights(tmp_path: Path) -> None:
    (code,) = run("windows", ("random-checkpoint tiny.yaml --out out",), tmp_path)
    assert code.startswith("3 ") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("system", "code"),
    [
        ("macos", "os.posix_fallocate"),
        ("macos", "os.fdatasync"),
        ("windows", "os.O_NOFOLLOW"),
        ("windows", "signal.SIGHUP"),
        ("windows", "__import__('fcntl', {'__name__': 'llamagen.x'})"),
    ],
)
def test_the_names_are_away(system: str, code: str) -> None:
    """So that the tests above can fail."""
    probe = f"""
from tests.portability.lacking import take_away
take_away({system!r})
exec("import os, signal; {code}", {{"__name__": "llamagen.probe", "__builtins__": __builtins__}})
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and ("has no" in done.stderr or "No module" in done.stderr)
