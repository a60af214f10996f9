"""``fmt`` over files: read, compare, write by rename."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.files import is_folder
from llamagen.spec.fmt import check_format, format_source
from llamagen.spec.source import load_source
from llamagen.writing import write_changed


@dataclass(frozen=True, slots=True)
class FormatReport:
    """``changed`` files differ (or differed) from their canonical form; ``findings`` say where, or what is broken."""

    changed: tuple[Path, ...]
    findings: tuple[Diagnostic, ...]

    @property
    def failed(self) -> bool:
        """A file could not be formatted at all."""
        return any(found.severity == "error" for found in self.findings)


def format_files(targets: Sequence[Path], key_order: Sequence[str], *, write: bool) -> FormatReport:
    """Bring YAML files (and those below folders) into canonical form; without ``write`` only say which are not."""
    changed: list[Path] = []
    found: list[Diagnostic] = []
    for path in _files(targets):
        try:
            source = load_source(path, path.as_posix())
            finding = check_format(source, key_order)
            if finding is None:
                continue
            changed.append(path)
            if write:
                write_changed(path.parent, {path.name: format_source(source, key_order)})
            else:
                found.append(finding)
        except LlamagenError as error:
            found.extend(error.diagnostics)
    return FormatReport(tuple(changed), tuple(found))


def _files(targets: Iterable[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for target in targets:
        # not rglob, which fails where another writer removes a folder meanwhile
        below = (Path(where, name) for where, _, names in os.walk(target) for name in names)
        yaml = sorted(path for path in below if path.suffix == ".yaml")
        found.update(dict.fromkeys(yaml if is_folder(target) else [target]))
    return list(found)
