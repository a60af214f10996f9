"""The key/value cache and the activations of one forward pass, in bytes. Exact ints from the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llamagen.analysis.numbers.walk import behind, operand_types
from llamagen.ir.flatten import collected, flatten
from llamagen.ir.graph import Block, Graph, Node, Place, StackPart, places
from llamagen.ops.dims import Dim
from llamagen.ops.op import DType, Role, State, elements, keep_of


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

    @property
    def bounded(self) -> bool:
        """Whether some slot drops what no later query can see."""
        return any(s.keep is not None for s in self.layers)

    def per_token(self, bytes_per_value: int) -> int:
        """Bytes that one more token adds while every layer still keeps everything."""
        return bytes_per_value * sum(s.values_per_token for s in self.layers)

    def needed(self, context: int, bytes_per_value: int) -> int:
        """Bytes at ``context`` tokens if local layers drop what no later query can see."""
        return bytes_per_value * sum(s.values_per_token * s.tokens(context) for s in self.layers)

    def allocated(self, context: int, bytes_per_value: int) -> int:
        """Bytes at ``context`` tokens as the generated model keeps it: every token, but in bounded slots."""
        return bytes_per_value * sum(s.values_per_token * s.kept(context) for s in self.layers)


def cache_of(graph: Graph) -> CacheReport:
    """Every cache slot in execution order (slot i is ``past_key_values.i`` outside)."""
    masks = {r: node for node in graph.prelude for r in node.results if node.row.role is Role.MASK}
    alike: dict[tuple[str, str], CacheLayer] = {}
    layers: list[CacheLayer] = []
    for here in places(graph, State.SLOT):
        key = (here.block.name, here.node.results[0])
        if key not in alike:
            alike[key] = _layer(graph, here, masks)
        layers.append(replace(alike[key], path=here.path))
    return CacheReport(tuple(layers))


def _layer(graph: Graph, here: Place, masks: Mapping[str, Node]) -> CacheLayer:
    key, value = operand_types(graph, here.block, here.node)
    window, chunk = _bounds(here, masks)
    return CacheLayer(
        here.path,
        key.shape[1].value,
        key.shape[3].value,
        value.shape[3].value,
        window,
        chunk,
        keep_of(here.node.attrs),
    )


def _bounds(here: Place, masks: Mapping[str, Node]) -> tuple[int | None, int | None]:
    """Window and chunk of the attention that reads this slot; of several, those of the one that sees most."""
    readers: list[tuple[int | None, int | None]] = []
    for node in here.block.nodes:
        if node.row.role is not Role.ATTENTION or here.node.results[0] not in behind(
            here.block, node.operands[1]
        ):
            continue
        mask = node.operands[3].removeprefix("@") if len(node.operands) > 3 else ""
        attrs = masks[mask].attrs if mask in masks else {}
        window, chunk = attrs.get("window"), attrs.get("chunk")
        readers.append(
            (window if isinstance(window, int) else None, chunk if isinstance(chunk, int) else None)
        )
    return max(readers, key=lambda one: _reach(*one) or math.inf, default=(None, None))


def _reach(window: int | None, chunk: int | None) -> int | None:
    """Tokens that a query can see, itself included; none means all of them."""
    return min((b for b in (window, chunk) if b is not None), default=None)


_FIXED_BYTES: Mapping[DType, int] = {DType.FLOAT32: 4, DType.INT64: 8, DType.BOOL: 1}


def type_bytes(dtype: DType, model_bytes: int) -> int:
    """Bytes of one value; ``model_bytes`` is the size of the dtype the model is run in."""
    return _FIXED_BYTES.get(dtype, model_bytes)


@dataclass(frozen=True, slots=True)
class ActivationReport:
    """Peak of live activations when ops run one after the other and values are freed after their last use."""

    levels: tuple[Dim, ...]
    """Every distinct amount of live bytes during the pass; the peak is the largest of them."""

    def peak(self, sizes: Mapping[str, int]) -> int:
        """Bytes at ``sizes`` (``B``, ``S``, ``P``): without weights and cache, with full attention scores."""
        return max((level.evaluate(sizes) for level in self.levels), default=0)


def activations_of(graph: Graph, model_bytes: int) -> ActivationReport:
    """An upper bound: unfused ops, nothing in place, scores [B, N, S, T] in float32 while softmax runs."""
    flat = flatten(_shortened(graph))
    size = {
        name: elements(t.shape) * type_bytes(t.dtype, model_bytes) for name, t in flat.types.items()
    }
    kept_by_cache = {r for node in flat.nodes if node.row.state for r in node.results}
    last_use = {name: i for i, node in enumerate(flat.nodes) for name in node.operands}
    last_use.update(dict.fromkeys(flat.outputs, len(flat.nodes)))
    live = Dim.of(0)
    for name in flat.inputs:
        live = live + size[name]
    levels: dict[Dim, None] = {}
    for i, node in enumerate(flat.nodes):
        counted = [r for r in node.results if r not in kept_by_cache]
        for name in counted:
            live = live + size[name]
        scratch = Dim.of(0)
        if node.row.role is Role.ATTENTION:
            q, k = flat.types[node.operands[0]], flat.types[node.operands[1]]
            scratch = elements(q.shape[:3]) * k.shape[2] * 4
        levels.setdefault(live + scratch)
        for name in {*node.operands, *node.results}:
            if last_use.get(name, i) == i and name not in kept_by_cache:
                live = live - size[name]
    return ActivationReport(tuple(levels))


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
