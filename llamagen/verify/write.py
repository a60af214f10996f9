"""Writing a report: HTML or JSON by the file's name, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamagen.diagnostics import LlamagenError
from llamagen.files import require_output
from llamagen.verify.document import document, json_text
from llamagen.verify.html import html_text
from llamagen.verify.report import VerifyReport
from llamagen.writing import write_changed

SUFFIXES = (".html", ".json")


def check_names(files: Sequence[Path]) -> None:
    """Before anything is computed. Raises LG776 for a name that does not say which form is meant, LG634 for no file."""
    for file in files:
        if file.suffix not in SUFFIXES:
            message = f"the report {str(file)!r} is neither .html nor .json"
            raise LlamagenError.of("LG776", message, help="name it FILE.html or FILE.json")
        require_output(file)


def write_report(report: VerifyReport, file: Path) -> None:
    """Write ``file`` whole. Raises LG776 for another suffix, LG632 to LG634 where it cannot be written."""
    check_names([file])
    found = document(report)
    text = html_text(found) if file.suffix == ".html" else json_text(found)
    write_changed(file.parent, {file.name: text})
