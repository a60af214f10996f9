"""The cache bounded to what can still be read: slots behind a window or a chunk drop older tokens.

A query under a window of w reads itself and the w - 1 keys before it; one under chunks of c reads at most the c - 1
keys before it that lie in its chunk. So such a slot hands only the last w - 1 or c - 1 tokens to the next call, and a
context of millions of tokens costs the layer no more than one chunk. The rule looks at slots of tokens, not at
positions: with padding on the left the last c - 1 slots hold the last c - 1 true tokens of every row, and the mask,
which counts true positions, hides what belongs to an earlier chunk. Nothing depends on data, so nothing breaks a
compiled graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from llamagen.diagnostics import LlamagenError
from llamagen.ir.graph import Block, Graph, Node, Value
from llamagen.ops.op import Role, ShapeError, State, TensorType, Tokens, keep_of

CacheKind: TypeAlias = Literal["full", "bounded"]
"""``full``: every slot keeps every token. ``bounded``: ``bound_caches`` was run over the graph."""

_Names: TypeAlias = Mapping[tuple[str, int | None], str]
"""Name of every mask that attention reads, by the mask it comes from and the past tokens that it covers."""


@dataclass(slots=True)
class _Bounds:
    """What is decided about one block: ``keeps`` by the first result of the slot, and the masks that go with it."""

    block: Block
    keeps: dict[str, int] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    """Index of an attention node -> past tokens that its mask must cover."""
    types: dict[str, TensorType] = field(default_factory=dict)
    """Values whose type is another one now."""


def with_caches(graphs: Mapping[str, Graph], kind: CacheKind) -> dict[str, Graph]:
    """Graphs of one model with that kind of cache. Raises LG705 where no slot can be bounded."""
    if kind == "full":
        return dict(graphs)
    bounded = {name: bound_caches(graph) for name, graph in graphs.items()}
    if not any(keeps(graph) for graph in bounded.values()):
        spec_id = next(iter(graphs.values())).spec_id
        message = f"no cache of {spec_id} can be bounded: every layer that has one reads all tokens"
        raise LlamagenError.of(
            "LG705",
            message,
            help="leave out `--cache bounded`: the full cache is the least there is",
        )
    return bounded


def keeps(graph: Graph) -> tuple[int, ...]:
    """The distinct bounds of the slots of ``graph``, least first."""
    nodes = (n for b in graph.blocks.values() for n in b.nodes if n.row.state is State.SLOT)
    return tuple(sorted({k for n in nodes if (k := keep_of(n.attrs)) is not None}))


def bound_caches(graph: Graph) -> Graph:
    """``graph`` with ``keep`` on every slot that is read under windows and chunks only; others stay whole.

    Equal logits, whatever the calls. A slot stays whole when something other than attention reads it, or a block
    returns it.
    """
    decided = {name: _decide(graph, block) for name, block in graph.blocks.items()}
    if not any(bounds.keeps for bounds in decided.values()):
        return graph
    names = _mask_names(decided.values())
    blocks = {name: _rewritten(bounds, names) for name, bounds in decided.items()}
    prelude, values = _prelude(graph, names)
    order = [*(v.id for v in graph.inputs), *values]
    return replace(
        graph, blocks=_with_contexts(blocks, order), prelude=prelude, prelude_values=values
    )


def _decide(graph: Graph, block: Block) -> _Bounds:
    bounds = _Bounds(block)
    for node in block.nodes:
        if node.row.state is State.SLOT:
            reach = _reach(graph, block, node)
            if reach is not None:
                trial = replace(bounds, keeps=bounds.keeps | {node.results[0]: reach - 1})
                bounds = _propagated(graph, trial) or bounds
    return bounds


def _reach(graph: Graph, block: Block, cache: Node) -> int | None:
    """Tokens, itself included, that the widest reader of a slot sees; none for all of them, or for no reader."""
    widest = 0
    for node in _readers(block, cache):
        limits = [limit for limit in graph.limits(node) if limit is not None]
        if not limits:
            return None
        widest = max(widest, min(limits))
    return widest or None


def _readers(block: Block, cache: Node) -> Iterator[Node]:
    """The attentions that read a slot's keys or values, through ops on each token alone."""
    read = set(cache.results)
    for node in block.nodes:
        if not read & set(node.operands):
            continue
        if node.row.role is Role.ATTENTION:
            yield node
        elif _on_each_token(node):
            read |= set(node.results)


def _on_each_token(node: Node) -> bool:
    """Whether it gives as many tokens as it reads, each from one: it may read bounded keys."""
    return node.row.tokens is Tokens.ALONE and len(node.operands) == 1


def _propagated(graph: Graph, bounds: _Bounds) -> _Bounds | None:
    """Types and masks behind the bounded slots of a block; none when something there needs every token."""
    block, types, masks = bounds.block, dict[str, TensorType](), dict[int, int]()
    held: dict[str, int] = {}

    for i, node in enumerate(block.nodes):
        attrs = node.attrs
        if node.row.state is State.SLOT and node.results[0] in bounds.keeps:
            keep = bounds.keeps[node.results[0]]
            attrs = {**attrs, "keep": keep}
            held.update(dict.fromkeys(node.results, keep))
        elif not held.keys() & set(node.operands):
            continue
        elif node.row.role is not Role.ATTENTION and not _on_each_token(node):
            return None
        operands = [types.get(o) or graph.type_of(block, o) for o in node.operands]
        if node.row.role is Role.ATTENTION:
            past_bounds = {held.get(o) for o in node.operands[1:3]}
            keep_or_none = past_bounds.pop()
            mask = graph.mask_of(node)
            if past_bounds or keep_or_none is None or mask is None:
                return None
            masks[i] = keep_or_none
            operands[3] = _kept_mask(graph, mask, keep_or_none)
        elif node.row.state is not State.SLOT:
            held.update(dict.fromkeys(node.results, held[node.operands[0]]))
        try:
            results = node.row.shape(operands, attrs)
        except (ShapeError, ValueError):
            return None
        types.update(zip(node.results, results, strict=True))
    changed = {name: t for name, t in types.items() if t != block.values[name].type}
    if changed.keys() & set(block.outputs):
        return None
    return replace(bounds, masks=masks, types=changed)


def _kept_mask(graph: Graph, node: Node, keep: int | None) -> TensorType:
    types = [graph.level[o[1:]] for o in node.operands]
    attrs = node.attrs if keep is None else {**node.attrs, "keep": keep}
    return node.row.shape(types, attrs)[0]


def _mask_names(decided: Iterable[_Bounds]) -> _Names:
    """A mask keeps its name unless it is read at several widths: then the widest does."""
    widths: dict[str, dict[int | None, None]] = {}
    for bounds in decided:
        for i, node in enumerate(bounds.block.nodes):
            if node.row.role is Role.ATTENTION and len(node.operands) > 3:
                mask = node.operands[3].removeprefix("@")
                widths.setdefault(mask, {})[bounds.masks.get(i)] = None
    names: dict[tuple[str, int | None], str] = {}
    for mask, mask_widths in widths.items():
        widest = None if None in mask_widths else max(k for k in mask_widths if k is not None)
        names |= {(mask, k): mask if k == widest else f"{mask}_{k}" for k in mask_widths}
    return names


def _rewritten(bounds: _Bounds, names: _Names) -> Block:
    nodes: list[Node] = []
    for i, node in enumerate(bounds.block.nodes):
        if node.row.state is State.SLOT and node.results[0] in bounds.keeps:
            node = replace(node, attrs={**node.attrs, "keep": bounds.keeps[node.results[0]]})
        elif node.row.role is Role.ATTENTION and len(node.operands) > 3:
            mask = names[node.operands[3].removeprefix("@"), bounds.masks.get(i)]
            node = replace(node, operands=(*node.operands[:3], f"@{mask}", *node.operands[4:]))
        nodes.append(node)
    values = {
        name: replace(value, type=bounds.types.get(name, value.type))
        for name, value in bounds.block.values.items()
    }
    return replace(bounds.block, nodes=tuple(nodes), values=values)


def _prelude(graph: Graph, names: _Names) -> tuple[tuple[Node, ...], dict[str, Value]]:
    nodes: list[Node] = []
    values: dict[str, Value] = {}
    for node in graph.prelude:
        variants = [(keep, name) for (mask, keep), name in names.items() if mask in node.results]
        if not variants:
            nodes.append(node)
            values.update({r: graph.prelude_values[r] for r in node.results})
        for keep, name in variants:
            attrs = node.attrs if keep is None else {**node.attrs, "keep": keep}
            nodes.append(replace(node, results=(name,), attrs=attrs))
            values[name] = Value(name, _kept_mask(graph, node, keep), named=True)
    return tuple(nodes), values


def _with_contexts(blocks: Mapping[str, Block], order: Sequence[str]) -> dict[str, Block]:
    """``blocks``, which list those below first, each with the graph-level values that it or one below it reads."""
    done: dict[str, Block] = {}
    for name, block in blocks.items():
        read = {o[1:] for node in block.nodes for o in node.operands if o.startswith("@")}
        read.update(c for below in block.below for c in done[below].context)
        done[name] = replace(block, context=tuple(n for n in order if n in read))
    return done
