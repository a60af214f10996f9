"""From a rule and the stored tensors it names to one readable tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import assert_never

from llamagen.spec.naming import BoundLayout
from llamagen.spec.schema import (
    ConcatSources,
    Identity,
    NameRule,
    ReshapeTo,
    RopePermute,
    SlicePart,
    StackSources,
    TileTableRows,
    TransposeLast,
    placeholders,
)
from llamagen.weights.dtypes import WeightDType
from llamagen.weights.nodes import (
    Concat,
    Lazy,
    Leaf,
    Reshape,
    RopeRows,
    Scaled,
    Shape,
    ShapeProblem,
    Slice,
    Stack,
    SwapLast,
    TileTable,
    leaves,
    shape_of,
)
from llamagen.weights.rules import fill_name, match_name
from llamagen.weights.safetensors_file import TensorEntry
from llamagen.weights.stored_tensor import StoredTensor


@dataclass(frozen=True, slots=True)
class Binding:
    """How one wanted tensor is made: its role path, its shape, and what to read."""

    name: str
    shape: Shape
    dtype: WeightDType
    source: Lazy
    sources: tuple[str, ...]
    """Stored names, in reading order."""

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The stored tensors that are read."""
        return tuple(leaves(self.source))

    def transposed(self) -> Binding:
        """The same tensor with its last two dimensions swapped."""
        swapped = SwapLast(self.source)
        return Binding(self.name, shape_of(swapped), self.dtype, swapped, self.sources)

    def part(self, dim: int, start: int, stop: int) -> Binding:
        """Elements [start, stop) along `dim`."""
        piece = Slice(self.source, dim, start, stop)
        return Binding(self.name, shape_of(piece), self.dtype, piece, self.sources)


def source_names(
    rule: NameRule, wanted: str, layout: BoundLayout, stored: Mapping[str, StoredTensor]
) -> tuple[tuple[str, ...], ...] | None:
    """Stored names that the rule wants, as rows (one per free number) of columns (`from`).

    None if the rule is not about `wanted`. Without a free number there is one row. With one,
    rows go on while the first source exists; at least one row is returned.
    """
    captured = match_name(rule.to, wanted, layout)
    if captured is None:
        return None
    free = [
        name for source in rule.sources for name in placeholders(source) if name not in captured
    ]
    if not free:
        return (tuple(fill_name(source, captured) for source in rule.sources),)
    rows: list[tuple[str, ...]] = []
    while True:
        numbered = {**captured, free[0]: str(len(rows))}
        row = tuple(fill_name(source, numbered) for source in rule.sources)
        if rows and row[0] not in stored:
            return tuple(rows)
        rows.append(row)


def assemble(
    rule: NameRule,
    rows: Sequence[Sequence[StoredTensor]],
    layout: BoundLayout,
    shape: Shape,
) -> Lazy:
    """The tensor that the rule makes of its sources; joins ranks so that `shape` results.

    If no way of joining gives `shape`, the first is returned, or its ShapeProblem raised.
    """
    fallback: Lazy | None = None
    refused: ShapeProblem | None = None
    # all rows join alike: experts are stored alike
    for dims in product(*(_rank_dims(tensor, layout) for tensor in rows[0])):
        try:
            grid = [
                [_joined(tensor, dim) for tensor, dim in zip(row, dims, strict=True)]
                for row in rows
            ]
            result = _applied(rule, grid, shape)
            if shape_of(result) == shape:
                return result
        except ShapeProblem as error:
            refused = refused or error
        else:
            fallback = fallback or result
    if fallback is not None:
        return fallback
    assert refused is not None, "a rank has at least one way to join"
    raise refused


def _rank_dims(tensor: StoredTensor, layout: BoundLayout) -> tuple[int | None, ...]:
    if len(tensor.pieces) == 1:
        return (None,)
    for rule in layout.shards:
        if any(match_name(pattern, tensor.name, layout) is not None for pattern in rule.names):
            return rule.dims
    return (None,)


def _joined(tensor: StoredTensor, dim: int | None) -> Lazy:
    if tensor.scale is not None:
        return Scaled(tensor.pieces[0], tensor.scale, tensor.swapped_scale)
    if dim is None:
        return Leaf(tensor.pieces[0])
    if dim >= len(tensor.shape):
        raise ShapeProblem(f"shards of {list(tensor.shape)} cannot join along dimension {dim}")
    return Concat(tuple(Leaf(piece) for piece in tensor.pieces), dim)


def _applied(rule: NameRule, grid: list[list[Lazy]], shape: Shape) -> Lazy:
    for step in rule.transform:
        match step:
            case Identity():
                pass
            case RopePermute(heads=heads):
                assert isinstance(heads, int), "bind_layout comes first"
                grid = [[RopeRows(node, heads) for node in row] for row in grid]
            case TransposeLast():
                grid = [[SwapLast(node) for node in row] for row in grid]
            case ConcatSources(dim=dim):
                grid = [[Concat(tuple(row), dim)] for row in grid]
            case StackSources():
                grid = [[Stack(tuple(column)) for column in zip(*grid, strict=True)]]
            case ReshapeTo(shape=to):
                grid = [
                    [Reshape(node, shape if to is None else to) for node in row] for row in grid
                ]
            case SlicePart(dim=dim, start=start, stop=stop):
                assert isinstance(start, int) and isinstance(stop, int), "bind_layout comes first"
                grid = [[Slice(node, dim, start, stop) for node in row] for row in grid]
            case TileTableRows(grids=grids):
                assert isinstance(grids, tuple), "bind_layout comes first"
                grid = [[TileTable(node, grids) for node in row] for row in grid]
            case _:
                assert_never(step)
    ((result,),) = grid
    return result
