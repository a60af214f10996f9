"""The graph unrolled: one list of op applications with absolute names, in execution order.

ONNX emission, the reference interpreter and the counters work on this form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from llamagen.diagnostics import Span
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart, join, places
from llamagen.ops.op import Attrs, Op, Role, State, TensorType, a_int, keep_of
from llamagen.ops.table import NODES

PAST, PRESENT = "past_key_values", "present"
"""What the names of states begin with outside, as inputs and as outputs."""


@dataclass(frozen=True, slots=True)
class FlatNode:
    """One op at its place. Value ids are ``path/value`` in blocks and plain names for graph inputs and the prelude."""

    op: str
    path: str
    """Role path of the block instance, with the part's name for ops that own parameters."""
    operands: tuple[str, ...]
    results: tuple[str, ...]
    attrs: Attrs
    parameters: Mapping[str, str]
    """Local parameter name (``weight``) -> role path of the tensor (another part's, when tied)."""
    span: Span | None

    @property
    def row(self) -> Op:
        return NODES[self.op]


@dataclass(frozen=True, slots=True)
class Slot:
    """One state of one op: keys, values, or what else it carries from call to call. It begins as zeros.

    ``keep`` is how many tokens keys or values hand to the next call at most; none is all of them.
    """

    path: str
    maker: str
    """The first result of the op that makes the next state of it."""
    state: State
    past: str
    """What it is called outside as an input, and as an output."""
    present: str
    found: TensorType
    left: TensorType
    keep: int | None = None

    @property
    def of_tokens(self) -> bool:
        """Keys or values, [B, K, P, H]."""
        return self.state is State.SLOT


@dataclass(frozen=True, slots=True)
class CrossSlot:
    """One use of ``cross_cache_write`` or ``cross_cache_read``: ids of its keys and values, their names outside."""

    path: str
    key: str
    value: str
    key_name: str
    value_name: str


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What a layer of a stack hands on, the residual stream: its role path and the value's id."""

    path: str
    value: str


@dataclass(frozen=True, slots=True)
class FlatGraph:
    nodes: tuple[FlatNode, ...]
    types: Mapping[str, TensorType]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: tuple[Slot, ...]
    """States in execution order; those of the i-th op that has any are ``past_key_values.i.*`` outside."""
    layers: tuple[LayerOutput, ...]
    """Outputs of the layers of all stacks, in execution order."""
    cross_reads: tuple[CrossSlot, ...] = ()
    """Keys and values from another graph, in execution order: further inputs, ``cross_key_values.i`` outside."""
    cross_writes: tuple[CrossSlot, ...] = ()
    """The same for another graph: further outputs."""

    @property
    def slots_of(self) -> dict[str, tuple[Slot, ...]]:
        """First result of each op with states -> its slots, in execution order."""
        found: dict[str, tuple[Slot, ...]] = {}
        for slot in self.slots:
            found[slot.maker] = (*found.get(slot.maker, ()), slot)
        return found

    @property
    def handed_in(self) -> dict[str, str]:
        """Name outside -> value, of keys and values from another graph."""
        return _by_name(self.cross_reads)

    @property
    def handed_out(self) -> dict[str, str]:
        """Name outside -> value, of keys and values for another graph."""
        return _by_name(self.cross_writes)


def _by_name(slots: tuple[CrossSlot, ...]) -> dict[str, str]:
    return {name: id for s in slots for name, id in ((s.key_name, s.key), (s.value_name, s.value))}


class _Flattener:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[FlatNode] = []
        self.types: dict[str, TensorType] = {}
        self.slots: list[Slot] = []
        self.stateful = 0
        self.cross: dict[State, list[CrossSlot]] = {State.READ: [], State.WRITTEN: []}
        self.layers: list[LayerOutput] = []

    def run(self) -> FlatGraph:
        graph = self.graph
        self.types.update({v.id: v.type for v in graph.inputs})
        self.types.update({name: v.type for name, v in graph.prelude_values.items()})
        for node in graph.prelude:
            operands = tuple(o.removeprefix("@") for o in node.operands)
            flat = FlatNode(node.op, "", operands, node.results, node.attrs, {}, node.span)
            self.nodes.append(flat)
        inputs = tuple(v.id for v in graph.inputs)
        root = graph.root_block
        outputs = self.block(root, "", tuple(v.id for v in root.inputs))
        return FlatGraph(
            tuple(self.nodes),
            self.types,
            inputs,
            outputs[: len(graph.output_names)],
            tuple(self.slots),
            tuple(self.layers),
            tuple(self.cross[State.READ]),
            tuple(self.cross[State.WRITTEN]),
        )

    def block(self, block: Block, path: str, operands: tuple[str, ...]) -> tuple[str, ...]:
        ids = dict(zip((v.id for v in block.inputs), operands, strict=True))
        for node in block.nodes:
            inputs = tuple(o[1:] if o.startswith("@") else ids[o] for o in node.operands)
            for local, absolute in zip(
                node.results, self.node(block, path, node, inputs), strict=True
            ):
                ids[local] = absolute
        return tuple(ids[o] for o in block.outputs)

    def node(
        self, block: Block, path: str, node: Node, operands: tuple[str, ...]
    ) -> tuple[str, ...]:
        part = block.part_of(node)
        match part:
            case BlockPart(name=name, block=below):
                return self.block(self.graph.blocks[below], join(path, name), operands)
            case StackPart(name=name, blocks=names):
                count = carried(node)
                states = [operands[:count]]
                for i, below in enumerate(names):
                    here, inner = join(join(path, name), str(i)), (*states[-1], *operands[count:])
                    states.append(self.block(self.graph.blocks[below], here, inner))
                    self.layers.append(LayerOutput(here, states[-1][0]))
                return (*states[-1], *(states[i][0] for i in collected(node)))
            case OpPart(name=name):
                here = join(path, name)
                return self.leaf(block, path, here, node, operands, _role_paths(here, part))
            case None:
                return self.leaf(block, path, path, node, operands, {})
            case _:
                assert_never(part)

    def fresh(self, name: str) -> str:
        """``name``, or ``name~2`` and so on when a part that is called again has results of that name."""
        if name not in self.types:
            return name
        count = 2
        while f"{name}~{count}" in self.types:
            count += 1
        return f"{name}~{count}"

    def leaf(
        self,
        block: Block,
        path: str,
        place: str,
        node: Node,
        operands: tuple[str, ...],
        parameters: Mapping[str, str],
    ) -> tuple[str, ...]:
        results = tuple(self.fresh(f"{path}/{r}") for r in node.results)
        for local, absolute in zip(node.results, results, strict=True):
            self.types[absolute] = block.values[local].type
        self.nodes.append(
            FlatNode(node.op, place, operands, results, node.attrs, parameters, node.span)
        )
        state = node.row.state
        carried = node.row.carries([self.types[o] for o in operands], node.attrs)
        for one in carried:
            assert state is not None, node.op
            past, present = (f"{way}.{self.stateful}.{one.name}" for way in (PAST, PRESENT))
            kept = keep_of(node.attrs)
            self.slots.append(
                Slot(path, results[0], state, past, present, one.found, one.left, kept)
            )
        self.stateful += bool(carried)
        if state in self.cross:
            crossing = self.cross[state]
            key, value = results
            names_outside = (cross_name(len(crossing), "key"), cross_name(len(crossing), "value"))
            crossing.append(CrossSlot(path, key, value, *names_outside))
        return results


def cross_name(slot: int, end: str) -> str:
    """Outside a graph, the keys or values (``end``) of its ``slot``-th cross-attention."""
    return f"cross_key_values.{slot}.{end}"


def collected(node: Node) -> tuple[int, ...]:
    """The layers of a stack whose states before them are results of ``node`` after the first."""
    places = node.attrs.get("collect", ())
    assert isinstance(places, tuple)
    return tuple(int(i) for i in places)


def carried(node: Node) -> int:
    """How many values a stack hands from layer to layer: its first operands, and its first results."""
    return len(node.results) - len(collected(node))


def _role_paths(here: str, part: OpPart) -> dict[str, str]:
    paths = {p.name: join(here, p.name) if p.name else here for p in part.parameters}
    if part.tied_to is not None:
        paths["weight"] = part.tied_to
    return paths


def flatten(graph: Graph) -> FlatGraph:
    """Unroll ``graph``. Costs time and memory proportional to layers times nodes a layer."""
    return _Flattener(graph).run()


def crossing(graph: Graph, way: Literal["read", "write"]) -> dict[str, TensorType]:
    """Names and types of the keys and values that a graph reads from another, or writes for others."""
    types: dict[str, TensorType] = {}
    for i, here in enumerate(places(graph, State.WRITTEN if way == "write" else State.READ)):
        for end, value in zip(("key", "value"), here.node.results, strict=True):
            types[cross_name(i, end)] = here.block.values[value].type
    return types


def known_ids(main: Graph) -> int:
    """How many ids a text can be of: the vocabulary that the spec states, and no more than the embedding has rows.

    Where neither says it, as many as there are logits.
    """
    stated = main.constants.get("vocab_size")
    counts = [*rows_of(main, "input_ids"), *([stated] if isinstance(stated, int) else [])]
    return min(counts) if counts else dict(main.outputs)["logits"].shape[-1].value


def rows_of(graph: Graph, ids: str) -> list[int]:
    """Rows of the tables that are looked up by an input."""
    nodes = flatten(graph).nodes
    return [
        a_int(n.attrs, "rows")
        for n in nodes
        if n.row.role is Role.EMBEDDING and n.operands == (ids,)
    ]
