"""Attention FLOPs for the keys that a query sees: what no kernel can leave out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llamagen.analysis.numbers.walk import operand_types, result_types
from llamagen.ir.graph import Graph, Place, places
from llamagen.ops.dims import Dim
from llamagen.ops.op import Role


@dataclass(frozen=True, slots=True)
class _Attention:
    """One use of ``attention``: its FLOPs over all keys, and what its causal mask bounds."""

    flops: Dim
    causal: bool
    window: int | None
    chunk: int | None


@dataclass(frozen=True, slots=True)
class VisibleReport:
    uses: tuple[tuple[_Attention, int], ...]
    """Equal uses and how many there are."""

    def flops(self, batch: int, new: int, past: int) -> int:
        """``new`` tokens for each of ``batch`` sequences after ``past`` each; without a mask every key counts."""
        total = 0
        for use, times in self.uses:
            if use.causal:
                one = use.flops.evaluate({"B": 1, "S": 1, "P": 0})
                total += times * batch * one * visible_pairs(new, past, use.window, use.chunk)
            else:
                total += times * use.flops.evaluate({"B": batch, "S": new, "P": past})
        return total


def visible_of(graph: Graph) -> VisibleReport:
    masks = {r: n.attrs for n in graph.prelude for r in n.results if n.row.role is Role.MASK}

    def attention(here: Place) -> _Attention:
        node = here.node
        types = operand_types(graph, here.block, node)
        mask = node.operands[3].removeprefix("@") if len(node.operands) > 3 else ""
        attrs = masks.get(mask, {})
        window, chunk = attrs.get("window"), attrs.get("chunk")
        return _Attention(
            node.row.flops(types, result_types(here.block, node), node.attrs),
            mask in masks,
            window if isinstance(window, int) else None,
            chunk if isinstance(chunk, int) else None,
        )

    found: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], Place] = {}
    for here in places(graph, Role.ATTENTION):
        key = (here.block.name, here.node.results[0])
        found[key] += 1
        first.setdefault(key, here)
    return VisibleReport(tuple((attention(first[key]), n) for key, n in found.items()))


def visible_pairs(new: int, past: int, window: int | None, chunk: int | None) -> int:
    """Pairs of a query and a key that it sees, for the ``new`` queries after ``past`` tokens."""
    return _pairs(past + new, window, chunk) - _pairs(past, window, chunk)


def _pairs(tokens: int, window: int | None, chunk: int | None) -> int:
    """The same for the first ``tokens`` of a sequence: query p sees min(p + 1, window) keys, all of its own chunk."""
    if chunk is not None:
        whole, rest = divmod(tokens, chunk)
        return whole * _pairs(chunk, window, None) + _pairs(rest, window, None)
    wide = 0 if window is None else max(0, tokens - window)
    growing = tokens - wide
    return growing * (growing + 1) // 2 + wide * (window or 0)
