"""Parameters by component: total, active per token, and their bytes in a storage format. Exact ints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from llamagen.analysis.numbers.walk import behind, operand_types, sum_parts
from llamagen.analysis.tables import chosen
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart
from llamagen.ops.op import Role, a_int


class Component(StrEnum):
    """What a parameter belongs to, read off the wiring and not off its name."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    FEED_FORWARD = "feed-forward"
    ROUTER = "router"
    EXPERTS = "routed experts"
    NORM = "norms"
    HEAD = "head"
    VISION = "vision"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Storage:
    """How weights are stored. ``matrix_bits`` is for matrices, ``other_bits`` for the rest (embeddings, norms).

    With ``block`` > 0 every run of ``block`` values along the input has one scale of ``scale_bits``.
    """

    name: str
    matrix_bits: int
    other_bits: int
    block: int = 0
    scale_bits: int = 0

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of ``rows`` runs of ``columns`` values along the input."""
        scales = -(-columns // self.block) * self.scale_bits if self.block else 0
        return -(-rows * (columns * self.matrix_bits + scales) // 8)


STORAGE: Final[Mapping[str, Storage]] = {
    s.name: s
    for s in (
        Storage("float32", 32, 32),
        Storage("bfloat16", 16, 16),
        Storage("float16", 16, 16),
        Storage("float8", 8, 16),
        Storage("int8", 8, 16, block=32, scale_bits=16),
        Storage("int4", 4, 16, block=32, scale_bits=16),
    )
}
"""int8 and int4 are symmetric, blocks of 32 along the input, float16 scales (MatMulNBits); float8 has no scales."""


def storage(name: str) -> Storage:
    """The storage format ``name``. Raises LG901."""
    return chosen(STORAGE, name, "a storage format")


@dataclass(frozen=True, slots=True)
class ComponentCount:
    component: Component
    count: int
    """Parameters, each weight once."""
    active: int
    """Parameters that one token uses."""


@dataclass(frozen=True, slots=True)
class ParameterReport:
    """Parameters of a graph. A tied head has none of its own."""

    components: tuple[ComponentCount, ...]
    tied: bool

    @property
    def total(self) -> int:
        return sum(c.count for c in self.components)

    @property
    def active(self) -> int:
        """Parameters that one token uses: of the routed experts only the chosen ones, of all else everything."""
        return sum(c.active for c in self.components)

    @property
    def active_without_embedding(self) -> int:
        """As ``active``, but the input embedding (a row lookup) is left out unless the head shares it."""
        kept = 0 if self.tied else self.of(Component.EMBEDDING)
        return self.active - kept

    def of(self, component: Component) -> int:
        return sum(c.count for c in self.components if c.component is component)


def count_parameters(graph: Graph) -> ParameterReport:
    """Parameters by component. Takes time proportional to block definitions, not to layers."""
    classify = Classifier(graph)
    counts: dict[tuple[Component, bool], int] = {}
    for block, part, vision in classify.roots():
        sums = (
            classify.of_part(block, part)
            if part is not None
            else sum_parts(graph, block, classify.of_part)
        )
        for (component, active), count in sums.items():
            here = (Component.VISION if vision else component, active)
            counts[here] = counts.get(here, 0) + count
    rows = tuple(
        ComponentCount(c, counts.get((c, False), 0), counts.get((c, True), 0))
        for c in Component
        if counts.get((c, False), 0)
    )
    return ParameterReport(rows, is_tied(graph))


def is_tied(graph: Graph) -> bool:
    """Whether some part uses the weight of another."""
    return any(
        isinstance(part, OpPart) and part.tied_to is not None
        for block in graph.blocks.values()
        for part in block.parts.values()
    )


class Classifier:
    """Tells what a part is for, from what is computed around it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.heads = frozenset(_heads(graph))
        self.by_block: dict[str, Component] = {}

    def roots(self) -> Iterator[tuple[Block, OpPart | None, bool]]:
        """The root's parts: (block to sum, op part of the root itself, whether it never sees token ids)."""
        root = self.graph.root_block
        vision = _without_ids(root)
        for part in root.parts.values():
            match part:
                case OpPart():
                    yield root, part, part.name in vision
                case BlockPart(block=name):
                    yield self.graph.blocks[name], None, part.name in vision
                case StackPart(blocks=names):
                    for name in names:
                        yield self.graph.blocks[name], None, part.name in vision

    def of_part(self, block: Block, part: OpPart) -> dict[tuple[Component, bool], int]:
        """``(component, False)`` -> parameters, ``(component, True)`` -> those that one token uses."""
        component = self.component(block, part)
        count = sum(p.count for p in part.parameters)
        return {(component, False): count, (component, True): self.active(block, part, count)}

    def active(self, block: Block, part: OpPart, count: int) -> int:
        if part.row.role is not Role.EXPERTS:
            return count
        experts, chosen = expert_choice(self.graph, block, part)
        return count // experts * min(chosen, experts)

    def component(self, block: Block, part: OpPart) -> Component:
        match part.row.role:
            case Role.EMBEDDING:
                return Component.EMBEDDING
            case Role.EXPERTS:
                return Component.EXPERTS
            case Role.NORM:
                return Component.NORM
            case Role.LINEAR if (block.name, part.name) in self.heads:
                return Component.HEAD
        roles = {node.row.role for node in block.nodes}
        if Role.ATTENTION in roles:
            return Component.ATTENTION
        if part.row.role is not Role.LINEAR:
            return Component.OTHER
        if Role.EXPERTS in roles and _feeds_indices(block, part.name):
            return Component.ROUTER
        return Component.FEED_FORWARD


def _feeds_indices(block: Block, part: str) -> bool:
    """Whether the result of ``part`` decides which experts are used."""
    results = {r for node in block.nodes if node.part == part for r in node.results}
    return any(
        results & behind(block, operand)
        for node in block.nodes
        if node.row.role is Role.EXPERTS
        for operand in node.operands[1:]
    )


def _heads(graph: Graph) -> Iterator[tuple[str, str]]:
    """(block, part) of the linear parts whose result, but for functions of each value, is an output of the model."""
    open_values = [(graph.root_block, v) for v in graph.root_block.outputs]
    while open_values:
        block, value = open_values.pop()
        node = _producer(block, value)
        if node is None:
            continue
        part = block.parts[node.part] if node.part is not None else None
        match part:
            case OpPart(name=name) if node.row.role is Role.LINEAR:
                yield block.name, name
            case BlockPart(block=below):
                inner = graph.blocks[below]
                open_values.append((inner, inner.outputs[node.results.index(value)]))
            case None if node.row.elementwise and len(node.operands) == 1:
                open_values.append((block, node.operands[0]))
            case _:
                pass


def _producer(block: Block, value: str) -> Node | None:
    return next((node for node in block.nodes if value in node.results), None)


def _without_ids(root: Block) -> frozenset[str]:
    """Parts of the root that compute on other inputs only, such as pixels: an encoder beside the text."""
    inputs = {v.id for v in root.inputs}
    if "input_ids" not in inputs:
        return frozenset()
    text: set[str] = set()
    for node in root.nodes:
        if node.part is None:
            continue
        seen = {v for operand in node.operands for v in behind(root, operand)}
        if seen & {"input_ids", "@input_ids"} or not seen & (inputs | _graph_level(seen)):
            text.add(node.part)
    return frozenset(root.parts) - text - {p.name for p in root.parts.values() if _unused(root, p)}


def _graph_level(values: set[str]) -> set[str]:
    return {v for v in values if v.startswith("@")}


def _unused(root: Block, part: OpPart | BlockPart | StackPart) -> bool:
    return all(node.part != part.name for node in root.nodes)


def weight_bytes(graph: Graph, form: Storage) -> int:
    """Bytes of all weights in ``form``, each weight once."""

    def of_part(block: Block, part: OpPart) -> dict[str, int]:
        return {part.op: part_bytes(part, form)}

    return sum(sum_parts(graph, graph.root_block, of_part).values())


def expert_bytes(graph: Graph, form: Storage) -> dict[tuple[int, int], int]:
    """(experts a layer, experts a token uses) -> bytes of all routed experts of such layers."""

    def of_part(block: Block, part: OpPart) -> dict[tuple[int, int], int]:
        if part.row.role is not Role.EXPERTS:
            return {}
        return {expert_choice(graph, block, part): part_bytes(part, form)}

    return sum_parts(graph, graph.root_block, of_part)


def expert_choice(graph: Graph, block: Block, part: OpPart) -> tuple[int, int]:
    """(experts, experts a token uses) of an ``experts`` part."""
    chosen = (
        operand_types(graph, block, node)[1].shape[-1].value
        for node in block.nodes
        if node.part == part.name
    )
    return a_int(part.attrs, "num_experts"), max(chosen, default=0)


def part_bytes(part: OpPart, form: Storage) -> int:
    total = 0
    for parameter in part.parameters:
        if parameter.kind != "matrix" or form.matrix_bits == form.other_bits:
            total += -(-parameter.count * form.other_bits // 8)
        else:
            columns = input_width(part, parameter.shape)
            total += form.matrix_bytes(parameter.count // columns, columns)
    return total


def input_width(part: OpPart, shape: tuple[int, ...]) -> int:
    """Length of the contracted dimension of a matrix: quantisation blocks run along it."""
    in_out = part.attrs.get("layout") == "in_out"
    return shape[-2] if in_out else shape[-1]
