"""Writing a report: HTML or JSON by the file's name, whole or not at all. Only a report takes the place of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import MANIFEST
from llamagen.verify.document import ReportDocument, document, json_text
from llamagen.verify.html import html_text
from llamagen.verify.report import VerifyReport
from llamagen.writing import require_kin, write_changed

SUFFIXES = (".html", ".json")
_TITLE = re.compile(r"<!doctype html>\n.{0,1000}<title>[^<]*: (equal|different)</title>", re.DOTALL)
"""Of templates/docs/verify.html.j2."""


def check_names(files: Sequence[Path]) -> None:
    """Before anything is computed. Raises LG776 for a name that does not say which form is meant, LG634 for one that
    another file has, or in an exported folder, of which a report is no part."""
    for file in files:
        if file.suffix not in SUFFIXES:
            message = f"the report {str(file)!r} is neither .html nor .json"
            raise LlamagenError.of("LG776", message, help="name it FILE.html or FILE.json")
        require_kin(file, _is_page if file.suffix == ".html" else _is_document, "a report")
        if os.path.lexists(file.parent / MANIFEST):
            message = (
                f"{str(file.parent)!r} is an exported folder, and a report is none of its files"
            )
            raise LlamagenError.of("LG634", message, help="write it elsewhere")


def _is_page(text: str) -> bool:
    return _TITLE.match(text) is not None


def _is_document(text: str) -> bool:
    try:
        return bool(ReportDocument.model_validate_json(text, strict=True))
    except ValidationError:
        return False


def write_report(report: VerifyReport, file: Path) -> None:
    """Write ``file`` whole. Raises LG776 for another suffix, LG632 to LG634 where it cannot be written."""
    check_names([file])
    found = document(report)
    text = html_text(found) if file.suffix == ".html" else json_text(found)
    write_changed(file.parent, {file.name: text})
