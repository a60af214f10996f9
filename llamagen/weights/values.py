"""The values of a tensor on their way into a file: read in blocks, looked at, converted.

Memory does not depend on the size of a tensor. NaN and infinity are refused, and so is a finite value that the target
type cannot hold. Magnitudes of IEEE-like floats order like their bits without the sign, so one integer maximum finds
NaN and infinity and predicts overflow in the target type.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.weights.names import Binding
from llamagen.weights.pieces import Bytes, Piece
from llamagen.weights.quantize import repacked
from llamagen.weights.safetensors import ITEM_SIZES, TargetDType, WeightDType, shape_text
from llamagen.weights.tensors import Region, Shape, blocks

if TYPE_CHECKING:
    from llamagen.weights.tensors import Bits

BLOCK_ELEMENTS = 1 << 20
"""Elements per block of a tensor that lies there as it is: what is read is still in the cache when it is converted,
hashed and written."""
REARRANGED_ELEMENTS = 8 << 20
"""Elements per block of a rearranged tensor, in up to three copies: larger blocks have longer runs in the file."""

_STEP = 1 << 18
"""Elements looked at and converted at a time: the temporaries stay in the cache."""

NUMPY_TYPES: MappingProxyType[WeightDType, npt.DTypeLike] = MappingProxyType(
    {
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    }
)

_NOT_FINITE: MappingProxyType[WeightDType, int] = MappingProxyType(
    # e4m3fn: no infinities, all ones is NaN (OCP OFP8)
    {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00, "F8_E4M3": 0x7F}
)
"""The smallest magnitude that is infinity or NaN."""


def overflow_magnitude(source: WeightDType, target: TargetDType) -> int | None:
    """Smallest magnitude of `source` that rounds to infinity in `target`, None if there is none.

    Half-way between the largest finite value and the next power of two: the tie goes to even, up.
    """
    match source, target:
        case "F32", "F16":
            return 0x477FF000  # 65520
        case "BF16", "F16":
            return 0x4780  # 65536; its predecessor 65280 is finite
        case "F32", "BF16":
            return 0x7F7F8000
        case _:
            return None


def largest_magnitude(bits: Bits) -> int:
    """The largest sign-less bit pattern; `bits` is one-dimensional."""
    # Two maxima and no temporary: as unsigned integers the negative numbers are the largest, as signed
    # integers the positive ones.
    mask = 2 ** (8 * bits.itemsize - 1) - 1
    signed = bits.view(f"i{bits.itemsize}")
    largest = 0
    for start in range(0, bits.size, _STEP):
        negative = int(bits[start : start + _STEP].max())
        positive = int(signed[start : start + _STEP].max())
        largest = max(largest, positive, negative & mask if negative > mask else 0)
    return largest


def convert(bits: Bits, source: WeightDType, target: TargetDType) -> npt.NDArray[np.generic]:
    """One-dimensional `bits` of type `source` as an array of type `target`, rounded once to nearest even.

    Values beyond the target's range become infinite: compare with `overflow_magnitude` before.
    """
    typed = bits.view(NUMPY_TYPES[source])
    if source == target:
        return typed
    result: npt.NDArray[np.generic] = np.empty(bits.size, NUMPY_TYPES[target])
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, bits.size, _STEP):
            # ml_dtypes and numpy go through float32, in which every source is exact: one rounding
            step = slice(start, start + _STEP)
            np.copyto(result[step], typed[step], casting="unsafe")
    return result


def checked(binding: Binding, region: Region, target: TargetDType | None = None) -> Bits:
    """The stored bits of a rectangle, one-dimensional, all finite and within the range of `target`.

    Raises LG620 for a NaN or an infinity, LG621 for a finite value that becomes infinite in `target`, LG622 if a file
    cannot be read.
    """
    bits = np.ascontiguousarray(binding.tensor.read(region)).reshape(-1)
    largest, bad = largest_magnitude(bits), _NOT_FINITE[binding.dtype]
    over = None if target is None else overflow_magnitude(binding.dtype, target)
    if largest < (bad if over is None else min(bad, over)):
        return bits
    limit = bad if largest >= bad or over is None else over
    mask = bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1)
    flat = int(np.argmax(np.bitwise_and(bits, mask) >= limit))
    value = float(bits[flat : flat + 1].view(NUMPY_TYPES[binding.dtype])[0])
    origin = "" if binding.sources == (binding.name,) else f" (from {quoted(binding.sources[0])})"
    files = ", ".join(dict.fromkeys(quoted(entry.file.name) for entry in binding.tensor.entries))
    where = f"{quoted(binding.name)}{shape_text(_index_of(region, flat))}{origin} in {files}"
    if limit == bad:
        message = f"{where} is {'NaN' if np.isnan(value) else 'infinite'}"
        help = "the checkpoint is damaged; fetch it again"
        raise LlamagenError.of("LG620", message, help=help)
    message = f"{where} is {value:g}, which {target} cannot hold"
    raise LlamagenError.of("LG621", message, help="export with --dtype bfloat16 or float32")


def tensor_pieces(binding: Binding, dtype: TargetDType, offset: int) -> Iterator[Piece]:
    """The tensor from byte `offset` of a file on: row-major, little-endian. Making a piece raises as `checked`."""

    def make(region: Region, at: int) -> list[tuple[int, Bytes]]:
        values = convert(checked(binding, region, dtype), binding.dtype, dtype)
        return [(at, values.view(np.uint8))]  # plain bytes: ml_dtypes arrays do not export a buffer

    elements = BLOCK_ELEMENTS if binding.tensor.in_order else REARRANGED_ELEMENTS
    for region in blocks(binding.tensor.shape, elements):
        length = prod(stop - start for start, stop in region) * ITEM_SIZES[dtype]
        yield Piece(length, partial(make, region, offset))
        offset += length


def read_part(binding: Binding, region: Region) -> npt.NDArray[np.float32]:
    """A rectangle of a tensor as float32, in which every stored value is exact. Raises LG620, LG622."""
    values = convert(checked(binding, region), binding.dtype, "F32").view(np.float32)
    return values.reshape([stop - start for start, stop in region])


def read_packed(
    binding: Binding, start: int, stop: int, target: TargetDType
) -> npt.NDArray[np.uint8]:
    """Rows [start, stop) of a tensor as its file packs them, [n, bytes], in one of the types that are kept.

    Raises LG620, LG621 for what they stand for in ``target``, LG622.
    """
    packed, packing = binding.tensor.packed, binding.tensor.packing()
    assert packed is not None
    rows = packed.read(((start, stop), (0, packed.shape[1]))).view(np.uint8)
    blocks = repacked(rows, packing)
    largest = {"Q4_0": 8, "Q8_0": 128}.get(packing, 15)
    reach = np.abs(blocks.scales.astype(np.float32)) * np.float32(largest)
    if blocks.minimums is not None:
        reach += np.abs(blocks.minimums.astype(np.float32))
    if not np.isfinite(reach).all() or (target == "F16" and reach.max(initial=0) > 65504):
        # what a scale or a minimum that is not finite stands for is not finite either, whatever the code
        checked(binding, ((start, stop), (0, binding.tensor.shape[1])), target)
    return rows


def first_difference(one: Binding, other: Binding) -> Shape | None:
    """The index of the first element whose value differs, None if all are equal.

    Both have the same shape. Equal bits are equal, NaN too; different types compare by value.
    """
    for region in blocks(one.tensor.shape, BLOCK_ELEMENTS):
        ours, theirs = (
            np.ascontiguousarray(b.tensor.read(region)).reshape(-1) for b in (one, other)
        )
        if one.dtype == other.dtype:
            differs = ours != theirs
        else:
            differs = convert(ours, one.dtype, "F32") != convert(theirs, other.dtype, "F32")
        if differs.any():
            return _index_of(region, int(np.argmax(differs)))
    return None


def _index_of(region: Region, flat: int) -> Shape:
    inside = np.unravel_index(flat, [stop - start for start, stop in region])
    return tuple(start + int(offset) for (start, _), offset in zip(region, inside, strict=True))
