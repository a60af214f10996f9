"""Writing a report: HTML or JSON by the file's name, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamagen.diagnostics import LlamagenError
from llamagen.verify.document import document, json_text
from llamagen.verify.html import html_text
from llamagen.verify.report import VerifyReport

SUFFIXES = (".html", ".json")


def check_names(files: Sequence[Path]) -> None:
    """Raises LG776 for a name that does not say which form is meant, before anything is computed."""
    for file in files:
        if file.suffix not in SUFFIXES:
            message = f"the report {str(file)!r} is neither .html nor .json"
            raise LlamagenError.of("LG776", message, help="name it FILE.html or FILE.json")


def write_report(report: VerifyReport, file: Path) -> None:
    """Write ``file`` by rename. Raises LG776 for another suffix or a place that cannot be written."""
    from llamagen.emit.files import write_changed

    check_names([file])
    found = document(report)
    text = html_text(found) if file.suffix == ".html" else json_text(found)
    try:
        write_changed(file.parent, {file.name: text})
    except OSError as error:
        message = f"cannot write the report {str(file)!r}: {error.strerror}"
        raise LlamagenError.of("LG776", message, help="choose another place") from error
