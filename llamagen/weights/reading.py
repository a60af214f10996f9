"""Reading any rectangle of a node with preads, as stored bits (uint8, uint16 or uint32)."""

from __future__ import annotations

import os
from itertools import product
from math import prod
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Self, assert_never

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llamagen.files import WEIGHTS, open_file
from llamagen.weights.dtypes import ITEM_SIZES
from llamagen.weights.nodes import (
    Concat,
    Lazy,
    Leaf,
    Region,
    Reshape,
    RopeRows,
    Scaled,
    Shape,
    Slice,
    Stack,
    SwapLast,
    TakeRows,
    TileTable,
    Zeros,
    shape_of,
    whole,
)
from llamagen.weights.problems import problem, quoted
from llamagen.weights.safetensors_file import TensorEntry

Bits = npt.NDArray[np.unsignedinteger]

_FLOATS = MappingProxyType(
    {
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F16": np.dtype("<f2"),
        "F32": np.dtype("<f4"),
    }
)

_DENSE_PITCH = 16 << 10
"""Rows closer than this are read together: a call costs as much as copying some 16 KiB."""
_DENSE_BYTES = 1 << 20
_STRIP = 64


class OpenFiles:
    """Checkpoint files, opened on first use, shared by threads."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}
        self._opening = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read_into(self, entry: TensorEntry, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` of the tensor. Raises LG622 if the file ends early."""
        with self._opening:
            file = self._files.get(entry.file)
            if file is None:
                file = self._files[entry.file] = open_file(entry.file, WEIGHTS)
        position = entry.offset + start
        while buffer:
            try:
                count = _read_at(file.fileno(), buffer, position)
            except OSError as error:
                raise _unreadable(entry, error.strerror or str(error)) from error
            if count == 0:
                raise _unreadable(entry, "the file ended early; it was changed while being read")
            buffer = buffer[count:]
            position += count


def _read_at(descriptor: int, buffer: memoryview, position: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], position)
    data = os.pread(descriptor, len(buffer), position)  # macOS before 11: a copy more
    buffer[: len(data)] = data
    return len(data)


def _unreadable(entry: TensorEntry, reason: str) -> Exception:
    return problem(
        "LG622", f"cannot read tensor {quoted(entry.name)} from {quoted(str(entry.file))}: {reason}"
    )


def read(node: Lazy, region: Region, files: OpenFiles) -> Bits:
    """The elements of a rectangle, as stored bits."""
    match node:
        case Leaf(entry):
            return _read_leaf(entry, region, files)
        case Scaled(entry, scale, exchanged):
            return _read_scaled(entry, scale, exchanged, region, files)
        case SwapLast(child):
            swapped = (*region[:-2], region[-1], region[-2])
            return _swapped(read(child, swapped, files))
        case RopeRows(child, heads):
            return _read_rope_rows(child, heads, region, files)
        case Concat(children, dim):
            return _read_concat(children, dim, region, files)
        case Stack(children):
            (start, stop), inner = region[0], region[1:]
            return np.stack([read(child, inner, files) for child in children[start:stop]])
        case Reshape(child, shape):
            return _read_reshaped(child, shape, region, files)
        case Slice(child, dim, offset, _):
            start, stop = region[dim]
            moved = (*region[:dim], (start + offset, stop + offset), *region[dim + 1 :])
            return read(child, moved, files)
        case TakeRows(child, rows):
            wanted, inner = rows[region[0][0] : region[0][1]], region[1:]
            low, high = min(wanted, default=0), max(wanted, default=-1) + 1
            return read(child, ((low, high), *inner), files)[[row - low for row in wanted]]
        case Zeros(_, dtype):
            sizes = tuple(stop - start for start, stop in region)
            return np.zeros(sizes, dtype=f"<u{ITEM_SIZES[dtype]}")
        case TileTable(child, grids):
            (first, last), (left, right) = region
            grid = read(child, whole(shape_of(child)), files)
            return _tile_table(grid, grids, node.tiles)[first:last, left:right]
        case _:
            assert_never(node)


def _read_leaf(entry: TensorEntry, region: Region, files: OpenFiles) -> Bits:
    item = ITEM_SIZES[entry.dtype]
    sizes = tuple(stop - start for start, stop in region)
    out: Bits = np.empty(sizes, dtype=f"<u{item}")
    if out.size == 0:
        return out
    dim = len(sizes) - 1
    while dim > 0 and sizes[dim] == entry.shape[dim]:
        dim -= 1
    dim = max(dim, 0)  # a scalar has no dimension
    strides = [item * prod(entry.shape[axis + 1 :]) for axis in range(len(sizes))]
    base = sum(start * stride for (start, _), stride in zip(region, strides, strict=True))
    # out as [outer, rows, run]: a run is contiguous in the file, rows are `pitch` bytes apart
    rows = sizes[dim - 1] if dim else 1
    pitch = strides[dim - 1] if dim else 0
    runs = out.reshape(-1, rows, prod(sizes[dim:]))
    for position, outer in enumerate(product(*map(range, sizes[: max(dim - 1, 0)]))):
        skipped = sum(index * stride for index, stride in zip(outer, strides, strict=False))
        if rows > 1 and pitch <= _DENSE_PITCH:
            _read_columns(entry, base + skipped, pitch, runs[position], files)
        else:
            for row in range(rows):
                target = runs[position, row].view(np.uint8).data
                files.read_into(entry, base + skipped + row * pitch, target)
    return out


def _read_scaled(
    entry: TensorEntry, scale: TensorEntry, swapped: bool, region: Region, files: OpenFiles
) -> Bits:
    """float32 bits; the product of a float8 and a bfloat16 or float32 scale is rounded once."""
    shape = (*scale.shape[:-2], *scale.shape[:-3:-1]) if swapped else scale.shape
    part = tuple(span if size > 1 else (0, 1) for span, size in zip(region, shape, strict=True))
    stored = (*part[:-2], part[-1], part[-2]) if swapped else part
    factors = _read_leaf(scale, stored, files).view(_FLOATS[scale.dtype]).astype(np.float32)
    if swapped:
        factors = factors.swapaxes(-1, -2)
    values = _read_leaf(entry, region, files).view(_FLOATS[entry.dtype]).astype(np.float32)
    values *= factors
    found: Bits = values.view(np.uint32)
    return found


def _read_columns(entry: TensorEntry, start: int, pitch: int, out: Bits, files: OpenFiles) -> None:
    """Rows that are close together: reading what lies between costs less than a call per row."""
    step = max(1, _DENSE_BYTES // pitch)
    scratch: Bits = np.empty((step, pitch // out.itemsize), dtype=out.dtype)
    width = out.shape[1]
    for first in range(0, out.shape[0], step):
        count = min(step, out.shape[0] - first)
        flat = scratch.reshape(-1)[: (count - 1) * scratch.shape[1] + width]
        files.read_into(entry, start + first * pitch, flat.view(np.uint8).data)
        out[first : first + count] = scratch[:count, :width]


def _swapped(source: Bits) -> Bits:
    """The last two dimensions exchanged, contiguous: by strips, several times faster than numpy."""
    out: Bits = np.empty((*source.shape[:-2], source.shape[-1], source.shape[-2]), source.dtype)
    for start in range(0, source.shape[-2], _STRIP):
        strip = source[..., start : start + _STRIP, :]
        out[..., start : start + _STRIP] = strip.swapaxes(-1, -2)
    return out


def _read_rope_rows(child: Lazy, heads: int, region: Region, files: OpenFiles) -> Bits:
    shape = shape_of(child)
    (start, stop), inner = region[0], region[1:]
    rows = shape[0] // heads
    first, last = start // rows, -(-stop // rows)
    source = read(child, ((first * rows, last * rows), *inner), files)
    tail = source.shape[1:]
    pairs = source.reshape(last - first, rows // 2, 2, *tail)
    halves = pairs.swapaxes(1, 2).reshape((last - first) * rows, *tail)
    return halves[start - first * rows : stop - first * rows]


def _read_concat(children: tuple[Lazy, ...], dim: int, region: Region, files: OpenFiles) -> Bits:
    start, stop = region[dim]
    parts: list[Bits] = []
    offset = 0
    for child in children:
        size = shape_of(child)[dim]
        low, high = max(start - offset, 0), min(stop - offset, size)
        if low < high or (start == stop and not parts):
            parts.append(read(child, (*region[:dim], (low, high), *region[dim + 1 :]), files))
        offset += size
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=dim)


def _read_reshaped(child: Lazy, shape: Shape, region: Region, files: OpenFiles) -> Bits:
    sizes = tuple(stop - start for start, stop in region)
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = sum(start * stride for (start, _), stride in zip(region, strides, strict=True))
    last = sum((stop - 1) * stride for (_, stop), stride in zip(region, strides, strict=True))
    inner = shape_of(child)
    row = prod(inner[1:])
    rows = (first // row, last // row + 1) if inner else (0, 1)
    source = read(child, (rows, *whole(inner[1:])) if inner else (), files)
    flat = np.ascontiguousarray(source).reshape(-1)[first - rows[0] * row :]
    return np.lib.stride_tricks.as_strided(
        flat, sizes, [stride * flat.itemsize for stride in strides], writeable=False
    )


def _tile_table(grid: Bits, grids: tuple[tuple[int, int], ...], tiles: int) -> Bits:
    tile = grid.shape[2] * grid.shape[3]
    table: Bits = np.zeros((len(grids) + 1, tiles * tile), dtype=grid.dtype)
    for position, (rows, columns) in enumerate(grids, start=1):
        table[position, : rows * columns * tile] = grid[:rows, :columns].reshape(-1)
    return table
