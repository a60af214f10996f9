"""The tour of the Python API in docs/ is run, line by line."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import llamagen

ROOT = Path(__file__).resolve().parents[2]


def test_the_tour_of_the_api_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = doctest.testfile(str(ROOT / "docs" / "api.md"), module_relative=False)
    assert done.attempted > 15
    assert done.failed == 0


def test_a_model_and_an_answer_show_themselves_in_a_notebook() -> None:
    model = llamagen.load("llama/3.2/1b")
    assert repr(model) == "<llamagen.Model llama/3.2/1b>"
    picture = model._repr_svg_()
    assert picture is not None
    assert picture.startswith("<svg")
    assert llamagen.load("llama/4/behemoth")._repr_svg_() is None
    table = llamagen.query("id == 'llama/3/8b'", select=["id", "licence"])._repr_html_()
    assert "<th>licence</th>" in table
    assert "<td>llama/3/8b</td>" in table
