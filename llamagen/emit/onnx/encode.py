"""Quantised weights as bytes: rows of a weight become rows of its codes, scales and zero points.

Experts lie in one order, [E, outputs, inputs], in the codes, whatever the order in the checkpoint is: a piece is some
outputs of one expert, so that memory does not grow with an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.builder import ELEMENTS, numpy_type
from llamagen.emit.onnx.initializers import Encoding, Initializer, Placement, Source
from llamagen.weights.pieces import Bytes, Piece
from llamagen.weights.quantize import Blocks, halves, quantize_channels, quantize_rows, repacked
from llamagen.weights.tensors import Region

Floats: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, npt.NDArray[np.generic]]

Part: TypeAlias = Callable[[str, Region], Floats]
"""Role path and a rectangle of the parameter -> its values, all finite."""

PackedRows: TypeAlias = Callable[[str, int, int], npt.NDArray[np.uint8]]
"""Role path, first row, last + 1 -> the rows as a packed file has them, all finite."""

BLOCK_ELEMENTS = 1 << 20
TRANSPOSED_ELEMENTS = 1 << 24
"""Codes that are stored transposed are written a column at a time: more rows make longer runs."""
EXPERT_ELEMENTS = 8 << 20
"""Of an expert at a time: where it lies transposed, runs in its file are some KiB."""
_STRIP = 64


def encode_rows(
    entries: Sequence[Initializer], rows: Floats, importance: Floats | None = None
) -> dict[str, npt.NDArray[np.generic]]:
    """The parts ``entries`` of the weight ``rows`` [n, K], by name; codes of channels as [K, n].

    Of experts: some outputs of one, and codes as [n, bytes]. Scales of four bits are searched by the ``importance`` of
    the K columns, if there is one. Raises LG621.
    """
    how = _how(entries[0])
    if how.kind == "channels":
        whole, scales = quantize_channels(rows)
        return {entries[0].name: np.ascontiguousarray(whole.T), entries[1].name: scales}
    dtype = numpy_type(ELEMENTS[entries[1].dtype])
    searched = importance if how.bits == 4 else None
    blocks = quantize_rows(rows, how.bits, how.block, how.symmetric, dtype, searched)
    _require_range(rows, blocks.scales, how.bits, entries)
    return _by_name(entries, blocks)


def _by_name(entries: Sequence[Initializer], blocks: Blocks) -> dict[str, npt.NDArray[np.generic]]:
    """What each of ``entries`` holds."""
    how, rows = _how(entries[0]), len(blocks.packed)
    inner = entries[0].shape[2 if how.kind == "experts" else 1 :]
    codes, points = blocks.packed, blocks.zero_points
    if points is None:
        width = -(-blocks.scales.shape[1] * how.bits // 8)
        points = np.full((rows, width), 0x88 if how.bits == 4 else 0x80, np.uint8)
    lows = codes, points
    if how.halves:
        (codes, low_codes), (points, low_points) = halves(codes), halves(points)
        lows = low_codes, low_points
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for entry in entries:
        assert entry.part is not None
        match entry.part.role:
            case "codes":
                arrays[entry.name] = codes.reshape(rows, *inner)
            case "scales":
                arrays[entry.name] = blocks.scales
            case "zero_points":
                arrays[entry.name] = points
            case "minimums":
                assert blocks.minimums is not None
                arrays[entry.name] = blocks.minimums
            case "low_codes":
                arrays[entry.name] = lows[0].reshape(rows, *inner)
            case "low_zero_points":
                arrays[entry.name] = lows[1]
    return arrays


def _how(entry: Initializer) -> Encoding:
    assert entry.part is not None
    return entry.part.encoding


def _require_range(
    rows: Floats, scales: npt.NDArray[np.generic], bits: int, entries: Sequence[Initializer]
) -> None:
    """Raises LG621 where the dtype of the scales, in which kernels compute, cannot hold what the codes stand for."""
    reach = np.abs(scales.astype(np.float32)).max() * np.float32(2**bits)
    with np.errstate(over="ignore"):
        if np.isfinite(reach.astype(scales.dtype)):  # all but always: no need to look at the rows
            return
        largest = np.abs(rows).max()
        if np.isfinite(largest.astype(scales.dtype)):
            return
    names = " or ".join(f"`{source.path}`" for source in entries[0].sources)
    raise LlamagenError.of(
        "LG621",
        f"a value of {names} is {largest:.7g}, which {entries[1].dtype} cannot hold",
        help="export with --dtype bfloat16 or float32",
    )


def encoded_pieces(
    spots: Sequence[Placement], part: Part, packed: PackedRows, importance: Mapping[str, Floats]
) -> Iterator[Piece]:
    """The places of the parts of one weight in codes, some rows at a time; blocks of a packed file as they are.

    ``importance`` of columns is known by the role paths of weights; weights that are joined have the same inputs.
    """
    entries = [spot.initializer for spot in spots]
    codes, how = entries[0], _how(entries[0])
    columns = importance.get(codes.sources[0].path)
    match how.kind:
        case "experts":
            yield from _expert_pieces(spots, part, how)
        case "blocks":
            make: Callable[[], Arrays]
            for first, source, start, stop in _rows(codes, BLOCK_ELEMENTS):
                if how.packing:
                    make = partial(_repacked, entries, packed, source.path, start, stop)
                else:
                    read = partial(part, source.path, ((start, stop), (0, source.shape[1])))
                    make = partial(_encoded, entries, read, columns)
                yield _by_rows(spots, make, first + start, first + stop)
        case "channels":
            for first, source, start, stop in _rows(codes, TRANSPOSED_ELEMENTS):
                length = sum(_row_bytes(spot) for spot in spots) * (stop - start)
                read = partial(part, source.path, ((start, stop), (0, source.shape[1])))
                yield Piece(length, partial(_columns, spots, read, first + start))


def _rows(entry: Initializer, elements: int) -> Iterator[tuple[int, Source, int, int]]:
    """Some rows [start, stop) at a time of each source of ``entry``, and where its first one is among all of them."""
    first = 0
    for source in entry.sources:
        count, width = source.shape
        step = max(1, elements // width)
        for start in range(0, count, step):
            yield first, source, start, min(start + step, count)
        first += count


def _encoded(
    entries: Sequence[Initializer], read: Callable[[], Floats], importance: Floats | None = None
) -> Arrays:
    return encode_rows(entries, read(), importance)


def _repacked(
    entries: Sequence[Initializer], packed: PackedRows, path: str, start: int, stop: int
) -> Arrays:
    return _by_name(entries, repacked(packed(path, start, stop), _how(entries[0]).packing))


def _expert_pieces(spots: Sequence[Placement], part: Part, how: Encoding) -> Iterator[Piece]:
    (source,) = spots[0].initializer.sources
    experts, rows, _ = spots[0].initializer.shape
    width = source.shape[1 if how.transposed else 2]
    step = max(1, EXPERT_ELEMENTS // width // 2) * 2  # a gate never without its other half
    for expert in range(experts):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            read = partial(_outputs, part, source, how, expert, start, stop)
            make = partial(_encoded, [spot.initializer for spot in spots], read)
            yield _by_rows(spots, make, expert * rows + start, expert * rows + stop)


def _outputs(
    part: Part, source: Source, how: Encoding, expert: int, start: int, stop: int
) -> Floats:
    """Rows [start, stop) of one expert, in the order of its codes, as [n, inputs]."""
    if not how.paired:
        return _some_outputs(part, source, how.transposed, expert, start, stop)
    half = source.shape[2 if how.transposed else 1] // 2
    gate, linear = (
        _some_outputs(part, source, how.transposed, expert, first + start // 2, first + stop // 2)
        for first in (0, half)
    )
    rows: Floats = np.stack([gate, linear], axis=1).reshape(stop - start, -1)
    return rows


def _some_outputs(
    part: Part, source: Source, transposed: bool, expert: int, start: int, stop: int
) -> Floats:
    """Outputs [start, stop) of one expert as the checkpoint has them."""
    if not transposed:
        region = ((expert, expert + 1), (start, stop), (0, source.shape[2]))
        rows: Floats = part(source.path, region)[0]
        return rows
    columns = part(source.path, ((expert, expert + 1), (0, source.shape[1]), (start, stop)))[0]
    out = np.empty((stop - start, source.shape[1]), np.float32)
    for first in range(0, len(columns), _STRIP):  # several times faster than numpy's own copy
        out[:, first : first + _STRIP] = columns[first : first + _STRIP].T
    return out


def expert_rows(whole: Floats, how: Encoding) -> Floats:
    """All experts of a small parameter in the order of their codes, [E * outputs, inputs]."""
    rows = whole.swapaxes(1, 2) if how.transposed else whole
    experts, outputs, inputs = rows.shape
    if how.paired:
        rows = rows.reshape(experts, 2, outputs // 2, inputs).swapaxes(1, 2)
    return rows.reshape(experts * outputs, inputs)


def _row_bytes(spot: Placement) -> int:
    """Bytes of one row of the weight in a part of it."""
    entry = spot.initializer
    if _how(entry).kind == "experts":
        return spot.length // (entry.shape[0] * entry.shape[1])
    return spot.length // sum(source.shape[0] for source in entry.sources)


def _by_rows(
    spots: Sequence[Placement], encode: Callable[[], Arrays], start: int, stop: int
) -> Piece:
    """Rows [start, stop) of the weight as rows of all its parts, which ``encode`` gives."""

    def make() -> list[tuple[int, Bytes]]:
        arrays = encode()
        return [
            (
                spot.offset + start * _row_bytes(spot),
                arrays[spot.initializer.name].reshape(-1).view(np.uint8),
            )
            for spot in spots
        ]

    return Piece(sum(map(_row_bytes, spots)) * (stop - start), make)


def _columns(
    spots: Sequence[Placement], read: Callable[[], Floats], first: int
) -> list[tuple[int, Bytes]]:
    codes, scales = spots
    arrays = encode_rows([codes.initializer, scales.initializer], read())
    total = codes.initializer.shape[1]
    columns = arrays[codes.initializer.name].view(np.uint8)
    return [
        *((codes.offset + k * total + first, column) for k, column in enumerate(columns)),
        (scales.offset + first * 4, arrays[scales.initializer.name].view(np.uint8)),
    ]
