"""Into how many equal parts a model can be cut, by its heads and widths."""

from __future__ import annotations

from math import gcd

from llamagen.analysis.numbers.walk import operand_types
from llamagen.ir.graph import Graph, OpPart
from llamagen.ops.op import Role, a_int


def tensor_parallel_degrees(graph: Graph) -> tuple[int, ...]:
    """Divisors of every query and key/value head count and every feed-forward and expert width, ascending.

    Above the number of key/value heads a head would have to be copied; none of the generated models do that.
    """
    sizes: set[int] = set()
    for block in graph.blocks.values():
        widths = {
            v.type.shape[-1].value
            for v in block.inputs
            if v.type.shape and v.type.shape[-1].is_static
        }
        has_attention = any(node.row.role is Role.ATTENTION for node in block.nodes)
        for node in block.nodes:
            part = block.parts.get(node.part) if node.part is not None else None
            if node.row.role is Role.ATTENTION:
                q, k = operand_types(graph, block, node)[:2]
                sizes |= {q.shape[1].value, k.shape[1].value}
            elif node.row.role is Role.EXPERTS and isinstance(part, OpPart):
                sizes.add(a_int(part.attrs, "intermediate"))
            elif isinstance(part, OpPart) and part.row.role is Role.LINEAR and not has_attention:
                inside, outside = (
                    a_int(part.attrs, "in_features"),
                    a_int(part.attrs, "out_features"),
                )
                if outside in widths and inside not in widths:
                    sizes.add(inside)
    common = 0
    for size in sizes:
        common = gcd(common, size)
    return tuple(d for d in range(1, min(common, 4096) + 1) if common % d == 0) or (1,)
