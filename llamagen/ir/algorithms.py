"""Graph algorithms, all of them from networkx, imported when one is used (it is slow to import)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamagen.ir.flatten import FlatGraph
from llamagen.ir.graph import Graph
from llamagen.ops.op import State

if TYPE_CHECKING:
    import networkx as nx


def definitions(graph: Graph) -> nx.DiGraph[str]:
    """Block definitions; an edge from a block to each block that it contains."""
    import networkx as nx

    result: nx.DiGraph[str] = nx.DiGraph()
    result.add_nodes_from(graph.blocks)
    for block in graph.blocks.values():
        result.add_edges_from((block.name, below) for below in block.below)
    return result


def definition_cycle(graph: Graph) -> list[str]:
    """Blocks that contain each other, in order; empty when there are none."""
    import networkx as nx

    try:
        return [a for a, _ in nx.find_cycle(definitions(graph))]
    except nx.NetworkXNoCycle:
        return []


def unused(flat: FlatGraph) -> set[str]:
    """Values that no output depends on. Nodes stand after what they read, so one walk back sees all."""
    kept = set(flat.outputs)
    for node in reversed(flat.nodes):
        if node.row.state in (State.SLOT, State.FIXED, State.WRITTEN):
            kept.update(node.results)
        if not kept.isdisjoint(node.results):
            kept.update(node.operands)
    return set(flat.types) - kept
