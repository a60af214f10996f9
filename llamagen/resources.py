"""Where the shipped data lives: ``spec/`` and ``templates/`` of the repository, or their copies in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Folder ``name`` (``spec`` or ``templates``) of this installation. Raises FileNotFoundError."""
    for folder in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"llamagen is installed without its {name}/ folder; install it again")
