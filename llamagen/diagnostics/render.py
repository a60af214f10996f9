"""Findings as text for people, JSON for programs, and workflow commands for GitHub."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, assert_never

from llamagen.diagnostics import Diagnostic, Related, Severity, Span

Format = Literal["text", "json", "github"]

JSON_VERSION = 1
_WIDTH = 160  # longer source lines are shown as a window around the caret
_RESET = "\x1b[0m"
_COLOURS: Mapping[Severity, str] = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "note": "\x1b[1;36m",
}
_BOLD, _BLUE = "\x1b[1m", "\x1b[1;34m"
_ORDER: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}


def render(
    diagnostics: Iterable[Diagnostic],
    format: Format = "text",
    *,
    colour: bool = False,
    sources: Mapping[str, str] | None = None,
    read: Callable[[Path], str] | None = None,
    cwd: Path | None = None,
) -> str:
    """All findings, sorted by place; ends with a newline unless there is nothing to say.

    `sources` gives the text of files by name, `read` that of others, empty where it cannot be shown; `cwd` (default:
    the process's) is what paths below it are shown relative to. `colour` adds ANSI colours to the text format.
    """
    base = cwd if cwd is not None else Path.cwd()
    findings = in_order(diagnostics)
    match format:
        case "text":
            return _Text(base, sources or {}, read or _nothing, colour).all(findings)
        case "json":
            return json.dumps(to_json(findings, base), indent=2) + "\n"
        case "github":
            return "".join(_github(one, base) + "\n" for one in findings)
        case _:
            assert_never(format)


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """By file, line and column, then severity and code; findings without a place come first."""

    def place(one: Diagnostic) -> tuple[str, int, int, int, str, str]:
        span = one.span or Span("", 0, 0)
        return span.file, span.line, span.col, _ORDER[one.severity], one.code, one.message

    return sorted(diagnostics, key=place)


def summary(diagnostics: Iterable[Diagnostic]) -> str:
    """`2 errors, 1 warning in 3 files`; empty without findings."""
    findings = list(diagnostics)
    counts = []
    for severity in _ORDER:
        count = sum(one.severity == severity for one in findings)
        if count:
            counts.append(_plural(count, severity))
    files = len({one.span.file for one in findings if one.span is not None})
    where = f" in {_plural(files, 'file')}" if files else ""
    return ", ".join(counts) + where


def escape(text: str) -> str:
    """Text that a terminal shows as it is: control and bidirectional characters become \\u{..}."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def shown_path(file: str, cwd: Path) -> str:
    """The path relative to `cwd` where it is below it, with `/` between its parts."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(cwd):
        path = path.relative_to(cwd)
        return path.as_posix()
    return file


Json = dict[str, "JsonValue"]
JsonValue = str | int | None | Json | list[Json]


def to_json(diagnostics: Iterable[Diagnostic], cwd: Path) -> Json:
    """The versioned document that `--format json` prints."""
    findings = in_order(diagnostics)
    rows: list[Json] = []
    for one in findings:
        related: list[Json] = [
            {"message": other.message, "span": _json_span(other.span, cwd)} for other in one.related
        ]
        rows.append(
            {
                "code": one.code,
                "severity": one.severity,
                "message": one.message,
                "span": _json_span(one.span, cwd) if one.span is not None else None,
                "related": related,
                "help": one.help,
            }
        )
    counts: Json = {name: sum(one.severity == name for one in findings) for name in _ORDER}
    return {"version": JSON_VERSION, "diagnostics": rows, "counts": counts}


def _json_span(span: Span, cwd: Path) -> Json:
    return {
        "file": shown_path(span.file, cwd),
        "line": span.line,
        "col": span.col,
        "end_line": span.end_line,
        "end_col": span.end_col,
    }


def _github(one: Diagnostic, cwd: Path) -> str:
    """A workflow command."""
    command = "notice" if one.severity == "note" else one.severity
    properties = []
    if one.span is not None:
        properties += [
            f"file={github_property(shown_path(one.span.file, cwd))}",
            f"line={one.span.line}",
            f"endLine={one.span.end_line}",
            f"col={one.span.col}",
        ]
        if one.span.line == one.span.end_line:
            properties.append(f"endColumn={max(one.span.col, one.span.end_col - 1)}")
    properties.append(f"title={github_property(one.code)}")
    lines = [one.message]
    lines += [f"{other.message}: {_place(other.span, cwd)}" for other in one.related]
    lines += [f"help: {one.help}"] if one.help is not None else []
    return f"::{command} {','.join(properties)}::{github_data(chr(10).join(lines))}"


def github_data(text: str) -> str:
    """Text of a workflow command, escaped as actions/toolkit does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def github_property(text: str) -> str:
    """A property of a workflow command."""
    return github_data(text).replace(":", "%3A").replace(",", "%2C")


class _Text:
    """The layout of rustc: message, place, source line with carets, notes, help."""

    def __init__(
        self, cwd: Path, sources: Mapping[str, str], read: Callable[[Path], str], colour: bool
    ) -> None:
        self.cwd = cwd
        self.read = read
        self.colour = colour
        self.files = {name: text.split("\n") for name, text in sources.items()}

    def all(self, findings: list[Diagnostic]) -> str:
        if not findings:
            return ""
        blocks = [self._one(one) for one in findings]
        return "\n".join([*blocks, summary(findings), ""])

    def _one(self, one: Diagnostic) -> str:
        spans = [one.span] if one.span is not None else []
        gutter = max((len(str(span.line)) for span in spans + _spans(one.related)), default=1)
        first, *more = one.message.split("\n")
        head = self._paint(f"{one.severity}[{one.code}]", _COLOURS[one.severity])
        out = [f"{head}: {self._paint(escape(first), _BOLD)}"]
        out += [f"  {escape(line)}" for line in more]
        if one.span is not None:
            out += self._excerpt(one.span, gutter, _COLOURS[one.severity], "^")
        for other in one.related:
            out.append(f"{self._paint('note', _COLOURS['note'])}: {escape(other.message)}")
            out += self._excerpt(other.span, gutter, _BLUE, "-")
        if one.help is not None:
            first, *more = one.help.split("\n")
            out.append(f"{' ' * gutter} {self._paint('=', _BLUE)} help: {escape(first)}")
            out += [f"{' ' * gutter}         {escape(line)}" for line in more]
        return "\n".join(out) + "\n"

    def _excerpt(self, span: Span, gutter: int, colour: str, mark: str) -> list[str]:
        pad = " " * gutter
        out = [f"{pad}{self._paint('-->', _BLUE)} {_place(span, self.cwd)}"]
        line = self._line(span)
        if line is None:
            return out
        stop = span.end_col if span.end_line == span.line else len(line) + 1
        before, marked, after = _window(line, span.col - 1, max(stop - 1, span.col))
        bar = self._paint("|", _BLUE)
        carets = mark * max(1, _cells(marked))
        number = self._paint(str(span.line).rjust(gutter), _BLUE)
        out.append(f"{pad} {bar}")
        out.append(f"{number} {bar} {before}{marked}{after}".rstrip())
        out.append(f"{pad} {bar} {' ' * _cells(before)}{self._paint(carets, colour)}")
        return out

    def _line(self, span: Span) -> str | None:
        if span.file not in self.files:
            self.files[span.file] = self.read(self.cwd / span.file).split("\n")
        lines = self.files[span.file]
        return lines[span.line - 1].rstrip("\r") if 0 < span.line <= len(lines) else None

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self.colour else text


def _spans(related: tuple[Related, ...]) -> list[Span]:
    return [other.span for other in related]


def _place(span: Span, cwd: Path) -> str:
    return f"{escape(shown_path(span.file, cwd))}:{span.line}:{span.col}"


def _window(line: str, start: int, stop: int) -> tuple[str, str, str]:
    """The line before, in and after `start:stop`, escaped and cut to about `_WIDTH` characters."""
    left = max(0, start - _WIDTH // 2) if len(line) > _WIDTH else 0
    right = left + _WIDTH if len(line) > _WIDTH else len(line)
    dots = ("..." if left else "", "..." if right < len(line) else "")
    parts = line[left:start], line[start : min(stop, right)], line[min(stop, right) : right]
    before, marked, after = (escape(part) for part in parts)
    return dots[0] + before, marked, after + dots[1]


def _nothing(path: Path) -> str:
    return ""


def _shown(char: str) -> str:
    if char.isascii() and char.isprintable():
        return char
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\\u{{{ord(char):x}}}"
    return char


def _cells(text: str) -> int:
    """Terminal cells: two for wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
