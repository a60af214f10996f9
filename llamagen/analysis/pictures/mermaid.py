"""A graph as a Mermaid flowchart: one box a block definition, equal layers drawn once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from llamagen.analysis.pictures.tower import runs
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart


def mermaid(graph: Graph) -> str:
    """Text that Mermaid draws; equal graphs give equal bytes."""
    lines = ["flowchart TD", f"  %% {graph.spec_id}"]
    for block in reversed(list(graph.blocks.values())):
        lines += _block(block)
    for block in graph.blocks.values():
        lines += _contains(block)
    return "".join(f"{line}\n" for line in lines)


def _block(block: Block) -> Iterator[str]:
    yield f'  subgraph {block.name}["{block.name}"]'
    made: dict[str, str] = {}
    for value in block.inputs:
        made[value.id] = f"{block.name}_in_{value.id}"
        yield f'    {made[value.id]}(["{value.id}: {_quoted(str(value.type))}"])'
    edges: list[str] = []
    for index, node in enumerate(block.nodes):
        here = f"{block.name}_{index}"
        yield f'    {here}["{_label(block, node)}"]'
        for operand in node.operands:
            if operand.startswith("@"):
                source = f"{block.name}_at_{operand[1:]}"
                if operand not in made:
                    made[operand] = source
                    yield f'    {source}(["{operand[1:]}"])'
            edges.append(f"    {made[operand]} --> {here}")
        for result in node.results:
            made[result] = here
    yield from dict.fromkeys(edges)
    for output in block.outputs:
        yield f'    {made[output]} --> {block.name}_out(["return"])'
    yield "  end"


def _label(block: Block, node: Node) -> str:
    part = block.parts[node.part] if node.part is not None else None
    match part:
        case None:
            return node.op
        case OpPart(name=name, op=op):
            return f"{name}: {op}"
        case BlockPart(name=name, block=below):
            return f"{name}: {below}"
        case StackPart(name=name, blocks=blocks):
            return f"{name}: {' + '.join(_repeated(pattern, n) for _, pattern, n in runs(blocks))}"


def _repeated(pattern: Sequence[str], times: int) -> str:
    """``32 x Layer``, or ``12 x (3 x Local + 1 x Global)`` for layers in turn."""
    if len(pattern) == 1:
        return f"{times} x {pattern[0]}"
    inner = " + ".join(f"{len(list(run))} x {below}" for below, run in groupby(pattern))
    return f"{times} x ({inner})"


def _contains(block: Block) -> Iterator[str]:
    for index, node in enumerate(block.nodes):
        part = block.parts[node.part] if node.part is not None else None
        below: tuple[str, ...] = ()
        if isinstance(part, BlockPart):
            below = (part.block,)
        elif isinstance(part, StackPart):
            below = tuple(dict.fromkeys(part.blocks))
        for name in below:
            yield f"  {block.name}_{index} -.-> {name}"


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")
