"""The typed graph: block definitions over one closed op table, instantiated by role path.

A ``Graph`` is hierarchical: ``blocks`` are definitions (a class each in PyTorch), ``parts`` name their instances, and
a role path such as ``model.layers.3.self_attn.q_proj.weight`` is the path of part names down to a parameter.
``flatten`` (ir/flatten.py) unrolls it to a list of op applications for ONNX and the reference interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, assert_never

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


@dataclass(frozen=True, slots=True)
class BlockPart:
    """A part that is one instance of a block definition."""

    name: str
    block: str
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class StackPart:
    """A part that is a list of block instances ``name.0``, ``name.1``, ...; ``blocks`` has one entry a layer."""

    name: str
    blocks: tuple[str, ...]
    span: Span | None = field(default=None, compare=False)
    count_source: Expr | None = field(default=None, compare=False)


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
    """Scalar hyperparameters and constants by spec name, for emitters that print names instead of numbers."""
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
    def _instances(self) -> tuple[Instance, ...]:
        return tuple(_walk(self))

    @cached_property
    def _parameters(self) -> Mapping[str, Parameter]:
        return dict(_named(self))


@dataclass(frozen=True, slots=True)
class Instance:
    """A block definition at a role path; the root's path is the empty text."""

    path: str
    block: Block


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def instances(graph: Graph) -> tuple[Instance, ...]:
    """Every block instance, in the order of the parts, parents first; walked once for each graph."""
    return graph._instances


def _walk(graph: Graph) -> Iterator[Instance]:
    stack = [Instance("", graph.root_block)]
    while stack:
        here = stack.pop()
        yield here
        below: list[Instance] = []
        for part in here.block.parts.values():
            path = join(here.path, part.name)
            match part:
                case BlockPart(block=name):
                    below.append(Instance(path, graph.blocks[name]))
                case StackPart(blocks=names):
                    below.extend(
                        Instance(join(path, str(i)), graph.blocks[n]) for i, n in enumerate(names)
                    )
                case OpPart():
                    pass
        stack.extend(reversed(below))


def parameters(graph: Graph) -> dict[str, Parameter]:
    """Role path -> parameter, each weight once (a tied head has none of its own)."""
    return dict(graph._parameters)


def _named(graph: Graph) -> Iterator[tuple[str, Parameter]]:
    for here in instances(graph):
        for part in here.block.parts.values():
            if isinstance(part, OpPart):
                for parameter in part.parameters:
                    name = parameter.name
                    path = join(here.path, part.name)
                    yield join(path, name) if name else path, parameter


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
                any_below(below) for part in block.parts.values() for below in set(below_of(part))
            )
        return holds[name]

    def visit(path: str, block: Block) -> Iterator[Place]:
        for node in block.nodes:
            if wanted(node.row):
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


# of a model that is several graphs


def all_parameters(graphs: Mapping[str, Graph]) -> dict[str, Parameter]:
    """Role path -> parameter of a model that is several graphs: shared weights once."""
    return {path: p for graph in graphs.values() for path, p in parameters(graph).items()}


def names_read(graphs: Mapping[str, Graph]) -> frozenset[str]:
    """Names of the spec that some graph of it depends on."""
    return frozenset[str]().union(*(graph.names_read for graph in graphs.values()))
