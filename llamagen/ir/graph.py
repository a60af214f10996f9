"""The typed graph: block definitions over one closed op table, instantiated by role path.

A ``Graph`` is hierarchical: ``blocks`` are definitions (a class each in PyTorch), ``parts`` name their instances, and
a role path such as ``model.layers.3.self_attn.q_proj.weight`` is the path of part names down to a parameter.
``flatten`` (ir/flatten.py) unrolls it to a list of op applications for ONNX and the reference interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

from llamagen.diagnostics import Span
from llamagen.ir.dims import Dim
from llamagen.spec.expr import Expr


class DType(StrEnum):
    """``MODEL`` is the dtype the model is run in (float32, float16 or bfloat16); the others are fixed."""

    MODEL = "model"
    FLOAT32 = "float32"
    INT64 = "int64"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class TensorType:
    dtype: DType
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


AttrValue: TypeAlias = "int | float | bool | str | tuple[int, ...] | tuple[float, ...] | None"
Attrs: TypeAlias = Mapping[str, AttrValue]

InitKind: TypeAlias = Literal["matrix", "embedding", "norm", "bias", "gate"]
INIT_KINDS: Mapping[str, InitKind] = {
    "matrix": "matrix",
    "embedding": "embedding",
    "norm": "norm",
    "bias": "bias",
    "gate": "gate",
}
"""What a parameter is for; decides the unit-scale random values of tests, nothing else."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight of a part. ``name`` is the last component of the role path; shape is all ints."""

    name: str
    shape: tuple[int, ...]
    kind: InitKind

    @property
    def count(self) -> int:
        return prod(self.shape)


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


# of a model that is several graphs


def names_elsewhere(graphs: Mapping[str, Graph], name: str) -> tuple[str, ...]:
    """How names of weights begin that graph ``name`` does not have and others do, as short as can be.

    ``N`` stands for the number of a layer. A name that this graph has for some layers only stands as it is.
    """
    own = parameters(graphs[name])
    known = {any_layer(path) for path in own}
    found: dict[str, None] = {}
    for path in all_parameters(graphs):
        if path in own:
            continue
        words = any_layer(path).split(".")
        starts = (".".join(words[: i + 1]) + "." * (i + 1 < len(words)) for i in range(len(words)))
        free = (s for s in starts if not any(o.startswith(s) for o in known))
        found[next(free, any_layer(path))] = None
    return tuple(found)


def any_layer(path: str) -> str:
    """``model.layers.N.mlp`` for each layer."""
    return ".".join("N" if word.isdecimal() else word for word in path.split("."))


def all_parameters(graphs: Mapping[str, Graph]) -> dict[str, Parameter]:
    """Role path -> parameter of a model that is several graphs: shared weights once."""
    return {path: p for graph in graphs.values() for path, p in parameters(graph).items()}


def names_read(graphs: Mapping[str, Graph]) -> frozenset[str]:
    """Names of the spec that some graph of it depends on."""
    return frozenset[str]().union(*(graph.names_read for graph in graphs.values()))
