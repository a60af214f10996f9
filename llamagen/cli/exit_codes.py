"""What a command says to the shell. The README has the table."""

from __future__ import annotations

from typing import Final

CLEAN: Final = 0
FINDINGS: Final = 1
USAGE: Final = 2
INVALID: Final = 3
INTERNAL: Final = 4
INTERRUPTED: Final = 130
