"""Progress of long commands: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from llamagen.cli import console
from llamagen.units import bytes_short, rate_text

ByteProgress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), as often as convenient."""

_QUIET_SECONDS = 5.0


@contextmanager
def byte_progress(what: str) -> Iterator[ByteProgress]:
    """Shows bytes, rate and time left on stderr."""
    if sys.stderr.isatty():
        yield from _bar(what)
    else:
        yield _Lines(what).update


def _bar(what: str) -> Iterator[ByteProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """At most one line every few seconds, so that logs stay short; nothing for quick work."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < _QUIET_SECONDS:
            return
        self.last = now
        rate = rate_text(done / (now - self.started), "B")
        console.note(f"{self.what}: {bytes_short(done)} of {bytes_short(total)}, {rate}")
