"""The command line: parse, call ``llamagen.api`` or an analysis, render, exit code; nothing else.

Results go to stdout, diagnostics and progress to stderr. Exit codes: 0 clean, 1 findings, 2 usage, 3 invalid
input, 4 internal error.
"""

from __future__ import annotations

from llamagen.cli.entry import main

__all__ = ["main"]
