"""The table of codes is complete, strict YAML, and its examples are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.diagnostics.codes import explain, load_codes, parse_codes
from llamagen.resources import data_folder
from llamagen.spec.source import load_source, to_plain

TABLE = data_folder("spec") / "rules" / "diagnostics.yaml"


def test_explain() -> None:
    doc = explain("lg021")
    assert (doc.code, doc.severity) == ("LG021", "error")
    assert "1.0e-5" in doc.explanation and "\n" not in doc.explanation


def test_unknown_code() -> None:
    with pytest.raises(LlamagenError) as failure:
        explain("LG0211")
    (found,) = failure.value.diagnostics
    assert found.code == "LG901" and found.help is not None and "LG021" in found.help


def test_strict_loader_reads_the_same_table() -> None:
    plain = to_plain(load_source(TABLE).root)
    assert isinstance(plain, dict) and isinstance(plain["codes"], dict)
    assert set(plain["codes"]) < set(load_codes()), "the lint rules are read from their own table"
    for code, row in plain["codes"].items():
        assert isinstance(row, dict)
        doc = load_codes()[code]
        assert (row["title"], row["bad"], row["good"]) == (doc.title, doc.bad, doc.good)


@pytest.mark.parametrize("code", list(load_codes()))
def test_rows_explain(code: str) -> None:
    doc = load_codes()[code]
    assert re.fullmatch(r"LG[0-9]{3}", code)
    assert 1 <= len(re.findall(r"[.?](?:\s|$)", doc.explanation)) <= 8, "one to six sentences"
    assert doc.bad.strip() and doc.good.strip() and doc.bad != doc.good


def test_codes_are_sorted() -> None:
    assert list(load_codes()) == sorted(load_codes())


@pytest.mark.parametrize(
    "row",
    [
        "{title: t, severity: error, explanation: e, bad: b}",
        "{title: t, severity: fatal, explanation: e, bad: b, good: g}",
        "{title: t, severity: error, explanation: e, bad: b, good: 1}",
        "{title: t, severity: error, explanation: e, bad: b, good: g, more: m}",
    ],
)
def test_incomplete_rows_are_refused(row: str) -> None:
    with pytest.raises(ValueError, match="LG001"):
        parse_codes(f"codes:\n  LG001: {row}\n")


def test_every_code_of_these_packages_has_a_row() -> None:
    package = Path(__file__).parents[3] / "llamagen"
    files = [
        package / "files.py",
        *(package / "diagnostics").glob("*.py"),
        *(package / "spec").glob("source*.py"),
    ]
    files += (package / "spec").glob("fmt*.py")
    used = {code for file in files for code in re.findall(r'"(LG0[0-9]{2})"', file.read_text())}
    assert used and used == {code for code in load_codes() if code.startswith("LG0")}
