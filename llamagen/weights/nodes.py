"""Tensors as stored bytes plus rearrangements, and their shapes; `reading` reads them.

Every rearrangement that relates checkpoint dialects (facts.md 4.10) only moves elements, so a
tensor of any size can be produced block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import assert_never

from llamagen.weights.dtypes import WeightDType
from llamagen.weights.problems import shape_text
from llamagen.weights.safetensors_file import TensorEntry

Shape = tuple[int, ...]
Region = tuple[tuple[int, int], ...]
"""(start, stop) per dimension."""


class ShapeProblem(ValueError):
    """A rearrangement does not fit the stored shape; the text is the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored tensor."""

    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class Scaled:
    """A float8 tensor times its scales, as float32: of [out, in] scales [out, 1], of [E, in, out] scales [E, 1, out].

    `swapped` scales are [E, out, 1], as transformers stores those of `down_proj`.
    """

    entry: TensorEntry
    scale: TensorEntry
    swapped: bool


@dataclass(frozen=True, slots=True)
class SwapLast:
    """[..., A, B] -> [..., B, A]."""

    child: Lazy


@dataclass(frozen=True, slots=True)
class RopeRows:
    """Interleaved to half-split rows: row h*d + 2i + j -> row h*d + j*(d/2) + i (facts.md 4.10)."""

    child: Lazy
    heads: int


@dataclass(frozen=True, slots=True)
class Concat:
    children: tuple[Lazy, ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Stack:
    """Children of shape S -> [len(children), *S]."""

    children: tuple[Lazy, ...]


@dataclass(frozen=True, slots=True)
class Reshape:
    child: Lazy
    shape: Shape


@dataclass(frozen=True, slots=True)
class Slice:
    child: Lazy
    dim: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TileTable:
    """Meta's grid [R, C, L, W] -> table [1 + grids, T*L*W]: row a = grid[:h, :w] flattened, zero-padded.

    (h, w) = grids[a - 1], T tiles in the largest; row 0 (no image) is zero. facts.md 4.10, mllama.
    """

    child: Lazy
    grids: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> int:
        return max(rows * columns for rows, columns in self.grids)


@dataclass(frozen=True, slots=True)
class TakeRows:
    """Rows of dimension 0, in any order, any number of times."""

    child: Lazy
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Zeros:
    """Elements that no file has; all bits are zero."""

    shape: Shape
    dtype: WeightDType


Lazy = (
    Leaf
    | Scaled
    | SwapLast
    | RopeRows
    | Concat
    | Stack
    | Reshape
    | Slice
    | TileTable
    | TakeRows
    | Zeros
)


def shape_of(node: Lazy) -> Shape:
    """The shape of a node. Raises ShapeProblem if a rearrangement does not fit its operand."""
    match node:
        case Leaf(entry) | Scaled(entry, _, _):
            return entry.shape
        case SwapLast(child):
            inner = shape_of(child)
            if len(inner) < 2:
                raise ShapeProblem(f"cannot transpose {shape_text(inner)}, which has one dimension")
            return (*inner[:-2], inner[-1], inner[-2])
        case RopeRows(child, heads):
            inner = shape_of(child)
            if not inner or inner[0] % (2 * heads):
                raise ShapeProblem(
                    f"the rows of {shape_text(inner)} do not split into {heads} heads of even size"
                )
            return inner
        case Concat(children, dim):
            shapes = [shape_of(child) for child in children]
            first = shapes[0]
            rest = [shape[:dim] + shape[dim + 1 :] for shape in shapes]
            if dim >= len(first) or any(r != rest[0] for r in rest):
                listed = " and ".join(dict.fromkeys(map(shape_text, shapes)))
                raise ShapeProblem(f"cannot concatenate {listed} along dimension {dim}")
            return (*first[:dim], sum(shape[dim] for shape in shapes), *first[dim + 1 :])
        case Stack(children):
            shapes = [shape_of(child) for child in children]
            if any(shape != shapes[0] for shape in shapes):
                listed = " and ".join(dict.fromkeys(map(shape_text, shapes)))
                raise ShapeProblem(f"cannot stack tensors of different shapes {listed}")
            return (len(shapes), *shapes[0])
        case Reshape(child, shape):
            inner = shape_of(child)
            if prod(inner) != prod(shape):
                raise ShapeProblem(
                    f"cannot reshape {shape_text(inner)} to {shape_text(shape)}: "
                    f"{prod(inner):,} elements are not {prod(shape):,}"
                )
            return shape
        case Slice(child, dim, start, stop):
            inner = shape_of(child)
            if dim >= len(inner) or not 0 <= start < stop <= inner[dim]:
                raise ShapeProblem(
                    f"{shape_text(inner)} has no part {start}:{stop} along dimension {dim}"
                )
            return (*inner[:dim], stop - start, *inner[dim + 1 :])
        case TileTable(child, grids):
            inner, most = shape_of(child), tuple(map(max, zip(*grids, strict=True)))
            if len(inner) != 4 or inner[:2] != most:
                raise ShapeProblem(f"{shape_text(inner)} is not a grid of {most} tiles")
            return (len(grids) + 1, node.tiles * inner[2] * inner[3])
        case TakeRows(child, rows):
            inner = shape_of(child)
            if not inner or not rows or min(rows) < 0 or max(rows) >= inner[0]:
                raise ShapeProblem(f"{shape_text(inner)} does not have all of these rows")
            return (len(rows), *inner[1:])
        case Zeros(shape):
            return shape
        case _:
            assert_never(node)


def leaves(node: Lazy) -> Iterator[TensorEntry]:
    """Every stored tensor under a node, in reading order."""
    match node:
        case Leaf(entry):
            yield entry
        case Scaled(entry, scale, _):
            yield entry
            yield scale
        case Concat(children, _) | Stack(children):
            for child in children:
                yield from leaves(child)
        case SwapLast() | RopeRows() | Reshape() | Slice() | TileTable() | TakeRows():
            yield from leaves(node.child)
        case Zeros():
            return
        case _:
            assert_never(node)


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
    inner = prod(shape[dim + 1 :])
    step = max(1, max_elements // inner)
    for outer in product(*map(range, shape[:dim])):
        for start in range(0, shape[dim], step):
            yield (
                *((index, index + 1) for index in outer),
                (start, min(start + step, shape[dim])),
                *whole(shape[dim + 1 :]),
            )
