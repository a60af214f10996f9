"""Whether files stay what they were while they are read, which takes minutes for a large checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamagen.diagnostics import Diagnostic, LlamagenError, quoted
from llamagen.files import is_folder


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a writer cannot help changing: the file itself if it is replaced, its size and time if written to."""

    device: int
    inode: int
    size: int
    modified_ns: int


def stamp_of(path: Path) -> Stamp | None:
    """Of the file behind links; None where there is none, which its reader reports."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def stamps_of(folder: Path) -> dict[Path, Stamp | None]:
    """Of every file of a folder, or none for one that is not there."""
    paths = sorted(folder.iterdir()) if is_folder(folder) else ()
    return {path: stamp_of(path) for path in paths if os.path.isfile(path)}


def require_unchanged(before: Mapping[Path, Stamp | None]) -> None:
    """Raises LG622 for every file that is not what it was."""
    found = [
        Diagnostic(
            "LG622",
            "error",
            f"{quoted(str(path))} was changed while it was read; what came of it was discarded",
            help="wait until the download or copy is complete, then run the command again",
        )
        for path, stamp in before.items()
        if stamp_of(path) != stamp
    ]
    if found:
        raise LlamagenError(found)
