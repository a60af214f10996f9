"""Where a model can be cut into pipeline stages: the way from the root to its one stack of layers."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart


@dataclass(frozen=True, slots=True)
class Cut:
    """The nodes of a block around its layers: ``before`` needs the embedding stage, ``after`` the head stage.

    ``call`` runs the stack, or the block that contains it. One tensor crosses from each to the next.
    """

    before: tuple[Node, ...]
    call: Node
    after: tuple[Node, ...]


def cuts(graph: Graph) -> dict[str, Cut]:
    """Block name -> how it is cut, for the blocks from the root to the stack; empty if there is no such way."""
    found: dict[str, Cut] = {}
    block = graph.root_block
    while True:
        way = [n for n in block.nodes if _leads_to_stack(graph, block, n)]
        if len(way) != 1:
            return {}
        cut = _cut(block, way[0])
        if cut is None or block.name in found:
            return {}
        found[block.name] = cut
        part = block.parts[way[0].part or ""]
        if isinstance(part, StackPart):
            return found
        assert isinstance(part, BlockPart)
        block = graph.blocks[part.block]


def _leads_to_stack(graph: Graph, block: Block, node: Node) -> bool:
    part = block.parts[node.part] if node.part is not None else None
    match part:
        case StackPart():
            return True
        case BlockPart(block=name):
            below = graph.blocks[name]
            return any(_leads_to_stack(graph, below, n) for n in below.nodes)
        case OpPart() | None:
            return False


def _cut(block: Block, call: Node) -> Cut | None:
    at = block.nodes.index(call)
    before, after = block.nodes[:at], block.nodes[at + 1 :]
    if len(block.inputs) != 1 or len(block.outputs) != 1 or len(call.results) != 1:
        return None
    carried_in = call.operands[0]
    made_before = {r for n in before for r in n.results} | {block.inputs[0].id}
    crossing = {o for n in after for o in n.operands} | set(block.outputs) | set(call.operands[1:])
    if made_before & crossing or any(o not in made_before for o in (carried_in,)):
        return None
    if block.parts.keys() - _parts(before) - _parts(after) - _parts((call,)):
        return None
    owned = (before and _parts(before), after and _parts(after))
    if any(nodes is not None and nodes == set() for nodes in owned) or _parts(before) & _parts(
        after
    ):
        return None
    return Cut(before, call, after)


def _parts(nodes: tuple[Node, ...]) -> set[str]:
    return {n.part for n in nodes if n.part is not None}
