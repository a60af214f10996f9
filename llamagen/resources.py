"""Where the shipped data lives: ``spec/`` and ``templates/`` of the repository, or their copies in a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Folder ``name`` (``spec`` or ``templates``) of this installation. Raises FileNotFoundError."""
    for folder in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"llamagen is installed without its {name}/ folder; install it again")


def data_text(folder: str, name: str) -> str:
    """A file of ``data_folder``. Raises OSError where the installation is damaged."""
    return (data_folder(folder) / name).read_text(encoding="utf-8")


def templates(folder: str, *, html: bool = False) -> Environment:
    """The templates of templates/``folder``; they only place text, and a name that is not given is an error.

    With ``html`` every value is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(data_folder("templates") / folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,
    )
