"""Copying a tensor in blocks: memory does not depend on its size.

Every value is looked at on the way: NaN and infinity are refused, and so is a finite value that
the target type cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamagen.weights import convert
from llamagen.weights.binding import Binding
from llamagen.weights.dtypes import ITEM_SIZES, TargetDType, element_count
from llamagen.weights.nodes import Leaf, Region, Scaled, Shape, blocks
from llamagen.weights.pieces import Bytes, Piece
from llamagen.weights.problems import problem, quoted, shape_text
from llamagen.weights.reading import Bits, OpenFiles, read

BLOCK_ELEMENTS = 1 << 20
"""Elements per block of a tensor that lies there as it is: what is read is still in the cache when it is converted,
hashed and written."""
REARRANGED_ELEMENTS = 8 << 20
"""Elements per block of a rearranged tensor, in up to three copies: larger blocks have longer runs in the file."""


class ByteSink(Protocol):
    """Any binary stream, buffered or not."""

    def write(self, data: memoryview, /) -> int | None: ...


def tensor_pieces(
    binding: Binding, dtype: TargetDType, offset: int, files: OpenFiles
) -> Iterator[Piece]:
    """The tensor from byte `offset` of a file on: row-major, little-endian, rounded to nearest even.

    Making a piece raises LG620 for a NaN or an infinity, LG621 for a finite value that becomes infinite in `dtype`,
    LG622 if a file cannot be read. `files` stays open until all are made.
    """
    as_it_is = isinstance(binding.source, Leaf | Scaled)
    elements = BLOCK_ELEMENTS if as_it_is else REARRANGED_ELEMENTS
    for region in blocks(binding.shape, elements):
        length = prod(stop - start for start, stop in region) * ITEM_SIZES[dtype]
        make = partial(_converted, binding, region, dtype, offset, files)
        yield Piece(length, make)
        offset += length


def _converted(
    binding: Binding, region: Region, dtype: TargetDType, offset: int, files: OpenFiles
) -> Sequence[tuple[int, Bytes]]:
    bits = checked(binding, region, files, dtype)
    result = convert.convert(bits, binding.dtype, dtype)
    # plain bytes: ml_dtypes arrays do not export a buffer
    return [(offset, result.view(np.uint8))]


def checked(
    binding: Binding, region: Region, files: OpenFiles, dtype: TargetDType | None = None
) -> Bits:
    """The stored bits of a region, one-dimensional, all finite and, with `dtype`, within its range."""
    bits = np.ascontiguousarray(read(binding.source, region, files)).reshape(-1)
    magnitude = convert.largest_magnitude(bits, binding.dtype)
    if convert.is_bad(magnitude, binding.dtype):
        raise _nonfinite(binding, region, bits)
    if dtype is not None:
        _check_range(binding, region, bits, magnitude, dtype)
    return bits


def read_part(binding: Binding, region: Region, files: OpenFiles) -> npt.NDArray[np.float32]:
    """A rectangle of a tensor as float32, in which every stored value is exact. Raises LG620, LG622."""
    bits = checked(binding, region, files)
    values = convert.convert(bits, binding.dtype, "F32").view(np.float32)
    return values.reshape([stop - start for start, stop in region])


def copy_tensor(binding: Binding, out: ByteSink, dtype: TargetDType) -> None:
    """Append the tensor to `out`, a piece at a time. Raises as the pieces do; OSErrors of `out` pass through."""
    with OpenFiles() as files:
        for piece in tensor_pieces(binding, dtype, 0, files):
            for _, data in piece.make():
                _write_all(out, data.data)


def _write_all(out: ByteSink, data: memoryview) -> None:
    while data:
        count = out.write(data)  # an unbuffered file may take less than all
        data = data[count or 0 :]


def read_tensor(binding: Binding, dtype: TargetDType) -> npt.NDArray[np.generic]:
    """The whole tensor in memory, checked as by `copy_tensor`. BF16 comes as ml_dtypes.bfloat16."""
    result = np.empty(element_count(binding.shape), dtype=convert.NUMPY_TYPES[dtype])
    copy_tensor(binding, _ArraySink(result), dtype)
    return result.reshape(binding.shape)


class _ArraySink:
    def __init__(self, result: npt.NDArray[np.generic]) -> None:
        self._bytes = result.view(np.uint8)
        self._position = 0

    def write(self, piece: memoryview, /) -> int:
        stop = self._position + len(piece)
        self._bytes[self._position : stop] = np.frombuffer(piece, np.uint8)
        self._position = stop
        return len(piece)


def first_difference(one: Binding, other: Binding) -> Shape | None:
    """The index of the first element whose value differs, None if all are equal.

    Both have the same shape. Equal bits are equal, NaN too; different types compare by value.
    """
    same = one.dtype == other.dtype
    with OpenFiles() as files:
        left = _stored_blocks(one, files, BLOCK_ELEMENTS)
        right = _stored_blocks(other, files, BLOCK_ELEMENTS)
        for (region, ours), (_, theirs) in zip(left, right, strict=True):
            differs = ours != theirs if same else _as_f32(one, ours) != _as_f32(other, theirs)
            if differs.any():
                return _index_of(region, int(np.argmax(differs)))
    return None


def _as_f32(binding: Binding, bits: Bits) -> npt.NDArray[np.generic]:
    return convert.convert(bits, binding.dtype, "F32")


def _stored_blocks(
    binding: Binding, files: OpenFiles, elements: int
) -> Iterator[tuple[Region, Bits]]:
    for region in blocks(binding.shape, elements):
        bits = read(binding.source, region, files)
        if bits.size:
            yield region, np.ascontiguousarray(bits).reshape(-1)


def _index_of(region: Region, flat: int) -> Shape:
    inside = np.unravel_index(flat, tuple(stop - start for start, stop in region))
    return tuple(start + int(offset) for (start, _), offset in zip(region, inside, strict=True))


def _place(binding: Binding, region: Region, flat: int) -> str:
    origin = "" if binding.sources == (binding.name,) else f" (from {quoted(binding.sources[0])})"
    files = ", ".join(dict.fromkeys(quoted(entry.file.name) for entry in binding.entries))
    return f"{quoted(binding.name)}{shape_text(_index_of(region, flat))}{origin} in {files}"


def _nonfinite(binding: Binding, region: Region, bits: Bits) -> Exception:
    flat = convert.first_at_least(bits, binding.dtype, convert.first_bad_magnitude(binding.dtype))
    value = convert.value_of(int(bits[flat]), binding.dtype)
    what = "NaN" if math.isnan(value) else "infinite"
    return problem(
        "LG620",
        f"{_place(binding, region, flat)} is {what}",
        help="the checkpoint is damaged; fetch it again",
    )


def _check_range(
    binding: Binding, region: Region, bits: Bits, magnitude: int, dtype: TargetDType
) -> None:
    pattern = convert.overflow_magnitude(binding.dtype, dtype)
    if pattern is None or magnitude < pattern:
        return
    flat = convert.first_at_least(bits, binding.dtype, pattern)
    raise problem(
        "LG621",
        f"{_place(binding, region, flat)} is {convert.value_of(int(bits[flat]), binding.dtype):g}, "
        f"which {dtype} cannot hold",
        help="export with --dtype bfloat16 or float32",
    )
