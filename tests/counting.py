"""How much was tried: what tests count is told at the end of the run, whatever process they ran in."""

from __future__ import annotations

from collections import Counter

TRIED: Counter[str] = Counter()


def count(what: str, times: int = 1) -> None:
    """``what`` is plural, as in the line that tells it."""
    TRIED[what] += times
