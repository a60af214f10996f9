"""A file made of pieces: computed by several threads, hashed in order, on the disk when it is done.

numpy, reading, `pwrite` and sha256 all release the interpreter's lock, so threads use every core. Memory is what a few
pieces take, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = Sequence[tuple[int, Bytes]]
"""Offsets in a file, and what is there."""

_READ_BACK = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one file that are made together, when asked, in any thread; all places have ``length`` bytes."""

    length: int
    make: Callable[[], Places]


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
    digest = _Digest(descriptor, gaps, marks)
    for places in _in_parallel(pieces, partial(_write, descriptor, Lock())):
        for offset, data in places:
            digest.add(offset, data)
        report(sum(data.size for _, data in places))
    return digest.all(size)


def in_turn(pieces: Iterable[Piece]) -> Iterator[memoryview]:
    """The bytes of pieces that follow one another, made ahead by several threads."""
    for places in _in_parallel(pieces, lambda piece: piece.make()):
        for _, data in places:
            yield data.data


def _in_parallel(pieces: Iterable[Piece], work: Callable[[Piece], Places]) -> Iterator[Places]:
    """What ``work`` makes of every piece, in order; a few are in memory at a time."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting: deque[Future[Places]] = deque()
    with ThreadPoolExecutor(workers, "pieces") as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > (workers or 1):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error the rest is not worth making
            for future in waiting:
                future.cancel()


def _write(descriptor: int, turn: Lock, piece: Piece) -> Places:
    places = piece.make()
    total = sum(data.size for _, data in places)
    if total != piece.length:
        raise ValueError(f"a piece came as {total} bytes, {piece.length} were announced")
    for offset, data in places:
        view = data.data
        # the kernel admits one writer of a file; a second one spins where it could convert
        with turn:
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
    return places


class _Digest:
    """sha256 of a file whose parts come in almost their order; what came early is read back from the page cache."""

    def __init__(
        self, descriptor: int, gaps: Sequence[tuple[int, int]], marks: Sequence[int]
    ) -> None:
        self.descriptor = descriptor
        self.marks = frozenset(marks)
        self.sha = hashlib.sha256()
        self.end = 0
        self.until: dict[int, str] = {}
        self.ready = list(gaps)
        heapq.heapify(self.ready)

    def add(self, offset: int, data: Bytes) -> None:
        self.advance()
        if offset == self.end:
            self.update(data.data)
        elif data.size:
            heapq.heappush(self.ready, (offset, offset + data.size))

    def advance(self) -> None:
        while self.ready and self.ready[0][0] == self.end:
            _, stop = heapq.heappop(self.ready)
            while self.end < stop:
                chunk = os.pread(self.descriptor, min(_READ_BACK, stop - self.end), self.end)
                if not chunk:
                    raise ValueError(f"the file ends at {self.end}, before {stop}")
                self.update(chunk)

    def update(self, data: memoryview | bytes) -> None:
        self.sha.update(data)
        self.end += len(data)
        if self.end in self.marks:
            self.until[self.end] = self.sha.copy().hexdigest()

    def all(self, size: int) -> Digests:
        self.advance()
        if self.end != size:
            raise ValueError(f"bytes from {self.end} of {size} were never written")
        if missed := self.marks - self.until.keys():
            raise ValueError(f"no piece ends at {min(missed)}")
        return Digests(self.sha.hexdigest(), self.until)
