"""What a model is made of, counted: parameters, weights, cache, FLOPs, activations. Exact ints from the graphs.

Sums go over block definitions and how often each is used, not over layers: 126 equal layers cost one visit, so that
questions about the whole family stay fast.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Generic, TypeVar

from llamagen.analysis.tables import chosen
from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import collected, flatten
from llamagen.ir.graph import (
    MAIN,
    Block,
    BlockPart,
    Graph,
    Node,
    OpPart,
    Place,
    StackPart,
    places,
)
from llamagen.ir.pipeline import Pipeline, pipeline_of, reads_tokens
from llamagen.ops.dims import Dim
from llamagen.ops.op import (
    DType,
    Role,
    State,
    TensorType,
    a_int,
    a_ints,
    elements,
    keep_of,
)

BYTES_16: Final = 2
"""Bytes of a bfloat16 or float16 value."""

# what a graph says about its ops


def collapse(path: str) -> tuple[str, tuple[int, ...]]:
    """``model.layers.3.mlp`` -> ``model.layers.*.mlp``, ``(3,)``."""
    words = path.split(".")
    index = tuple(int(w) for w in words if w.isdigit())
    return (".".join("*" if w.isdigit() else w for w in words), index) if index else (path, index)


def flops_of_node(graph: Graph, block: Block, node: Node) -> Dim:
    """What the op table counts for one application."""
    results = [block.values[r].type for r in node.results]
    return node.row.flops(graph.operand_types(block, node), results, node.attrs)


def behind(block: Block, value: str) -> set[str]:
    """The values of ``block`` that ``value`` is computed from, itself included."""
    producers = {r: node for node in block.nodes for r in node.results}
    seen: set[str] = set()
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        node = producers.get(here)
        if node is None:
            continue
        if node.row.state is State.SLOT:
            # Its first result holds keys only, its second values only.
            waiting.append(node.operands[node.results.index(here)])
        else:
            waiting.extend(node.operands)
    return seen


def rotates(block: Block) -> bool:
    """Whether the block rotates queries and keys."""
    return any(node.row.role is Role.ROTATION for node in block.nodes)


def expert_choice(graph: Graph, block: Block, part: OpPart) -> tuple[int, int]:
    """(experts, experts a token uses) of an ``experts`` part."""
    used = (
        graph.operand_types(block, node)[1].shape[-1].value
        for node in block.nodes
        if node.part == part.name
    )
    return a_int(part.attrs, "num_experts"), max(used, default=0)


# parameters


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
class ComponentCount:
    component: Component
    count: int
    """Parameters, each weight once."""
    active: int
    """Parameters that one token of text uses."""


@dataclass(frozen=True, slots=True)
class ParameterReport:
    """Parameters by component. A tied head has none of its own."""

    components: tuple[ComponentCount, ...]
    tied: bool

    @property
    def total(self) -> int:
        return sum(c.count for c in self.components)

    @property
    def active(self) -> int:
        """Parameters that one token of text uses: all of the text model, but of routed experts only the chosen ones."""
        return sum(c.active for c in self.components)

    @property
    def active_without_embedding(self) -> int:
        """As ``active``, but the input embedding (a row lookup) is left out unless the head shares it."""
        kept = 0 if self.tied else self.of(Component.EMBEDDING)
        return self.active - kept

    def of(self, component: Component) -> int:
        return sum(c.count for c in self.components if c.component is component)


def count_parameters(graphs: Mapping[str, Graph]) -> ParameterReport:
    """Parameters of all graphs by component, each weight once. What is computed from images alone counts as vision.

    Keys and values that an encoder makes for a layer of the decoder belong to that layer's attention.
    """
    text = graphs[MAIN]
    readers = {
        name: Uses(graph) for name, graph in graphs.items() if name == MAIN or reads_tokens(graph)
    }
    of_text: dict[str, tuple[Uses, Block]] = {}
    if len(graphs) > 1:
        for name, uses in readers.items():
            for here in graphs[name].instances:
                of_text.setdefault(here.path, (uses, here.block))
    vision = _without_ids(text.root_block)
    counts: dict[Component, list[int]] = {}
    for name, path, block, part in each_weight(graphs):
        if name == MAIN and path.split(".", 1)[0] in vision:
            component = Component.VISION
        elif name in readers:
            component = readers[name].component(block, part)
        else:
            parent = path.rpartition(".")[0]
            owner = of_text.get(parent) if parent else None
            component = owner[0].component(owner[1], part) if owner else Component.VISION
        count = active = sum(p.count for p in part.parameters)
        if part.row.role is Role.EXPERTS:
            experts, used = expert_choice(graphs[name], block, part)
            active = count // experts * min(used, experts)
        elif slices_used(part):
            active = count // a_ints(part.attrs, "shape")[0] * slices_used(part)
        both = counts.setdefault(component, [0, 0])
        both[0] += count
        both[1] += active if name == MAIN and component is not Component.VISION else 0
    rows = tuple(ComponentCount(c, *counts[c]) for c in Component if c in counts)
    return ParameterReport(rows, bool(text.ties))


def slices_used(part: OpPart) -> int:
    """Of a tensor with a slice an expert, how many slices a token uses; 0 of any other part."""
    return a_int(part.attrs, "used") if part.row.role is Role.PARAMETER else 0


def each_weight(graphs: Mapping[str, Graph]) -> Iterator[tuple[str, str, Block, OpPart]]:
    """(graph, role path, block, part) of every part with parameters; what several graphs share once."""
    known: set[str] = set()
    for name, graph in graphs.items():
        for path, block, part in graph.op_parts:
            if part.parameters and path not in known:
                known.add(path)
                yield name, path, block, part


class Uses:
    """Tells what a part is for, from what is computed around it."""

    def __init__(self, graph: Graph) -> None:
        self.heads = frozenset(_heads(graph))
        self.known: dict[tuple[str, str], Component] = {}

    def component(self, block: Block, part: OpPart) -> Component:
        key = (block.name, part.name)
        if key not in self.known:
            self.known[key] = self._component(block, part)
        return self.known[key]

    def _component(self, block: Block, part: OpPart) -> Component:
        match part.row.role:
            case Role.EMBEDDING:
                return Component.EMBEDDING
            case Role.EXPERTS:
                return Component.EXPERTS
            case Role.PARAMETER if slices_used(part):
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
        results = {r for node in block.nodes if node.part == part.name for r in node.results}
        routes = any(
            results & behind(block, operand)
            for node in block.nodes
            if node.row.role is Role.EXPERTS
            for operand in node.operands[1:]
        )
        return Component.ROUTER if routes else Component.FEED_FORWARD


def _heads(graph: Graph) -> Iterator[tuple[str, str]]:
    """(block, part) of the linear parts whose result, but for functions of each value, is an output of the model,
    or the row of a token of it."""
    waiting = [(graph.root_block, v) for v in graph.root_block.outputs]
    while waiting:
        block, value = waiting.pop()
        node = next((node for node in block.nodes if value in node.results), None)
        if node is None:
            continue
        match block.part_of(node):
            case OpPart(name=name) if node.row.role is Role.LINEAR:
                yield block.name, name
            case BlockPart(block=below):
                inner = graph.blocks[below]
                waiting.append((inner, inner.outputs[node.results.index(value)]))
            case None if node.row.role is Role.CHOSEN_ROWS or (
                node.row.elementwise and len(node.operands) == 1
            ):
                waiting.append((block, node.operands[0]))
            case _:
                pass


def _without_ids(root: Block) -> frozenset[str]:
    """Parts of the root that compute on other inputs only, such as pixels: an encoder beside the text."""
    inputs = {v.id for v in root.inputs}
    if "input_ids" not in inputs:
        return frozenset()
    text: set[str] = set()
    others: set[str] = set()
    for node in root.nodes:
        if node.part is not None:
            seen = {v for operand in node.operands for v in behind(root, operand)}
            of_input = any(v in inputs or v.startswith("@") for v in seen)
            of_ids = seen & {"input_ids", "@input_ids"} or not of_input
            (text if of_ids else others).add(node.part)
    return frozenset(others - text)


# bytes of weights


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


CACHE_BYTES: Final[Mapping[str, int]] = {
    s.name: s.matrix_bits // 8 for s in STORAGE.values() if s.matrix_bits >= 8
}
"""Bytes of a cached number by its dtype; scales, where there are any, are one for many and not counted."""


def storage(name: str) -> Storage:
    """The storage format ``name``. Raises LG901."""
    return chosen(STORAGE, name, "a storage format")


def weight_bytes(graphs: Mapping[str, Graph], form: Storage) -> int:
    """Bytes of the weights of all graphs in ``form``, each weight once."""
    return sum(part_bytes(part, form) for *_, part in each_weight(graphs))


def expert_bytes(graph: Graph, form: Storage) -> Counter[tuple[int, int]]:
    """(experts a layer, experts a token uses) -> bytes of all routed experts of such layers."""
    sizes: Counter[tuple[int, int]] = Counter()
    for _, block, part in graph.op_parts:
        if part.row.role is Role.EXPERTS:
            sizes[expert_choice(graph, block, part)] += part_bytes(part, form)
    return sizes


def part_bytes(part: OpPart, form: Storage) -> int:
    total = 0
    for parameter in part.parameters:
        if parameter.kind != "matrix" or form.matrix_bits == form.other_bits:
            total += -(-parameter.count * form.other_bits // 8)
        else:
            # quantisation blocks run along the contracted dimension
            columns = parameter.shape[-2 if part.attrs.get("layout") == "in_out" else -1]
            scales = -(-columns // form.block) * form.scale_bits if form.block else 0
            rows = parameter.count // columns
            total += -(-rows * (columns * form.matrix_bits + scales) // 8)
    return total


# the cache


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """One slot of the key/value cache. ``window`` and ``chunk`` are tokens a query can still look back to."""

    path: str
    """Role path of the block instance that holds the slot, e.g. ``model.layers.3.self_attn``."""
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    chunk: int | None
    rope: bool | None = None
    """Whether its attention rotates queries and keys; none for a slot that no attention stands beside."""
    keep: int | None = None
    """Tokens that the slot hands to the next call at most, once the graph's caches are bounded; none for all."""

    @property
    def values_per_token(self) -> int:
        """Numbers stored for one token: keys and values of all heads."""
        return self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def reach(self) -> int | None:
        """Tokens that a query can see, itself included; none means all of them."""
        return _reach(self.window, self.chunk)

    def tokens(self, context: int) -> int:
        """Tokens that must be kept when ``context`` tokens have been seen: a later query brings itself."""
        return context if self.reach is None else min(context, self.reach - 1)

    def kept(self, context: int) -> int:
        """Tokens that are kept when ``context`` tokens have been seen."""
        return context if self.keep is None else min(context, self.keep)


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The cache of a graph. Sizes are for one sequence; a batch of B needs B times as much."""

    layers: tuple[CacheLayer, ...]
    states: tuple[TensorType, ...] = ()
    """What else a sequence keeps, whose size no token adds to."""

    @property
    def bounded(self) -> bool:
        """Whether some slot drops what no later query can see."""
        return any(s.keep is not None for s in self.layers)

    @property
    def local_layers(self) -> int:
        """Slots whose queries see a window or a chunk only."""
        return sum(1 for s in self.layers if s.reach is not None)

    def per_token(self, bytes_per_value: int) -> int:
        """Bytes that one more token adds while every layer still keeps everything."""
        return bytes_per_value * sum(s.values_per_token for s in self.layers)

    def needed(self, context: int, bytes_per_value: int) -> int:
        """Bytes at ``context`` tokens if local layers drop what no later query can see."""
        tokens = sum(s.values_per_token * s.tokens(context) for s in self.layers)
        return bytes_per_value * tokens + self.fixed(bytes_per_value)

    def allocated(self, context: int, bytes_per_value: int) -> int:
        """Bytes at ``context`` tokens as the generated model keeps it: every token, but in bounded slots."""
        tokens = sum(s.values_per_token * s.kept(context) for s in self.layers)
        return bytes_per_value * tokens + self.fixed(bytes_per_value)

    def fixed(self, bytes_per_value: int) -> int:
        """Bytes of states that have the same size at every context; some are float32 whatever a cache is."""
        return sum(
            elements(s.shape).evaluate({"B": 1})
            * (4 if s.dtype is DType.FLOAT32 else bytes_per_value)
            for s in self.states
        )


def cache_of(graph: Graph) -> CacheReport:
    """Every cache slot in execution order (slot i is ``past_key_values.i`` outside)."""
    alike: dict[tuple[str, str], CacheLayer] = {}
    layers: list[CacheLayer] = []
    for here in places(graph, State.SLOT):
        slot = (here.block.name, here.node.results[0])
        if slot not in alike:
            alike[slot] = _layer(graph, here)
        layers.append(replace(alike[slot], path=here.path))
    states = (
        one.found
        for here in places(graph, State.FIXED)
        for one in here.node.row.carries(
            graph.operand_types(here.block, here.node), here.node.attrs
        )
    )
    return CacheReport(tuple(layers), tuple(states))


def _layer(graph: Graph, here: Place) -> CacheLayer:
    key, value = graph.operand_types(here.block, here.node)
    attentions = [n for n in here.block.nodes if n.row.role is Role.ATTENTION]
    return CacheLayer(
        here.path,
        key.shape[1].value,
        key.shape[3].value,
        value.shape[3].value,
        *_bounds(graph, here.block, here.node.results[0], attentions),
        rotates(here.block) if attentions else None,
        keep_of(here.node.attrs),
    )


def _bounds(
    graph: Graph, block: Block, keys: str, attentions: list[Node]
) -> tuple[int | None, int | None]:
    """Window and chunk of the attention that reads these keys; of several, those of the one that sees most."""
    readers = [graph.limits(node) for node in attentions if keys in behind(block, node.operands[1])]
    return max(readers, key=lambda one: _reach(*one) or math.inf, default=(None, None))


def _reach(window: int | None, chunk: int | None) -> int | None:
    """Tokens that a query can see, itself included; none means all of them."""
    return min((b for b in (window, chunk) if b is not None), default=None)


# work

N = TypeVar("N", int, Dim)


@dataclass(frozen=True, slots=True)
class Flops(Generic[N]):
    """FLOPs by kind: as polynomials of the workload, or at one.

    Multiply-adds count 2, as in ``torch.utils.flop_counter``; attention counts every key, masked or not.
    """

    matmul: N
    """Linear parts and chosen experts, but for the head."""
    attention: N
    """Scores and weighted values."""
    head: N
    """The product with the vocabulary, for every position."""

    @property
    def total(self) -> N:
        return self.matmul + self.attention + self.head


def _runs(graph: Graph) -> Iterator[tuple[Block, int]]:
    """Every block, and how often it is run in one forward pass."""
    runs = Counter({graph.root: 1})
    for block in reversed(tuple(graph.blocks.values())):  # users before what they use
        yield block, runs[block.name]
        for node in block.nodes:
            if node.row.control and (part := block.part_of(node)) is not None:
                for below in part.below:
                    runs[below] += runs[block.name]


def flops_of(graph: Graph) -> Flops[Dim]:
    """FLOPs of one forward pass as polynomials over ``B``, ``S``, ``P`` and ``I``; the op table counts."""
    heads = Uses(graph).heads
    matmul = attention = head = Dim.of(0)
    for block, times in _runs(graph):
        for node in block.nodes:
            if node.row.control:
                continue
            count = flops_of_node(graph, block, node) * times
            if node.row.role is Role.ATTENTION:
                attention = attention + count
            elif (block.name, node.part) in heads:
                head = head + count
            else:
                matmul = matmul + count
    return Flops(matmul, attention, head)


def count_flops(flops: Flops[Dim], batch: int, new: int, past: int) -> Flops[int]:
    """FLOPs of ``new`` tokens for each of ``batch`` sequences after ``past`` tokens each. Raises LG902 for images."""
    sizes = {"B": batch, "S": new, "P": past}
    missing = sorted(
        (flops.matmul.symbols | flops.attention.symbols | flops.head.symbols) - sizes.keys()
    )
    if missing:
        message = f"the work depends on {', '.join(missing)}, which a text workload does not fix"
        raise LlamagenError.of("LG902", message, help="ask for the text part of the model")
    return _at([flops], sizes)


def _at(several: list[Flops[Dim]], sizes: Mapping[str, int]) -> Flops[int]:
    return Flops(
        sum(f.matmul.evaluate(sizes) for f in several),
        sum(f.attention.evaluate(sizes) for f in several),
        sum(f.head.evaluate(sizes) for f in several),
    )


def visible_flops(graph: Graph, batch: int, new: int, past: int) -> int:
    """FLOPs of attention for the keys that queries see: what no kernel can leave out. Without a mask every key."""
    total = 0
    for block, times in _runs(graph):
        for node in block.nodes:
            if node.row.role is Role.ATTENTION:
                flops = flops_of_node(graph, block, node)
                mask = graph.mask_of(node)
                if mask is None or "padding" in mask.attrs:
                    total += times * flops.evaluate({"B": batch, "S": new, "P": past})
                else:
                    a_pair = flops.evaluate({"B": 1, "S": 1, "P": 0})
                    pairs = visible_pairs(new, past, *graph.limits(node))
                    total += times * batch * a_pair * pairs
    return total


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


# activations


def activation_levels(
    graph: Graph, model_bytes: int, part: Callable[[str], int] = lambda value: 1
) -> tuple[Dim, ...]:
    """Every distinct amount of live bytes of a pass, without weights and cache; ``peak`` is the largest.
    Of each value a rank has one ``part``-th, where that is whole.

    An upper bound: unfused ops one after the other, values freed after their last use, nothing in place, scores
    [B, N, S, T] in float32 while softmax runs. ``model_bytes`` is the size of a value in the dtype of the model.
    """
    flat = flatten(_shortened(graph))
    fixed = {DType.FLOAT32: 4, DType.INT64: 8, DType.BOOL: 1}

    def had(size: Dim, value: str) -> Dim:
        return size.divided_by(part(value)) or size

    size = {
        name: had(elements(t.shape) * fixed.get(t.dtype, model_bytes), name)
        for name, t in flat.types.items()
    }
    kept_by_cache = {r for node in flat.nodes if node.row.state for r in node.results}
    last_use = {name: i for i, node in enumerate(flat.nodes) for name in node.operands}
    last_use.update(dict.fromkeys(flat.outputs, len(flat.nodes)))
    live = Dim.of(0)
    for name in flat.inputs:
        live = live + size[name]
    levels: dict[Dim, None] = {}
    for i, node in enumerate(flat.nodes):
        for name in node.results:
            if name not in kept_by_cache:
                live = live + size[name]
        scratch = Dim.of(0)
        if node.row.role is Role.ATTENTION:
            q, k = flat.types[node.operands[0]], flat.types[node.operands[1]]
            scratch = had(elements(q.shape[:3]) * k.shape[2] * 4, node.operands[0])
        levels.setdefault(live + scratch)
        for name in {*node.operands, *node.results}:
            if last_use.get(name, i) == i and name not in kept_by_cache:
                live = live - size[name]
    return tuple(levels)


def peak(levels: tuple[Dim, ...], sizes: Mapping[str, int]) -> int:
    """The most live bytes at ``sizes`` (``B``, ``S``, ``P``)."""
    return max((level.evaluate(sizes) for level in levels), default=0)


def _shortened(graph: Graph) -> Graph:
    """``graph`` with every stack cut to two rounds of its distinct layers: the same amounts are live in each.

    A stack that collects states stays whole: more of them are live in every layer.
    """
    blocks: dict[str, Block] = {}
    for name, block in graph.blocks.items():
        whole = {node.part for node in block.nodes if collected(node)}
        parts = {
            key: replace(part, blocks=tuple(dict.fromkeys(part.blocks)) * 2)
            if isinstance(part, StackPart) and key not in whole
            else part
            for key, part in block.parts.items()
        }
        blocks[name] = replace(block, parts=parts)
    return replace(graph, blocks=blocks)


# images


@dataclass(frozen=True, slots=True)
class ImageCost:
    """``count`` entries of the size ``I`` for each sequence: tiles where every tile is an input, else images."""

    count: int
    inputs: tuple[str, ...]
    """Name and shape of each input that images come in by."""
    encoder: Flops[int]
    """FLOPs of the graphs that are run once for the images, whole batch. Their head is no vocabulary."""
    tokens: int
    """Tokens of a sequence that the images stand for."""
    kept_bytes: int
    """What the encoder hands over, whole batch; it is kept while text is generated."""
    activation_peak: int
    prefill: Flops[int]
    """The graphs that are run for text, at the stated workload."""
    decode: Flops[int]


def image_cost(
    graphs: Mapping[str, Graph], count: int, batch: int, context: int, value_bytes: int
) -> ImageCost | None:
    """What ``count`` images a sequence cost beside ``context`` tokens; none for a model of text."""
    pipeline = _of_images(graphs)
    if pipeline is None:
        return None
    flat = {name: flatten(graphs[name]) for name in pipeline.once}
    inputs = {
        name: f.types[name] for f in flat.values() for name in f.inputs if name in pipeline.images
    }
    each_row = any("B" in dim.symbols for type_ in inputs.values() for dim in type_.shape)
    images = {"I": count if each_row else count * batch}
    encoded = {"B": batch, "S": 0, "P": 0, **images}
    # outputs, and keys and values for the cross-attention of other graphs
    kept = [type_ for name in flat for _, type_ in graphs[name].outputs]
    kept += [f.types[value] for f in flat.values() for value in f.handed_out.values()]
    steps = [flops_of(graphs[name]) for name in pipeline.steps]
    return ImageCost(
        count,
        tuple(f"{name} {type_}" for name, type_ in inputs.items()),
        _at([flops_of(graphs[name]) for name in pipeline.once], encoded),
        sum(p.rows * count for p in pipeline.placeholders.values()),
        value_bytes * sum(elements(t.shape).evaluate(encoded) for t in kept),
        max(peak(activation_levels(graphs[n], value_bytes), encoded) for n in pipeline.once),
        _at(steps, {"B": batch, "S": context, "P": 0, **images}),
        _at(steps, {"B": batch, "S": 1, "P": context, **images}),
    )


def encoder_flops(graphs: Mapping[str, Graph]) -> int | None:
    """FLOPs of seeing one image or tile; none for a model of text."""
    pipeline = _of_images(graphs)
    if pipeline is None:
        return None
    encoders = [flops_of(graphs[name]) for name in pipeline.once]
    return _at(encoders, {"B": 1, "S": 0, "P": 0, "I": 1}).total


def _of_images(graphs: Mapping[str, Graph]) -> Pipeline | None:
    pipeline = pipeline_of(graphs)
    return pipeline if pipeline is not None and pipeline.once else None
