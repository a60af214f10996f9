"""The three output formats, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

from llamagen.diagnostics import Diagnostic, Related, Span
from llamagen.diagnostics.render import escape, in_order, render, summary

SOURCE = "rope:\n  theta: 1e4\n  theta: 2\n"
ERROR = Diagnostic(
    "LG015",
    "error",
    "the key 'theta' appears twice",
    Span("a.yaml", 3, 3, 3, 8),
    (Related("first used here", Span("a.yaml", 2, 3, 2, 8)),),
    "remove one",
)
WARNING = Diagnostic("LG021", "warning", "odd number", Span("a.yaml", 2, 10, 2, 13))
PLACELESS = Diagnostic("LG901", "error", "no such command")


def test_text() -> None:
    assert render([ERROR, WARNING, PLACELESS], sources={"a.yaml": SOURCE}) == (
        "error[LG901]: no such command\n"
        "\n"
        "warning[LG021]: odd number\n"
        " --> a.yaml:2:10\n"
        "  |\n"
        "2 |   theta: 1e4\n"
        "  |          ^^^\n"
        "\n"
        "error[LG015]: the key 'theta' appears twice\n"
        " --> a.yaml:3:3\n"
        "  |\n"
        "3 |   theta: 2\n"
        "  |   ^^^^^\n"
        "note: first used here\n"
        " --> a.yaml:2:3\n"
        "  |\n"
        "2 |   theta: 1e4\n"
        "  |   -----\n"
        "  = help: remove one\n"
        "\n"
        "2 errors, 1 warning in 1 file\n"
    )


def test_nothing_found_prints_nothing() -> None:
    assert render([]) == "" and render([], "github") == ""
    assert json.loads(render([], "json"))["diagnostics"] == []


def test_paths_below_cwd_are_relative_and_what_is_read_is_shown(tmp_path: Path) -> None:
    inside = tmp_path / "spec" / "x.yaml"
    found = [Diagnostic("LG010", "error", "m", Span(str(inside), 2, 1))]
    text = render(found, cwd=tmp_path, read={inside: "one\ntwo\n"}.__getitem__)
    assert " --> spec/x.yaml:2:1\n" in text and "2 | two\n" in text
    assert f" --> {inside}:2:1" in render(found, cwd=tmp_path / "elsewhere")


def test_unreadable_sources_leave_the_place(tmp_path: Path) -> None:
    found = [Diagnostic("LG010", "error", "m", Span("gone.yaml", 2, 1))]
    assert render(found, cwd=tmp_path, read=lambda path: "") == (
        "error[LG010]: m\n --> gone.yaml:2:1\n\n1 error in 1 file\n"
    )


def test_control_characters_are_escaped_and_carets_stay_aligned() -> None:
    line = "a\x1b[31m\tb\u202e: x"
    found = [Diagnostic("LG004", "error", "bad \x1b[0m \x07 key", Span("f", 1, 10, 1, 11))]
    text = render(found, sources={"f": line})
    assert "\x1b" not in text and "\u202e" not in text and "\t" not in text
    shown, carets = text.splitlines()[3:5]
    assert shown.index(":") == len("1 | a\\u{1b}[31m\\u{9}b\\u{202e}")
    assert carets.index("^") == shown.index(":")


def test_wide_characters_take_two_cells() -> None:
    found = [Diagnostic("LG010", "error", "m", Span("f", 1, 3, 1, 4))]
    assert render(found, sources={"f": "日本x"}).splitlines()[4] == "  |     ^"


def test_long_lines_are_cut_around_the_caret() -> None:
    found = [Diagnostic("LG010", "error", "m", Span("f", 1, 1001, 1, 1002))]
    shown, carets = render(found, sources={"f": "a" * 1000 + "X" + "b" * 1000}).splitlines()[3:5]
    assert len(shown) < 200 and shown[carets.index("^")] == "X"


def test_multi_line_spans_mark_the_first_line() -> None:
    found = [Diagnostic("LG010", "error", "m", Span("f", 1, 3, 2, 2))]
    assert render(found, sources={"f": "ab[1,\n2]"}).splitlines()[4] == "  |   ^^^"


def test_colour_only_on_request() -> None:
    assert "\x1b" not in render([ERROR], sources={"a.yaml": SOURCE})
    coloured = render([ERROR], sources={"a.yaml": SOURCE}, colour=True)
    assert coloured.startswith("\x1b[1;31merror[LG015]\x1b[0m: ")


def test_json() -> None:
    document = json.loads(render([ERROR, PLACELESS], "json"))
    assert document["version"] == 1
    assert document["counts"] == {"error": 2, "warning": 0, "note": 0}
    first, second = document["diagnostics"]
    assert first["span"] is None and first["help"] is None
    assert second["span"] == {"file": "a.yaml", "line": 3, "col": 3, "end_line": 3, "end_col": 8}
    assert second["related"][0]["message"] == "first used here"


def test_github() -> None:
    odd = Diagnostic(
        "LG010", "note", "100% of\r\nit ::error::", Span("a,b:c.yaml", 1, 2, 1, 5), help="quote"
    )
    assert render([odd], "github") == (
        "::notice file=a%2Cb%3Ac.yaml,line=1,endLine=1,col=2,endColumn=4,title=LG010"
        "::100%25 of%0D%0Ait ::error::%0Ahelp: quote\n"
    )
    assert render([PLACELESS], "github") == "::error title=LG901::no such command\n"


def test_order_and_summary() -> None:
    other = Diagnostic("LG010", "note", "m", Span("0.yaml", 9, 9))
    assert in_order([ERROR, other, WARNING, PLACELESS]) == [PLACELESS, other, WARNING, ERROR]
    assert summary([ERROR, ERROR, WARNING, other]) == "2 errors, 1 warning, 1 note in 2 files"
    assert summary([PLACELESS]) == "1 error"


def test_escape_keeps_printable_text() -> None:
    assert escape("é 日本 ~") == "é 日本 ~"
    assert escape("\r\x7f\u200b") == "\\u{d}\\u{7f}\\u{200b}"
