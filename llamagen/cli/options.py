"""Options that belong to the program, not to a command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Options:
    """Set once by the root callback, read by the entry."""

    traceback: bool = False


OPTIONS = Options()
