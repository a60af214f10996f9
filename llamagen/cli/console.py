"""Text to the two streams. Colours and boxes only on a terminal; elsewhere plain, stable bytes."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TextIO, TypeAlias, assert_never

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.diagnostics.markdown import cell
from llamagen.diagnostics.render import escape, render
from llamagen.files import SPEC, read_bytes
from llamagen.units import bytes_short, bytes_text

DiagnosticFormat = Literal["text", "json", "github"]
TableFormat = Literal["table", "json", "csv", "markdown"]


def out(text: str) -> None:
    """A result, as it is."""
    sys.stdout.write(text)


def picture(png: bytes) -> None:
    """Bytes of a picture. Raises LG901 for a terminal, which would show them as text."""
    if sys.stdout.isatty():
        raise LlamagenError.of("LG901", "a PNG is no text", help="send it to a file: `> FILE.png`")
    sys.stdout.flush()
    sys.stdout.buffer.write(png)
    sys.stdout.buffer.flush()


def line(text: str = "") -> None:
    sys.stdout.write(_escaped(text) + "\n")


def note(text: str) -> None:
    """A line for people: progress and remarks."""
    sys.stderr.write(_escaped(text) + "\n")
    sys.stderr.flush()


def _escaped(text: str) -> str:
    """Lines that a terminal shows as they are, whoever named a file or a tensor."""
    return "\n".join(map(escape, text.split("\n")))


def diagnostics(findings: Iterable[Diagnostic], format: DiagnosticFormat = "text") -> None:
    """Findings: text to stderr, machine formats to stdout."""
    sys.stdout.flush()
    match format:
        case "text":
            sys.stderr.write(render(findings, "text", colour=_coloured(sys.stderr), read=_source))
        case "json" | "github":
            sys.stdout.write(render(findings, format))
        case _:
            assert_never(format)


def _source(path: Path) -> str:
    """The text that a finding is about; nothing where it cannot be shown: the place is enough then."""
    try:
        return read_bytes(path, SPEC).decode("utf-8", "replace")
    except LlamagenError:
        return ""


def _coloured(stream: TextIO) -> bool:
    """A terminal whose user did not say otherwise (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


Cell: TypeAlias = str | int | None


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], format: TableFormat = "table"
) -> None:
    """A table to stdout. Numbers have thousands separators for people and none for programs."""
    match format:
        case "table":
            if not sys.stdout.isatty() or not _boxed(columns, rows):
                out(_aligned(columns, rows))
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(["" if value is None else value for value in row] for row in rows)
            out(text.getvalue())
        case "markdown":
            out(_markdown(columns, rows))
        case "json":
            records(columns, rows)
        case _:
            assert_never(format)


def records(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for programs: JSON, every value in its own type."""
    from llamagen.analysis.tables import jsonable

    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    out(json.dumps(objects, indent=2, ensure_ascii=False, default=jsonable) + "\n")


def _shown(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case int():
            return f"{value:,}"
        case str():
            return escape(value)
        case _:
            assert_never(value)


def _numeric(rows: Sequence[Sequence[Cell]], column: int) -> bool:
    return any(isinstance(row[column], int) for row in rows)


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [list(columns), *([_shown(value) for value in row] for row in rows)]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(columns))]
    right = [_numeric(rows, i) for i in range(len(columns))]
    text = []
    for cells in lines:
        padded = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(cells, widths, right, strict=True)
        ]
        text.append("  ".join(padded).rstrip() + "\n")
    return "".join(text)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    def line_of(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell(one) for one in cells) + " |\n"

    rule = line_of("---:" if _numeric(rows, i) else "---" for i in range(len(columns)))
    return line_of(columns) + rule + "".join(line_of(map(_shown, row)) for row in rows)


def _boxed(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> bool:
    """For a terminal that is wide enough; False, and nothing, for one where cells would be cut off."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    least = 0
    for i, column in enumerate(columns):
        least += max(len(cell) for cell in (column, *(_shown(row[i]) for row in rows))) + 3
        side: Literal["left", "right"] = "right" if _numeric(rows, i) else "left"
        shown.add_column(column, justify=side, no_wrap=True)
    if least > console.width:
        return False
    for row in rows:
        shown.add_row(*map(_shown, row))
    console.print(shown)
    return True


def section(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A heading and aligned ``name  value`` lines."""
    width = max((len(name) for name, _ in rows), default=0)
    line(title)
    for name, value in rows:
        line(f"  {escape(name).ljust(width)}  {escape(value)}".rstrip())


def piece(text: str) -> None:
    """Part of what a model says, shown at once; on a terminal, control characters are shown, not obeyed."""
    sys.stdout.write(_spoken(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _spoken(text: str) -> str:
    return "".join(c if c in "\n\t" or not _is_control(c) else escape(c) for c in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) == "Cc"


def files(folder: Path, written: Sequence[tuple[str, int]], seconds: float) -> None:
    """What a command wrote: names and sizes to stdout, the time to stderr."""
    total = sum(size for _, size in written)
    line(f"wrote {folder}: {bytes_text(total)}")
    table(("file", "bytes", "size"), [(name, size, bytes_short(size)) for name, size in written])
    note(f"in {seconds:.1f} s")
