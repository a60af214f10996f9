"""Completion in a shell: it asks the program itself, in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def completed(line: str, shell: str) -> list[str]:
    words = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
    }[shell]
    done = subprocess.run(
        [sys.executable, "-c", "from llamagen.cli import main; raise SystemExit(main())"],
        env={**os.environ, "_LLAMAGEN_COMPLETE": f"complete_{shell}", **words},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("llamagen sho", "show"),
        ("llamagen show llama/3.3/7", "llama/3.3/70b-instruct"),
        ("llamagen diff llama/3/8b llama/3.3/7", "llama/3.3/70b-instruct"),
        ("llamagen export llama/3.3/7", "llama/3.3/70b-instruct"),
        ("llamagen list --generation gu", "guard"),
        ("llamagen diff llama/3/8b llama/3/70b --surf", "--surface"),
    ],
)
def test_commands_ids_and_options_are_completed(line: str, first: str) -> None:
    assert completed(line, "bash") == [first]
    assert first in " ".join(completed(line, "zsh"))
