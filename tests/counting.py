"""How much was tried: what tests count is told at the end of the run, whatever process they ran in.

And how much work something was, which is the same however busy the machine is.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

TRIED: Counter[str] = Counter()


def count(what: str, times: int = 1) -> None:
    """``what`` is plural, as in the line that tells it."""
    TRIED[what] += times


def work(function: Callable[[], object], most: int | None = None) -> int:
    """Calls, of Python's and of C's functions, until ``function`` returns; an AssertionError ends it after ``most``."""
    calls = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        if most is not None and calls > most:
            raise AssertionError(f"more than {most:,} calls")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls
