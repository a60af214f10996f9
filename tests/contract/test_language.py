"""docs/language.md: its specs and commands do what it says, and its reference is what `explain` prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llamagen import api
from llamagen.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "language.md").read_text(encoding="utf-8")


def test_the_reference_is_what_explain_prints() -> None:
    (printed,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert printed == api.explain("language"), "put `llamagen explain language` there"


def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, body in re.findall(r"```(yaml|console)\n(.*?)```", PAGE, re.DOTALL):
        if language == "yaml":
            first, _, text = body.partition("\n")
            Path(first.removeprefix("# ")).write_text(text)
            continue
        for command, shown in re.findall(
            r"^\$ llamagen (.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE
        ):
            assert main(shlex.split(command)) == 0, command
            said = capsys.readouterr().out
            assert shown in said, (command, said)
            ran += 1
    assert ran > 6
