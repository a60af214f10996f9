"""Quantised weights as bytes: rows of a weight become rows of its codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from llamagen.emit.onnx.elements import ELEMENTS, numpy_type
from llamagen.emit.onnx.initializer import BlockEncoding, ChannelEncoding, Initializer
from llamagen.weights.pieces import Bytes, Piece
from llamagen.weights.quantize import quantize_channels, quantize_rows

if TYPE_CHECKING:
    from llamagen.emit.onnx.data import Placement

Rows: TypeAlias = Callable[[str, int, int], npt.NDArray[np.float32]]
"""Role path, first and last row + 1 -> those rows [n, K], all finite."""

BLOCK_ELEMENTS = 1 << 20
TRANSPOSED_ELEMENTS = 1 << 24
"""Codes that are stored transposed are written a column at a time: more rows make longer runs."""


def encode_rows(
    entries: Sequence[Initializer], rows: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.generic]]:
    """The parts ``entries`` of the weight ``rows`` [n, K], by name; codes of channels as [K, n]."""
    part = entries[0].part
    assert part is not None
    match part.encoding:
        case BlockEncoding(bits=bits, block=block, symmetric=symmetric):
            dtype = numpy_type(ELEMENTS[entries[1].dtype])
            found = quantize_rows(rows, bits, block, symmetric, dtype)
            arrays: list[npt.NDArray[np.generic] | None] = [
                found.packed.reshape(len(rows), *entries[0].shape[1:]),
                found.scales,
                found.zero_points,
            ]
        case ChannelEncoding():
            codes, scales = quantize_channels(rows)
            arrays = [np.ascontiguousarray(codes.T), scales, None]
    return {
        entry.name: array
        for entry, array in zip(entries, arrays, strict=False)
        if array is not None and entry.shares is None
    }


def encoded_pieces(spots: Sequence[Placement], rows: Rows) -> Iterator[Piece]:
    """The places of the parts of one quantised weight, some rows at a time."""
    spots = [spot for spot in spots if spot.initializer.shares is None]
    part = spots[0].initializer.part
    assert part is not None
    channels = isinstance(part.encoding, ChannelEncoding)
    done = 0
    for source in spots[0].initializer.sources:
        count, width = source.shape
        step = max(1, (TRANSPOSED_ELEMENTS if channels else BLOCK_ELEMENTS) // width)
        for start in range(0, count, step):
            stop = min(start + step, count)
            read = partial(rows, source.path, start, stop)
            length = sum(_row_bytes(spot, width) for spot in spots) * (stop - start)
            write = _by_columns if channels else _by_rows
            yield Piece(length, partial(write, spots, read, done + start))
        done += count


def _row_bytes(spot: Placement, width: int) -> int:
    """Bytes of one row of the weight in a part of it."""
    rows = sum(source.shape[0] for source in spot.initializer.sources)
    return spot.length // rows


def _by_rows(
    spots: Sequence[Placement], read: Callable[[], npt.NDArray[np.float32]], first: int
) -> list[tuple[int, Bytes]]:
    found = encode_rows([spot.initializer for spot in spots], read())
    made: list[tuple[int, Bytes]] = []
    for spot in spots:
        data = found[spot.initializer.name].reshape(-1).view(np.uint8)
        made.append((spot.offset + first * _row_bytes(spot, 0), data))
    return made


def _by_columns(
    spots: Sequence[Placement], read: Callable[[], npt.NDArray[np.float32]], first: int
) -> list[tuple[int, Bytes]]:
    codes, scales = spots
    found = encode_rows([codes.initializer, scales.initializer], read())
    total = codes.initializer.shape[1]
    columns = found[codes.initializer.name].view(np.uint8)
    made: list[tuple[int, Bytes]] = [
        (codes.offset + k * total + first, column) for k, column in enumerate(columns)
    ]
    data = found[scales.initializer.name].view(np.uint8)
    return [*made, (scales.offset + first * 4, data)]
