"""Tensors that are read when they are asked for, a rectangle at a time, as stored bits (uint8, uint16 or uint32).

Every rearrangement that relates checkpoint dialects (facts.md 4.10) only moves elements, so a tensor of any size can be
produced block by block: each says which rectangle of its source it needs. Shapes are known without reading, and numpy
is imported when the first value is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from llamagen.diagnostics import LlamagenError, quoted
from llamagen.files import WEIGHTS, open_file
from llamagen.weights.gguf_file import PACKINGS
from llamagen.weights.safetensors import (
    ITEM_SIZES,
    WEIGHT_DTYPES,
    TensorEntry,
    WeightDType,
    shape_text,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bits = npt.NDArray[np.unsignedinteger]

Shape = tuple[int, ...]
Region = tuple[tuple[int, int], ...]
"""(start, stop) per dimension."""

_STRIP = 64
"""Columns that are exchanged at a time: several times faster than numpy's own copy."""


class ShapeProblem(ValueError):
    """A rearrangement does not fit the stored shape; the text is the end of a sentence."""


WITH_POINTS = "Q4 with zero points"
"""Blocks as AWQ and GPTQ have them: of 32 codes q, a scale d and a zero point z, d (q - z). No type of GGUF."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A shape, what is read for it, and how a rectangle of it is read."""

    shape: Shape
    entries: tuple[TensorEntry, ...]
    """Stored tensors, in reading order."""
    read: Callable[[Region], Bits]
    in_order: bool = False
    """Whether its elements lie one after the other in a file, in this order."""
    packed: Tensor | None = None
    """The same rows in the blocks of a packed file, as bytes [..., bytes of a row at most]."""
    packing: Callable[[], str] = lambda: ""
    """The type of these blocks, for which some values are read; none if they cannot mean the same numbers."""


def stored(entry: TensorEntry) -> Tensor:
    """What a file holds. Reading raises LG622 for a file that is not what its header said."""
    return Tensor(entry.shape, (entry,), lambda region: _read(entry, region), in_order=True)


def _read(entry: TensorEntry, region: Region) -> Bits:
    import numpy as np

    item = ITEM_SIZES[entry.dtype]
    sizes = tuple(stop - start for start, stop in region)
    out: Bits = np.empty(sizes, dtype=f"<u{item}")
    if not out.size:
        return out
    # from `dim` on the region is whole, so that a run of it is contiguous in the file
    dim = len(sizes)
    while dim and sizes[dim - 1] == entry.shape[dim - 1]:
        dim -= 1
    dim = max(dim - 1, 0)
    strides = [item * prod(entry.shape[axis + 1 :]) for axis in range(len(sizes))]
    start = entry.offset + sum(first * s for (first, _), s in zip(region, strides, strict=True))
    runs = out.reshape(prod(sizes[:dim]), -1).view(np.uint8)
    try:
        file = open_file(entry.file, WEIGHTS)
    except LlamagenError as error:
        raise _unreadable(entry, "it was changed while it was read") from error
    try:
        with file:
            for run, index in zip(runs, product(*map(range, sizes[:dim])), strict=True):
                file.seek(
                    start + sum(i * stride for i, stride in zip(index, strides, strict=False))
                )
                if file.readinto(run.data) != run.size:
                    raise _unreadable(entry, "it ended early; it was changed while it was read")
    except OSError as error:
        raise _unreadable(entry, error.strerror or str(error)) from error
    return out


def _unreadable(entry: TensorEntry, reason: str) -> LlamagenError:
    where = f"tensor {quoted(entry.name)} from {quoted(str(entry.file))}"
    return LlamagenError.of("LG622", f"cannot read {where}: {reason}")


def unpacked(entry: TensorEntry) -> Tensor:
    """A tensor in one of GGUF's packed types, as float32: what the package `gguf` makes of its blocks."""
    (packing,) = (one for one in PACKINGS.values() if one.dtype == entry.dtype)
    pitch = entry.shape[-1] // packing.elements * packing.size
    rows = replace(entry, dtype="U8", shape=(*entry.shape[:-1], pitch))

    def read(region: Region) -> Bits:
        import numpy as np
        from gguf import GGMLQuantizationType, dequantize

        sizes = [stop - start for start, stop in region]
        if 0 in sizes:
            return np.empty(sizes, np.uint32)
        first, last = region[-1]
        low, high = first // packing.elements, -(-last // packing.elements)
        span = (low * packing.size, high * packing.size)
        packed = _read(rows, (*region[:-1], span))
        with np.errstate(all="ignore"):  # what is not finite is a finding of who reads
            values = dequantize(packed, GGMLQuantizationType[entry.dtype])
        values = values.astype(np.float32, copy=False)
        offset = low * packing.elements
        bits: Bits = np.ascontiguousarray(values[..., first - offset : last - offset]).view(
            np.uint32
        )
        return bits

    blocks = stored(rows)
    return Tensor(
        entry.shape, (entry,), read, in_order=True, packed=blocks, packing=lambda: entry.dtype
    )


def scaled(entry: TensorEntry, scale: TensorEntry, swapped: bool) -> Tensor:
    """A float8 tensor times its scales, as float32: of [out, in] scales [out, 1], of [E, in, out] scales [E, 1, out].

    `swapped` scales are [E, out, 1], as transformers stores those of `down_proj`.
    """
    factors = swap_last(stored(scale)) if swapped else stored(scale)
    if len(scale.shape) < 2:
        factors = reshape(factors, (1, 1))
    scale_dtype = next(one for one in WEIGHT_DTYPES if one == scale.dtype)

    def read(region: Region) -> Bits:
        import numpy as np

        from llamagen.weights.values import NUMPY_TYPES

        own = tuple(s if n > 1 else (0, 1) for s, n in zip(region, factors.shape, strict=True))
        values = _read(entry, region).view(NUMPY_TYPES["F8_E4M3"]).astype(np.float32)
        # the product of a float8 and a bfloat16 or float32 scale is rounded once
        values *= factors.read(own).view(NUMPY_TYPES[scale_dtype]).astype(np.float32)
        bits: Bits = values.view(np.uint32)
        return bits

    return Tensor(entry.shape, (entry, scale), read, in_order=True)


Typed = tuple[Tensor, WeightDType]


def low_rank(base: Typed, up: Typed, down: Typed, factor: float) -> Tensor:
    """base [O, I] + factor * up [O, r] @ down [r, I], as float32."""

    def read(region: Region) -> Bits:
        import numpy as np

        from llamagen.weights.values import NUMPY_TYPES

        def floats(of: Typed, part: Region) -> npt.NDArray[np.float32]:
            tensor, dtype = of
            return tensor.read(part).view(NUMPY_TYPES[dtype]).astype(np.float32)

        rows, columns = region
        rank = (0, up[0].shape[1])
        product = floats(up, (rows, rank)) @ floats(down, (rank, columns))
        bits: Bits = (floats(base, region) + product * np.float32(factor)).view(np.uint32)
        return bits

    entries = (*base[0].entries, *up[0].entries, *down[0].entries)
    return Tensor(base[0].shape, entries, read)


def swap_last(source: Tensor) -> Tensor:
    """[..., A, B] -> [..., B, A]."""
    if len(source.shape) < 2:
        raise ShapeProblem(f"cannot transpose {shape_text(source.shape)}, which has one dimension")

    def read(region: Region) -> Bits:
        import numpy as np

        bits = source.read((*region[:-2], region[-1], region[-2]))
        out = np.empty((*bits.shape[:-2], bits.shape[-1], bits.shape[-2]), bits.dtype)
        for start in range(0, bits.shape[-2], _STRIP):
            strip = bits[..., start : start + _STRIP, :]
            out[..., start : start + _STRIP] = strip.swapaxes(-1, -2)
        return out

    shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    return Tensor(shape, source.entries, read)


def rope_rows(source: Tensor, heads: int) -> Tensor:
    """Interleaved to half-split rows: row h*d + 2i + j -> row h*d + j*(d/2) + i (facts.md 4.10)."""
    shape = source.shape
    if not shape or shape[0] % (2 * heads):
        text = shape_text(shape)
        raise ShapeProblem(f"the rows of {text} do not split into {heads} heads of even size")
    size = shape[0] // heads

    def read(region: Region) -> Bits:
        (start, stop), *inner = region
        first, last = start // size, -(-stop // size)
        bits = source.read(((first * size, last * size), *inner))
        pairs = bits.reshape(last - first, size // 2, 2, *bits.shape[1:])
        halves = pairs.swapaxes(1, 2).reshape(bits.shape)
        return halves[start - first * size : stop - first * size]

    packed = None if source.packed is None else rope_rows(source.packed, heads)
    return Tensor(shape, source.entries, read, packed=packed, packing=source.packing)


def concat(sources: Sequence[Tensor], dim: int) -> Tensor:
    shapes = [source.shape for source in sources]
    if len({(*s[:dim], *s[dim + 1 :]) for s in shapes}) > 1 or dim >= min(map(len, shapes)):
        listed = " and ".join(dict.fromkeys(map(shape_text, shapes)))
        raise ShapeProblem(f"cannot concatenate {listed} along dimension {dim}")
    total = sum(shape[dim] for shape in shapes)

    def read(region: Region) -> Bits:
        import numpy as np

        (start, stop), offset = region[dim], 0
        parts: list[Bits] = []
        for source in sources:
            low, high = max(start - offset, 0), min(stop - offset, source.shape[dim])
            if low < high or (start == stop and not parts):
                parts.append(source.read((*region[:dim], (low, high), *region[dim + 1 :])))
            offset += source.shape[dim]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=dim)

    shape = (*shapes[0][:dim], total, *shapes[0][dim + 1 :])
    return Tensor(shape, tuple(e for source in sources for e in source.entries), read)


def stack(sources: Sequence[Tensor]) -> Tensor:
    """Sources of shape S -> [len(sources), *S]."""
    shapes = dict.fromkeys(source.shape for source in sources)
    if len(shapes) > 1:
        listed = " and ".join(map(shape_text, shapes))
        raise ShapeProblem(f"cannot stack tensors of different shapes {listed}")

    def read(region: Region) -> Bits:
        import numpy as np

        (start, stop), *inner = region
        return np.stack([source.read(tuple(inner)) for source in sources[start:stop]])

    shape = (len(sources), *sources[0].shape)
    return Tensor(shape, tuple(e for source in sources for e in source.entries), read)


def reshape(source: Tensor, shape: Shape) -> Tensor:
    elements = prod(shape)
    if prod(source.shape) != elements:
        texts = f"{shape_text(source.shape)} to {shape_text(shape)}"
        counts = f"{prod(source.shape):,} elements are not {elements:,}"
        raise ShapeProblem(f"cannot reshape {texts}: {counts}")

    def read(region: Region) -> Bits:
        """Whole rows of the source that hold the rectangle."""
        row, inner = prod(source.shape[1:]) or 1, prod(shape[1:])
        (start, stop), *rest = region or ((0, 1),)
        first, last = start * inner // row, -(-stop * inner // row)
        bits = source.read(((first, last), *whole(source.shape[1:])) if source.shape else ())
        flat = bits.reshape(-1)[start * inner - first * row : stop * inner - first * row]
        rows = flat.reshape(stop - start, *shape[1:])[:, *(slice(*span) for span in rest)]
        return rows.reshape([stop - start for start, stop in region])

    return Tensor(shape, source.entries, read)


def cut(source: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """Elements [start, stop) along ``dim``."""
    shape = source.shape
    if dim >= len(shape) or not 0 <= start < stop <= shape[dim]:
        raise ShapeProblem(f"{shape_text(shape)} has no part {start}:{stop} along dimension {dim}")

    def read(region: Region) -> Bits:
        first, last = region[dim]
        return source.read((*region[:dim], (first + start, last + start), *region[dim + 1 :]))

    return Tensor((*shape[:dim], stop - start, *shape[dim + 1 :]), source.entries, read)


def tile_table(source: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """Meta's grid [R, C, L, W] -> table [1 + grids, T*L*W]: row a = grid[:h, :w] flattened, zero-padded.

    (h, w) = grids[a - 1], T tiles in the largest; row 0 (no image) is zero. facts.md 4.10, mllama.
    """
    most = tuple(map(max, zip(*grids, strict=True)))
    if len(source.shape) != 4 or source.shape[:2] != most:
        raise ShapeProblem(f"{shape_text(source.shape)} is not a grid of {most} tiles")
    tile = source.shape[2] * source.shape[3]
    shape = (len(grids) + 1, max(rows * columns for rows, columns in grids) * tile)

    def read(region: Region) -> Bits:
        import numpy as np

        grid = source.read(whole(source.shape))
        table = np.zeros(shape, grid.dtype)
        for row, (rows, columns) in enumerate(grids, start=1):
            table[row, : rows * columns * tile] = grid[:rows, :columns].reshape(-1)
        return table[tuple(slice(*span) for span in region)]

    return Tensor(shape, source.entries, read)


def take_rows(source: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of dimension 0, in any order, any number of times."""

    def read(region: Region) -> Bits:
        (start, stop), *inner = region
        wanted = rows[start:stop]
        low, high = min(wanted, default=0), max(wanted, default=-1) + 1
        return source.read(((low, high), *inner))[[row - low for row in wanted]]

    return Tensor((len(rows), *source.shape[1:]), source.entries, read)


def zeros(shape: Shape, dtype: WeightDType) -> Tensor:
    """Elements that no file has; all bits are zero."""

    def read(region: Region) -> Bits:
        import numpy as np

        return np.zeros([stop - start for start, stop in region], f"<u{ITEM_SIZES[dtype]}")

    return Tensor(shape, (), read)


def whole(shape: Shape) -> Region:
    return tuple((0, size) for size in shape)


def blocks(shape: Shape, max_elements: int) -> Iterator[Region]:
    """Rectangles that cover `shape` in row-major order, each contiguous and at most that large."""
    if prod(shape) <= max_elements:
        yield whole(shape)
        return
    dim = len(shape) - 1
    while prod(shape[dim:]) <= max_elements:
        dim -= 1
    step = max(1, max_elements // prod(shape[dim + 1 :]))
    for outer in product(*map(range, shape[:dim])):
        for start in range(0, shape[dim], step):
            yield (
                *((index, index + 1) for index in outer),
                (start, min(start + step, shape[dim])),
                *whole(shape[dim + 1 :]),
            )
