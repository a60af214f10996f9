"""Names and commands that users rely on, as golden text: a change must be meant."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import llamagen

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
GOLDEN = HERE / "cli_surface.txt"

PUBLIC = [
    "Diagnostic",
    "ExportOptions",
    "LlamagenError",
    "Model",
    "QuantizeOptions",
    "check",
    "check_checkpoint",
    "check_integrity",
    "compat",
    "convert",
    "cost",
    "diff",
    "explain",
    "fmt",
    "generate",
    "generate_check",
    "graph_explorer",
    "graph_svg",
    "graph_tower",
    "history",
    "import_config",
    "imported",
    "list_models",
    "load",
    "new",
    "overlay",
    "parallel",
    "plot",
    "query",
    "random_checkpoint",
    "releases",
    "run",
    "schema_text",
    "share",
    "show",
    "site",
    "sql",
    "timeline",
    "verify_folder",
    "write_verify_report",
]

COMMANDS = [
    "list",
    "show",
    "check",
    "resolve",
    "explain",
    "graph",
    "diff",
    "compat",
    "cost",
    "parallel",
    "plot",
    "query",
    "timeline",
    "sql",
    "site",
    "mcp",
    "lsp",
    "new",
    "import",
    "fmt",
    "schema",
    "generate",
    "export",
    "verify",
    "run",
    "convert",
    "random-checkpoint",
]


def _help(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llamagen", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "COLUMNS": "40"},
    )
    assert not done.stderr
    return done.stdout


def surface() -> str:
    """The help of the program and of every command."""
    return _help() + "".join(f"\n{'-' * 40}\n{_help(command)}" for command in COMMANDS)


def test_public_names() -> None:
    assert llamagen.__all__ == PUBLIC
    assert dir(llamagen) == PUBLIC
    for name in PUBLIC:
        assert getattr(llamagen, name).__doc__, name


def test_no_public_name_is_a_subpackage() -> None:
    """Importing one would put the module in the place of the function."""
    assert not set(PUBLIC) & {module.name for module in pkgutil.iter_modules(llamagen.__path__)}


def test_cli_surface() -> None:
    assert surface() == GOLDEN.read_text(encoding="utf-8"), (
        "if this is meant: python -m tests.contract.test_surface"
    )


def test_every_command_is_listed() -> None:
    listed = _help().split("Commands:\n", 1)[1]
    assert [line.split()[0] for line in listed.strip().split("\n")] == COMMANDS


if __name__ == "__main__":
    GOLDEN.write_text(surface(), encoding="utf-8")
