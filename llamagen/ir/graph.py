"""The typed graph: block definitions over one closed op table, instantiated by role path.

A ``Graph`` is hierarchical: ``blocks`` are definitions (a class each in PyTorch), ``parts`` name their instances, and
a role path such as ``model.layers.3.self_attn.q_proj.weight`` is the path of part names down to a parameter.
``flatten`` (ir/flatten.py) unrolls it to a list of op applications for ONNX and the reference interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from llamagen.diagnostics import Span
from llamagen.ops.op import Attrs, Op, Parameter, Role, State, TensorType
from llamagen.ops.table import NODES
from llamagen.spec.expr import Expr


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor inside a block. ``id`` is unique in its block; ``named`` when the spec's author chose it."""

    id: str
    type: TensorType
    named: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One application: ``results = op(operands)``.

    ``op`` is a row of the op table, or ``call`` (run block part ``part``) or ``stack`` (run the blocks of stack part
    ``part`` one after the other: the first operand and the first result are carried, other operands are passed to
    each layer unchanged; further results are the carried states before the layers of ``attrs["collect"]``). ``part``
    is set for those two and for every op with parameters. An operand that begins with ``@`` is a graph-level value: an
    input or a result of the prelude, the same for every layer.
    """

    op: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    attrs: Attrs = field(default_factory=dict)
    part: str | None = None
    span: Span | None = field(default=None, compare=False)
    sources: Mapping[str, Expr] = field(default_factory=dict, compare=False)
    """The attribute's expression in the spec, for emitters that print names instead of numbers."""

    @property
    def row(self) -> Op:
        return NODES[self.op]


@dataclass(frozen=True, slots=True)
class OpPart:
    """A part that is an op with parameters: ``q_proj: linear(hidden_size, num_heads * head_dim)``."""

    name: str
    op: str
    attrs: Attrs
    parameters: tuple[Parameter, ...]
    tied_to: str | None = None
    """Role path of the parameter that serves as this part's ``weight``; then ``parameters`` lacks it."""
    span: Span | None = field(default=None, compare=False)
    sources: Mapping[str, Expr] = field(default_factory=dict, compare=False)

    @property
    def row(self) -> Op:
        return NODES[self.op]

    @property
    def below(self) -> tuple[str, ...]:
        """Names of the blocks directly below a part, one entry an instance."""
        return ()


@dataclass(frozen=True, slots=True)
class BlockPart:
    """A part that is one instance of a block definition."""

    name: str
    block: str
    span: Span | None = field(default=None, compare=False)

    @property
    def below(self) -> tuple[str, ...]:
        return (self.block,)


@dataclass(frozen=True, slots=True)
class StackPart:
    """A part that is a list of block instances ``name.0``, ``name.1``, ...; ``blocks`` has one entry a layer."""

    name: str
    blocks: tuple[str, ...]
    span: Span | None = field(default=None, compare=False)
    count_source: Expr | None = field(default=None, compare=False)

    @property
    def below(self) -> tuple[str, ...]:
        return self.blocks


Part: TypeAlias = OpPart | BlockPart | StackPart


@dataclass(frozen=True, slots=True)
class Block:
    """A block definition, specialised for its options: no condition is left in it.

    ``nodes`` are in the order of the equations. ``context`` are the graph-level values (without ``@``) that this
    block or one below it reads, in the graph's order.
    """

    name: str
    definition: str
    """Name of the block in the spec; several specialisations can share one."""
    options: Attrs
    inputs: tuple[Value, ...]
    parts: Mapping[str, Part]
    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    context: tuple[str, ...]
    span: Span | None = field(default=None, compare=False)
    doc: str | None = field(default=None, compare=False)
    """The spec's line for readers."""

    def part_of(self, node: Node) -> Part | None:
        """What a node calls or has its parameters from."""
        return self.parts.get(node.part or "")

    @property
    def below(self) -> tuple[str, ...]:
        """Names of the blocks directly below, one entry an instance."""
        return tuple(name for part in self.parts.values() for name in part.below)


MAIN = "model"
"""The name of the graph at ``root`` beside those under ``graphs``."""


@dataclass(frozen=True)
class Graph:
    """One model. ``inputs`` and prelude results are the graph-level values that operands reach as ``@name``.

    ``prelude`` holds what depends on graph inputs alone and is computed once: rope tables, masks, temperatures.
    ``blocks`` lists definitions before their users; the last one is ``root``.
    """

    spec_id: str
    digest: str
    inputs: tuple[Value, ...]
    prelude: tuple[Node, ...]
    prelude_values: Mapping[str, Value]
    blocks: Mapping[str, Block]
    root: str
    output_names: tuple[str, ...]
    constants: Mapping[str, int | float | bool | str] = field(default_factory=dict, compare=False)
    """Scalar hyperparameters and constants by path (`vision.width`), for emitters that print names, not numbers."""
    names_read: frozenset[str] = field(default=frozenset(), compare=False)
    """Names of the spec (hyperparameters, constants, patterns) that the graph depends on."""

    @property
    def root_block(self) -> Block:
        return self.blocks[self.root]

    @property
    def outputs(self) -> tuple[tuple[str, TensorType], ...]:
        """Names and types of what the root returns, as far as it is an output of the graph."""
        root = self.root_block
        types = (root.values[o].type for o in root.outputs)
        return tuple(zip(self.output_names, types, strict=False))

    @cached_property
    def level(self) -> dict[str, TensorType]:
        """Types of the graph-level values."""
        return {v.id: v.type for v in (*self.inputs, *self.prelude_values.values())}

    def type_of(self, block: Block, operand: str) -> TensorType:
        if operand.startswith("@"):
            return self.level[operand[1:]]
        return block.values[operand].type

    def operand_types(self, block: Block, node: Node) -> list[TensorType]:
        return [self.type_of(block, operand) for operand in node.operands]

    def mask_of(self, attention: Node) -> Node | None:
        """What makes the causal mask of an attention op; none for one that sees every key."""
        mask = attention.operands[3].removeprefix("@") if len(attention.operands) > 3 else ""
        masks = (n for n in self.prelude if n.row.role is Role.MASK and mask in n.results)
        return next(masks, None)

    def limits(self, attention: Node) -> tuple[int | None, int | None]:
        """Window and chunk of an attention op: none where its mask has none, or where it has no causal mask."""
        mask = self.mask_of(attention)
        window, chunk = (mask.attrs.get(n) if mask else None for n in ("window", "chunk"))
        return (
            window if isinstance(window, int) else None,
            chunk if isinstance(chunk, int) else None,
        )

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """Every block instance, in the order of the parts, parents first."""
        instances: list[Instance] = []
        stack = [Instance("", self.root_block)]
        while stack:
            here = stack.pop()
            instances.append(here)
            below: list[Instance] = []
            for part in here.block.parts.values():
                path = join(here.path, part.name)
                if isinstance(part, BlockPart):
                    below.append(Instance(path, self.blocks[part.block]))
                for i, name in enumerate(part.blocks if isinstance(part, StackPart) else ()):
                    below.append(Instance(join(path, str(i)), self.blocks[name]))
            stack.extend(reversed(below))
        return tuple(instances)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Role path -> parameter, each weight once (a tied head has none of its own)."""
        return {
            join(path, parameter.name): parameter
            for path, _, part in self.op_parts
            for parameter in part.parameters
        }

    @property
    def op_parts(self) -> Iterator[tuple[str, Block, OpPart]]:
        """Every part that is an op, with its role path and the block that it stands in."""
        for here in self.instances:
            for part in here.block.parts.values():
                if isinstance(part, OpPart):
                    yield join(here.path, part.name), here.block, part

    @property
    def ties(self) -> dict[str, OpPart]:
        """Role path of a tied weight -> its part."""
        parts = (part for block in self.blocks.values() for part in block.parts.values())
        if not any(isinstance(part, OpPart) and part.tied_to is not None for part in parts):
            return {}
        return {
            join(path, "weight"): part
            for path, _, part in self.op_parts
            if part.tied_to is not None
        }


@dataclass(frozen=True, slots=True)
class Instance:
    """A block definition at a role path; the root's path is the empty text."""

    path: str
    block: Block


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


@dataclass(frozen=True, slots=True)
class Place:
    """One op application of the model, in execution order. ``path`` is the block instance's role path."""

    path: str
    block: Block
    node: Node


def places(graph: Graph, trait: Role | State) -> Iterator[Place]:
    """Every application of an op with ``trait``, in execution order; blocks without any are skipped whole."""
    holds: dict[str, bool] = {}

    def wanted(op: Op) -> bool:
        return trait in (op.role, op.state)

    def any_below(name: str) -> bool:
        if name not in holds:
            block = graph.blocks[name]
            holds[name] = any(wanted(n.row) for n in block.nodes) or any(
                any_below(below) for below in set(block.below)
            )
        return holds[name]

    def visit(path: str, block: Block) -> Iterator[Place]:
        for node in block.nodes:
            if wanted(node.row):
                yield Place(path, block, node)
            match block.part_of(node):
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


# of a model that is several graphs


def all_parameters(graphs: Mapping[str, Graph]) -> dict[str, Parameter]:
    """Role path -> parameter of a model that is several graphs: shared weights once."""
    return {path: p for graph in graphs.values() for path, p in graph.parameters.items()}


def names_read(graphs: Mapping[str, Graph]) -> frozenset[str]:
    """Names of the spec that some graph of it depends on."""
    return frozenset[str]().union(*(graph.names_read for graph in graphs.values()))
