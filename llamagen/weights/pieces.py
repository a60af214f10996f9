"""A file made of pieces: computed by several threads, hashed in order, on the disk when it is done.

numpy, `pread`, `pwrite` and sha256 all release the interpreter's lock, so threads use every core. Memory is what a
few pieces take, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]

_READ_BACK = 1 << 20
_SYNC_EVERY = 256 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one file that are made together, when asked, in any thread.

    ``make`` gives (offset in the file, bytes) for each place; all places together have ``length`` bytes.
    """

    length: int
    make: Callable[[], Sequence[tuple[int, Bytes]]]


@dataclass(frozen=True, slots=True)
class Digests:
    """Of a file, and of its first bytes up to each mark; in hexadecimal."""

    sha256: str
    until: Mapping[int, str]


def write_pieces(
    descriptor: int,
    size: int,
    pieces: Iterable[Piece],
    gaps: Sequence[tuple[int, int]],
    report: Callable[[int], None],
    marks: Sequence[int] = (),
) -> Digests:
    """Write the pieces where they belong; the sha256 of the whole file, which has ``size`` bytes.

    ``gaps`` are the (start, stop) that no piece writes; they must read as zeros. Up to each of ``marks``, where what a
    piece writes ends, the file has a sha256 too, which costs nothing. ``report`` gets the bytes of every
    piece that is done. The first failing piece, in the order of ``pieces``, raises its error here; OSErrors of the
    file pass through.
    """
    digest = _Digest(descriptor, gaps, frozenset(marks))
    turn = Lock()
    with _Syncer(descriptor) as syncer:
        for length, made in in_parallel(pieces, lambda piece: _write(descriptor, piece, turn)):
            for offset, data in made:
                digest.add(offset, data)
            report(length)
            syncer.wrote(length)
    return digest.all(size)


def in_parallel(
    pieces: Iterable[Piece], work: Callable[[Piece], Sequence[tuple[int, Bytes]]]
) -> Iterator[tuple[int, Sequence[tuple[int, Bytes]]]]:
    """The length of every piece and what ``work`` makes of it, in order; a few of them are in memory at a time."""
    workers = _cores()
    waiting: deque[tuple[int, Future[Sequence[tuple[int, Bytes]]]]] = deque()
    with ThreadPoolExecutor(workers, "pieces") as pool:
        try:
            for piece in pieces:
                waiting.append((piece.length, pool.submit(work, piece)))
                if len(waiting) > workers:
                    length, future = waiting.popleft()
                    yield length, future.result()
            while waiting:
                length, future = waiting.popleft()
                yield length, future.result()
        finally:  # after an error the rest is not worth making
            for _, future in waiting:
                future.cancel()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(descriptor: int, piece: Piece, turn: Lock) -> Sequence[tuple[int, Bytes]]:
    made = piece.make()
    total = sum(data.size for _, data in made)
    if total != piece.length:
        raise ValueError(f"a piece came as {total} bytes, {piece.length} were announced")
    for offset, data in made:
        view = data.data
        with (
            turn
        ):  # the kernel admits one writer of a file; a second one spins where it could convert
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
    return made


@dataclass
class _Digest:
    """sha256 of a file whose parts come in almost their order; what came early is read back from the page cache."""

    descriptor: int
    gaps: Sequence[tuple[int, int]]
    marks: frozenset[int] = frozenset()
    end: int = 0
    until: dict[int, str] = field(default_factory=dict)
    _ready: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sha = hashlib.sha256()
        self._ready = list(self.gaps)
        heapq.heapify(self._ready)

    def add(self, offset: int, data: Bytes) -> None:
        self._advance()
        if offset == self.end:
            self._update(data.data)
        elif data.size:
            heapq.heappush(self._ready, (offset, offset + data.size))

    def _advance(self) -> None:
        while self._ready and self._ready[0][0] == self.end:
            _, stop = heapq.heappop(self._ready)
            while self.end < stop:
                chunk = os.pread(self.descriptor, min(_READ_BACK, stop - self.end), self.end)
                if not chunk:
                    raise ValueError(f"the file ends at {self.end}, before {stop}")
                self._update(chunk)

    def _update(self, data: memoryview | bytes) -> None:
        self._sha.update(data)
        self.end += len(data)
        if self.end in self.marks:
            self.until[self.end] = self._sha.copy().hexdigest()

    def all(self, size: int) -> Digests:
        self._advance()
        if self.end != size:
            raise ValueError(f"bytes from {self.end} of {size} were never written")
        if missed := self.marks - self.until.keys():
            raise ValueError(f"no piece ends at {min(missed)}")
        return Digests(self._sha.hexdigest(), self.until)


_sync_data = getattr(os, "fdatasync", os.fsync)
"""macOS has only the latter."""


class _Syncer:
    """Starts writing to the disk while the rest is computed, so that the last fsync has little to do."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pool = ThreadPoolExecutor(1, "sync")
        self._running: Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> _Syncer:
        return self

    def wrote(self, count: int) -> None:
        """Raises the OSError of an earlier sync."""
        self._unsynced += count
        if self._unsynced < _SYNC_EVERY or (self._running and not self._running.done()):
            return
        if self._running is not None:
            self._running.result()
        self._running = self._pool.submit(_sync_data, self._descriptor)
        self._unsynced = 0

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown()
        if self._running is not None:
            if raised[0] is None:
                self._running.result()
            else:
                with suppress(OSError):  # what was raised first is what is told
                    self._running.result()
