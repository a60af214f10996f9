"""Progress of long commands: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from llamagen.cli import console
from llamagen.units import bytes_short, rate_text, seconds_text

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, in all), as often as convenient."""
CaseProgress: TypeAlias = Callable[..., None]
"""The same with the name of what was done."""

_QUIET_SECONDS = 5.0


@contextmanager
def byte_progress(what: str) -> Iterator[Progress]:
    """Shows bytes, rate and time left on stderr."""
    if sys.stderr.isatty():
        from rich.progress import DownloadColumn, TransferSpeedColumn

        yield from _bar(what, DownloadColumn(binary_units=True), TransferSpeedColumn())
    else:
        yield _Lines(what, bytes_short, lambda rate: rate_text(rate, "B")).update


@contextmanager
def case_progress(what: str, unit: str = "cases") -> Iterator[CaseProgress]:
    """Shows how many cases, or of another ``unit``, are done, the last one's name, and the time left, on stderr."""
    if sys.stderr.isatty():
        from rich.progress import MofNCompleteColumn

        yield from _bar(what, MofNCompleteColumn())
    else:
        yield _Lines(what, lambda count: f"{count:,} {unit}", lambda rate: f"{rate:.2g}/s").update


def _bar(what: str, *amounts: object) -> Iterator[CaseProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    shown = [column for column in amounts if isinstance(column, ProgressColumn)]
    columns = (TextColumn("{task.description}"), BarColumn(), *shown, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, name=what: bar.update(
            task, completed=done, total=total, description=name
        )


class _Lines:
    """At most one line every few seconds, so that logs stay short; nothing for quick work."""

    def __init__(
        self, what: str, amount: Callable[[int], str], rate: Callable[[float], str]
    ) -> None:
        self.what = what
        self.amount = amount
        self.rate = rate
        self.started = self.last = time.monotonic()

    def update(self, done: int, total: int, name: str = "") -> None:
        now = time.monotonic()
        if now - self.last < _QUIET_SECONDS:
            return
        self.last = now
        rate = done / (now - self.started)
        told = [f"{self.what}: {self.amount(done)} of {self.amount(total)}"]
        told += [name] if name else []
        told.append(self.rate(rate))
        if rate:
            told.append(f"{seconds_text((total - done) / rate)} left")
        console.note(", ".join(told))
