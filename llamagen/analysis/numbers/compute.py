"""FLOPs of one forward pass by kind, as polynomials of the workload; the op table counts, this file only adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamagen.analysis.numbers.params import Classifier, Component
from llamagen.analysis.numbers.walk import operand_types, result_types, sum_nodes
from llamagen.diagnostics import LlamagenError
from llamagen.ir.graph import Block, Graph, Node, OpPart
from llamagen.ops.dims import Dim
from llamagen.ops.op import Role


@dataclass(frozen=True, slots=True)
class FlopReport:
    """Multiply-adds count 2, as in ``torch.utils.flop_counter``; attention counts every key, masked or not."""

    matmul: Dim
    """Linear parts and chosen experts, but for the head."""
    attention: Dim
    """Scores and weighted values."""
    head: Dim
    """The product with the vocabulary, for every position."""

    @property
    def total(self) -> Dim:
        return self.matmul + self.attention + self.head


@dataclass(frozen=True, slots=True)
class FlopCount:
    matmul: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.matmul + self.attention + self.head


def flops_of(graph: Graph) -> FlopReport:
    """FLOPs as polynomials over ``B``, ``S`` and ``P``."""
    heads = Classifier(graph).heads

    def of_node(block: Block, node: Node) -> dict[str, Dim]:
        part = block.parts.get(node.part) if node.part is not None else None
        attrs = part.attrs if isinstance(part, OpPart) else node.attrs
        count = node.row.flops(operand_types(graph, block, node), result_types(block, node), attrs)
        if not count.terms:
            return {}
        if node.row.role is Role.ATTENTION:
            return {Component.ATTENTION: count}
        if (block.name, node.part) in heads:
            return {Component.HEAD: count}
        return {"matmul": count}

    sums = sum_nodes(graph, of_node)
    zero = Dim.of(0)
    return FlopReport(
        sums.get("matmul", zero),
        sums.get(Component.ATTENTION, zero),
        sums.get(Component.HEAD, zero),
    )


def count_flops(report: FlopReport, batch: int, new_tokens: int, past: int) -> FlopCount:
    """FLOPs at a workload: ``new_tokens`` for each of ``batch`` sequences after ``past`` tokens each."""
    sizes = {"B": batch, "S": new_tokens, "P": past}
    return FlopCount(
        _at(report.matmul, sizes), _at(report.attention, sizes), _at(report.head, sizes)
    )


def _at(dim: Dim, sizes: Mapping[str, int]) -> int:
    missing = sorted(dim.symbols - set(sizes))
    if missing:
        message = f"the work depends on {', '.join(missing)}, which a text workload does not fix"
        raise LlamagenError.of("LG902", message, help="ask for the text part of the model")
    return dim.evaluate(sizes)
