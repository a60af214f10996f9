"""What a command that writes a folder reports, while it works and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from llamagen.diagnostics import Diagnostic

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def silent(done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a command wrote: files with their bytes, how long it took, and what is worth saying about it."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    seconds: float
    notes: tuple[Diagnostic, ...] = ()


@dataclass
class ByteCounter:
    """Adds up what is done."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


def sizes_of(folder: Path) -> tuple[tuple[str, int], ...]:
    """Files of a folder and their bytes, by name."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return tuple(sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in files))


def write_text(path: Path, text: str) -> None:
    """The same bytes on every platform."""
    path.write_text(text, encoding="utf-8", newline="\n")


def llamagen_version() -> str:
    """Version of the installed package; ``0`` in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # readers import this file

    try:
        return version("llamagen")
    except PackageNotFoundError:
        return "0"
