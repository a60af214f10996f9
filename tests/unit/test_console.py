"""Tables and findings on a terminal: nothing is cut off, and colours can be turned off."""

from __future__ import annotations

import io
import sys

import pytest

from llamagen.cli import console
from llamagen.diagnostics import Diagnostic

COLUMNS = ("id", "params", "licence")
ROWS = [("llama/3.1/405b-instruct", 405_853_388_800, "Llama 3.1 Community License"), ("b", 1, "-")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_on_a_terminal_keeps_every_word(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.table(COLUMNS, ROWS)
    shown = terminal.getvalue()
    assert "…" not in shown
    for word in ("llama/3.1/405b-instruct", "405,853,388,800", "Community", "License"):
        assert word in shown
    assert ("─" in shown) is (width >= 80), "a box where there is room for one"


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    console.diagnostics([Diagnostic("LG901", "error", "no")])
    assert ("\x1b[" in terminal.getvalue()) is coloured
