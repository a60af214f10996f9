"""The command line: parse, call ``llamagen.api`` or an analysis, render, exit code; nothing else.

Results go to stdout, diagnostics and progress to stderr. Exit codes: 0 clean, 1 findings, 2 usage, 3 invalid
input, 4 internal error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` lacks the program's name. Returns the exit code, never raises."""
    from llamagen.cli.entry import run

    return run(list(sys.argv[1:] if argv is None else argv))
