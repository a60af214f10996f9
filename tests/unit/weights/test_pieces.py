"""Files made of pieces: right bytes and hash in any order of places, first error first, bounded memory."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.weights.pieces import Bytes, Digests, Piece, write_pieces


def written(
    path: Path,
    pieces: Iterator[Piece],
    size: int,
    gaps: list[tuple[int, int]],
    marks: Sequence[int] = (),
) -> Digests:
    with path.open("wb+") as file:
        file.truncate(size)
        return write_pieces(file.fileno(), size, pieces, gaps, lambda count: None, marks)


def later(seconds: float, made: list[tuple[int, Bytes]]) -> Callable[[], list[tuple[int, Bytes]]]:
    def make() -> list[tuple[int, Bytes]]:
        time.sleep(seconds)
        return made

    return make


@settings(max_examples=40)
@given(st.data())
def test_bytes_and_hash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Places are dealt to pieces at random, as scales and packed weights are; some bytes belong to none."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 399), max_size=20)))
    spans = list(zip([0, *cuts], [*cuts, 400], strict=True))
    owners = data.draw(st.lists(st.integers(0, 4), min_size=len(spans), max_size=len(spans)))
    content: Bytes = np.arange(400, dtype=np.uint32).astype(np.uint8) | np.uint8(1)
    gaps = [span for span, owner in zip(spans, owners, strict=True) if owner == 4]
    for start, stop in gaps:
        content[start:stop] = 0
    pieces: list[Piece] = []
    for number in range(4):
        mine = [(a, content[a:b]) for (a, b), o in zip(spans, owners, strict=True) if o == number]
        wait = data.draw(st.sampled_from([0, 0.002]))
        pieces.append(Piece(sum(d.size for _, d in mine), later(wait, mine)))
    path = tmp_path_factory.mktemp("pieces") / "file"
    marks = [stop for (_, stop), owner in zip(spans, owners, strict=True) if owner != 4]
    digests = written(path, iter(pieces), 400, gaps, marks)
    assert path.read_bytes() == content.tobytes()
    assert digests.sha256 == hashlib.sha256(content.tobytes()).hexdigest()
    until = {mark: hashlib.sha256(content[:mark].tobytes()).hexdigest() for mark in marks}
    assert digests.until == until


def test_a_mark_where_no_piece_ends(tmp_path: Path) -> None:
    piece = Piece(5, lambda: [(0, np.ones(5, np.uint8))])
    with pytest.raises(ValueError, match="no piece ends at 3"):
        written(tmp_path / "file", iter([piece]), 5, [], [3, 5])


def test_the_first_error_in_order_is_raised_and_ends_the_work(tmp_path: Path) -> None:
    made: list[int] = []

    def make(number: int) -> list[tuple[int, Bytes]]:
        made.append(number)
        if number in (3, 4):
            time.sleep(0.05 if number == 3 else 0)
            raise ValueError(f"piece {number}")
        return [(number, np.ones(1, np.uint8))]

    pieces = (Piece(1, partial(make, n)) for n in range(1000))
    with pytest.raises(ValueError, match="piece 3"):
        written(tmp_path / "file", pieces, 1000, [])
    assert len(made) < 50


def test_few_pieces_are_in_memory(tmp_path: Path) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def make(number: int) -> list[tuple[int, Bytes]]:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return [(number, np.ones(1, np.uint8).view(Counted))]

    pieces = (Piece(1, lambda n=n: make(n)) for n in range(200))  # type: ignore[misc]
    written(tmp_path / "file", pieces, 200, [])
    assert most <= 2 * len(os.sched_getaffinity(0)) + 2


def test_what_is_never_written_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes from 0 of 10"):
        written(tmp_path / "file", iter([]), 10, [])
    piece = Piece(5, lambda: [(0, np.ones(4, np.uint8))])
    with pytest.raises(ValueError, match="4 bytes, 5 were announced"):
        written(tmp_path / "file", iter([piece]), 5, [])


def test_errors_of_the_disk_pass_through() -> None:
    piece = Piece(4, lambda: [(0, np.ones(4, np.uint8))])
    with open("/dev/full", "wb+", buffering=0) as file, pytest.raises(OSError, match="No space"):
        write_pieces(file.fileno(), 4, iter([piece]), [], lambda count: None)
