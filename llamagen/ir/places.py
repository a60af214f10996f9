"""Where an op is applied, layer by layer, without unrolling what has none of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

from llamagen.ir.flatten import cross_name
from llamagen.ir.graph import (
    Block,
    BlockPart,
    Graph,
    Node,
    OpPart,
    StackPart,
    TensorType,
    join,
)


@dataclass(frozen=True, slots=True)
class Place:
    """One op application of the model, in execution order. ``path`` is the block instance's role path."""

    path: str
    block: Block
    node: Node


def places(graph: Graph, ops: frozenset[str]) -> Iterator[Place]:
    """Every application of one of ``ops``, in execution order; blocks without any are skipped whole."""
    holds: dict[str, bool] = {}

    def any_below(name: str) -> bool:
        if name not in holds:
            block = graph.blocks[name]
            holds[name] = any(n.op in ops for n in block.nodes) or any(
                any_below(below) for part in block.parts.values() for below in set(below_of(part))
            )
        return holds[name]

    def visit(path: str, block: Block) -> Iterator[Place]:
        for node in block.nodes:
            if node.op in ops:
                yield Place(path, block, node)
            part = block.parts[node.part] if node.part is not None else None
            match part:
                case BlockPart(name=name, block=below) if any_below(below):
                    yield from visit(join(path, name), graph.blocks[below])
                case StackPart(name=name, blocks=names):
                    for i, below in enumerate(names):
                        if any_below(below):
                            yield from visit(join(path, f"{name}.{i}"), graph.blocks[below])
                case _:
                    pass

    if any_below(graph.root):
        yield from visit("", graph.root_block)


def below_of(part: OpPart | BlockPart | StackPart) -> tuple[str, ...]:
    """Names of the blocks directly below a part, one entry an instance."""
    match part:
        case OpPart():
            return ()
        case BlockPart(block=name):
            return (name,)
        case StackPart(blocks=names):
            return names
        case _:
            assert_never(part)


def crossing(graph: Graph, way: Literal["read", "write"]) -> dict[str, TensorType]:
    """Names and types of the keys and values that a graph reads from another, or writes for others."""
    found: dict[str, TensorType] = {}
    for i, here in enumerate(places(graph, frozenset({f"cross_cache_{way}"}))):
        for end, value in zip(("key", "value"), here.node.results, strict=True):
            found[cross_name(i, end)] = here.block.values[value].type
    return found
