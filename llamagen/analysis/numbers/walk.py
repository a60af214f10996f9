"""Sums over a graph without unrolling it: equal blocks are counted once and multiplied.

126 layers of one block cost one visit, so that questions about the whole family stay fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar, assert_never

from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart
from llamagen.ops.dims import Dim
from llamagen.ops.op import State, TensorType

K = TypeVar("K")


def operand_types(graph: Graph, block: Block, node: Node) -> list[TensorType]:
    """Types of the operands of ``node``; ``@`` operands are graph inputs or prelude results."""
    inputs = {v.id: v.type for v in graph.inputs}
    types: list[TensorType] = []
    for operand in node.operands:
        if operand.startswith("@"):
            name = operand[1:]
            types.append(inputs[name] if name in inputs else graph.prelude_values[name].type)
        else:
            types.append(block.values[operand].type)
    return types


def result_types(block: Block, node: Node) -> list[TensorType]:
    return [block.values[r].type for r in node.results]


def sum_nodes(graph: Graph, of_node: Callable[[Block, Node], Mapping[K, Dim]]) -> dict[K, Dim]:
    """Sum of ``of_node`` over every op application of one forward pass, calls and layers included."""
    done: dict[str, dict[K, Dim]] = {}

    def total(name: str) -> dict[K, Dim]:
        if name not in done:
            block = graph.blocks[name]
            found: dict[K, Dim] = {}
            for node in block.nodes:
                part = block.parts[node.part] if node.part is not None else None
                match part:
                    case BlockPart(block=below):
                        _add(found, total(below), 1)
                    case StackPart(blocks=names):
                        for below, times in Counter(names).items():
                            _add(found, total(below), times)
                    case OpPart() | None:
                        _add(found, of_node(block, node), 1)
                    case _:
                        assert_never(part)
            done[name] = found
        return done[name]

    return total(graph.root)


def _add(into: dict[K, Dim], more: Mapping[K, Dim], times: int) -> None:
    for key, value in more.items():
        into[key] = into.get(key, Dim.of(0)) + value * times


def sum_parts(
    graph: Graph, start: Block, of_part: Callable[[Block, OpPart], Mapping[K, int]]
) -> dict[K, int]:
    """Sum of ``of_part`` over every op part of ``start`` and of the block instances below it."""
    done: dict[str, Counter[K]] = {}

    def total(block: Block) -> Counter[K]:
        if block.name not in done:
            found: Counter[K] = Counter()
            for part in block.parts.values():
                for key, count in part_total(block, part).items():
                    found[key] += count
            done[block.name] = found
        return done[block.name]

    def part_total(block: Block, part: OpPart | BlockPart | StackPart) -> Mapping[K, int]:
        match part:
            case OpPart():
                return of_part(block, part)
            case BlockPart(block=below):
                return total(graph.blocks[below])
            case StackPart(blocks=names):
                several: Counter[K] = Counter()
                for below, times in Counter(names).items():
                    for key, count in total(graph.blocks[below]).items():
                        several[key] += count * times
                return several
            case _:
                assert_never(part)

    return dict(total(start))


def behind(block: Block, value: str) -> set[str]:
    """The values of ``block`` that ``value`` is computed from, itself included."""
    producers = {r: node for node in block.nodes for r in node.results}
    seen: set[str] = set()
    open_values = [value]
    while open_values:
        here = open_values.pop()
        if here in seen:
            continue
        seen.add(here)
        node = producers.get(here)
        if node is None:
            continue
        if node.row.state is State.SLOT:
            # Its first result holds keys only, its second values only.
            open_values.append(node.operands[node.results.index(here)])
        else:
            open_values.extend(node.operands)
    return seen
