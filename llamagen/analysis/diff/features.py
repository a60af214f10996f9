"""What two models are compared by: values, weights, equations, settings, interface, numbers, record.

A feature has a path that is the same for equal places of two models, with layer numbers taken out of it
(``model.layers.*.self_attn.k_proj.weight`` and index ``(3,)``), so that repeated layers can be shown once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from llamagen.analysis.cost import Counts, Workload
from llamagen.analysis.diff.equations import Fused, equations, keys, meaning, settings
from llamagen.analysis.diff.match import Matching
from llamagen.analysis.diff.runtimes import on_runtimes, runtimes
from llamagen.analysis.layers import turned_share
from llamagen.analysis.numbers import Uses, behind, cache_of, collapse, count_flops, encoder_flops
from llamagen.diagnostics import Span
from llamagen.ir.graph import MAIN, Block, Graph, Node, OpPart, join
from llamagen.ops.op import Role
from llamagen.spec.expr import Static, unparse_static
from llamagen.spec.resolve import ResolvedSpec


class Kind(StrEnum):
    VALUE = "value"
    """A leaf of hyperparameters, constants or patterns."""
    TOKENIZER = "tokenizer"
    RECORD = "record"
    """Title, release, training, lineage."""
    NAMING = "naming"
    """Checkpoint layouts and the config.json mapping."""
    MOVED = "moved"
    """A block or a weight that stands at another path."""
    PARAMETER = "parameter"
    BLOCK = "block"
    """A block instance that one model lacks."""
    EQUATION = "equation"
    SETTING = "setting"
    """Constants and switches of an op: eps, theta, window, top-k."""
    INTERFACE = "interface"
    OPERATOR = "operator"
    RUNTIME = "runtime"
    """What a runtime makes of the model: runs, slow, wrong, refuses."""
    NUMBER = "number"


Home: TypeAlias = tuple[str, str | None]
"""A graph and the role path of a block; none for what belongs to no block."""
Local: TypeAlias = tuple[Kind, str]
"""What is told apart within a block, by its path there."""
Own: TypeAlias = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Feature:
    kind: Kind
    path: str
    index: tuple[int, ...]
    value: Static
    """What is compared."""
    text: str
    span: Span | None
    role: str = "other"
    """For parameters: query, key, value, fused, embedding, head, other."""
    parts: tuple[tuple[int, ...], ...] = ()
    """For a fused matrix: the sizes that its result is split into, one tuple a split."""
    home: Home = (MAIN, None)
    """Graph and role path of the block that it belongs to, as the model itself calls it."""
    own: Own | None = None
    """Of B: its path and index as B itself calls it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a weight."""
        return (
            tuple(n for n in self.value if isinstance(n, int))
            if isinstance(self.value, tuple)
            else ()
        )


SECTIONS: dict[str, Kind] = {
    "hyperparameters": Kind.VALUE,
    "constants": Kind.VALUE,
    "patterns": Kind.VALUE,
    "tokenizer": Kind.TOKENIZER,
    "title": Kind.RECORD,
    "release": Kind.RECORD,
    "training": Kind.RECORD,
    "lineage": Kind.RECORD,
    "checkpoint": Kind.NAMING,
    "config": Kind.NAMING,
}


NEW = "+"
"""Stands before the path of what B has and A has not: A may have something else there."""


def features(
    resolved: ResolvedSpec,
    graphs: Mapping[str, Graph],
    load: Workload,
    match: Matching | None = None,
) -> Iterator[Feature | Equations]:
    """Everything of one model that a diff compares, in the order it is shown.

    What a further graph has beside the text model (``graphs["model"]``) has its name in front: ``vision_encoder/``.
    With a ``match`` paths are those of the other model, with ``NEW`` before what it lacks.
    """
    yield from _of_spec(resolved)
    yield from graph_features(graphs, match)
    if graphs:
        yield from _on_runtimes(resolved, graphs, load)
        yield from _numbers(graphs, load)


def graph_features(
    graphs: Mapping[str, Graph], match: Matching | None = None
) -> Iterator[Feature | Equations]:
    """What the graphs have: weights, blocks with their equations, settings of ops, inputs and outputs."""
    seen: set[tuple[object, ...]] = set()
    for name, graph in graphs.items():
        of_graph: tuple[Feature | Equations, ...] = (
            *parameter_features(graph),
            *_blocks(graph),
            *setting_features(graph),
            *_interface(graph),
        )
        for one in of_graph:
            key = _identity(one)
            if key not in seen:
                seen.add(key)
                shared = isinstance(one, Feature) and one.kind in (Kind.PARAMETER, Kind.OPERATOR)
                front = "" if name == MAIN or shared else f"{name}/"
                one = replace(one, home=(name, one.home[1]))
                if match is None or one.home[1] is None:
                    yield replace(one, path=f"{front}{one.path}")
                else:
                    yield _in_words_of_a(one, front, match)


def _in_words_of_a(one: Feature | Equations, front: str, match: Matching) -> Feature | Equations:
    """At the path that A has it at; equations with the names that A's parts have."""
    graph, own_home = one.home[0], one.home[1] or ""
    one = replace(one, own=(f"{front}{one.path}", one.index))
    home = match.block(graph, own_home)
    if home is None:
        return replace(one, path=f"{NEW}{front}{one.path}")
    if isinstance(one, Equations):
        path, index = collapse(home)
        return replace(one, path=f"{front}{path}", index=index, names=match.names(graph, own_home))
    local = one.path.removeprefix(collapse(own_home)[0]).removeprefix(".")
    end = next((i for i, c in enumerate(local) if c in ".:#"), len(local))
    path, index = collapse(join(home, match.name(graph, own_home, local[:end]) + local[end:]))
    return replace(one, path=f"{front}{path}", index=index)


def _identity(one: Feature | Equations) -> tuple[object, ...]:
    """What a further graph says again, in the same words, of a block that it shares with the text model."""
    match one:
        case Feature(kind=Kind.PARAMETER):
            return (one.kind, one.path, one.index)
        case Feature():
            return (one.kind, one.path, one.index, one.text)
        case Equations():
            return (one.path, one.index, one.meaning())


def _of_spec(resolved: ResolvedSpec) -> Iterator[Feature]:
    for path, leaf in resolved.leaves:
        kind = SECTIONS.get(path.split(".", 1)[0])
        node = leaf.node
        if kind is None or leaf.origins[-1].text in ("null", "~"):
            continue
        text = " ".join(leaf.origins[-1].text.split())
        yield Feature(kind, path, (), _comparable(text), text, node.span)


def _comparable(text: str) -> Static:
    """Numbers are compared as numbers: ``10000.0`` is ``1e4``."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def parameter_features(graph: Graph) -> Iterator[Feature]:
    """Every weight, with what it is for."""
    roles = _roles(graph)
    own = {name: tuple(_parameters(block, roles)) for name, block in graph.blocks.items()}
    return _placed(graph, own)


def setting_features(graph: Graph) -> Iterator[Feature]:
    """The constants and switches of every op."""
    own = {name: tuple(_settings(graph, block)) for name, block in graph.blocks.items()}
    return _placed(graph, own)


def _placed(graph: Graph, own: Mapping[str, Iterable[Feature]]) -> Iterator[Feature]:
    """The features of every block at each of its instances."""
    for here in graph.instances:
        path, index = collapse(here.path)
        for one in own[here.block.name]:
            yield replace(one, path=join(path, one.path), index=index, home=(MAIN, here.path))


def signature(graphs: Mapping[str, Graph]) -> dict[Home, Mapping[Local, object]]:
    """What every block has, and each graph's inputs and outputs; equal where nothing of it is told apart by a diff."""
    result: dict[Home, Mapping[Local, object]] = {}
    for name, graph in graphs.items():
        roles = _roles(graph)
        own: dict[str, dict[Local, object]] = {}
        for block in graph.blocks.values():
            of_block = (*_parameters(block, roles), *_settings(graph, block))
            own[block.name] = {(one.kind, one.path): one.text for one in of_block}
            own[block.name][(Kind.BLOCK, "")] = meaning(graph, block, {})
        for here in graph.instances:
            result[(name, here.path)] = own[here.block.name]
        ends = _interface(graph)
        result[(name, None)] = {(one.kind, f"{one.path} {one.index}"): one.text for one in ends}
    return result


def _parameters(block: Block, roles: Mapping[tuple[str, str], str]) -> Iterator[Feature]:
    """The weights of a block's own parts; their paths begin at the block."""
    for part in block.parts.values():
        if not isinstance(part, OpPart):
            continue
        role = roles.get((block.name, part.name), "other")
        splits = _splits(block, part.name)
        for parameter in part.parameters:
            path = join(part.name, parameter.name) if parameter.name else part.name
            text = "×".join(map(str, parameter.shape))
            yield Feature(Kind.PARAMETER, path, (), parameter.shape, text, part.span, role, splits)


def _roles(graph: Graph) -> dict[tuple[str, str], str]:
    roles: dict[tuple[str, str], str] = dict.fromkeys(Uses(graph).heads, "head")
    for block in graph.blocks.values():
        producers = {r: node for node in block.nodes for r in node.results}
        for node in block.nodes:
            if node.row.role is Role.EMBEDDING and node.part is not None:
                roles[(block.name, node.part)] = "embedding"
            if node.row.role is not Role.ATTENTION:
                continue
            for operand, role in zip(node.operands, ("query", "key", "value"), strict=False):
                makers = [producers[v] for v in behind(block, operand) if v in producers]
                for part in {n.part for n in makers if n.row.role is Role.LINEAR and n.part}:
                    known = roles.get((block.name, part))
                    roles[(block.name, part)] = role if known in (None, role) else "fused"
    return roles


def _splits(block: Block, part: str) -> tuple[tuple[int, ...], ...]:
    results = {r for node in block.nodes if node.part == part for r in node.results}
    sizes = (
        node.attrs["sizes"]
        for node in block.nodes
        if node.row.role is Role.SPLIT and node.operands[0] in results
    )
    return tuple(s for s in sizes if isinstance(s, tuple) and all(isinstance(n, int) for n in s))  # type: ignore[misc]


def fused_group(whole: Feature, candidates: Mapping[str, Feature]) -> tuple[str, ...]:
    """Paths of consecutive candidates whose rows are the pieces that the result of ``whole`` is split into."""
    paths = list(candidates)
    shape = whole.shape
    for start in range(len(paths)):
        for end in range(start + 2, len(paths) + 1):
            shapes = [candidates[p].shape for p in paths[start:end]]
            rows = tuple(s[0] for s in shapes)
            same = all(s[1:] == shape[1:] for s in shapes)
            if rows in whole.parts and sum(rows) == shape[0] and same:
                return tuple(paths[start:end])
    return ()


@dataclass(frozen=True, slots=True)
class Equations:
    """All equations of one block instance; two of them are compared line by line."""

    path: str
    index: tuple[int, ...]
    home: Home
    lines: tuple[str, ...]
    spans: tuple[Span | None, ...]
    graph: Graph = field(compare=False, repr=False)
    block: Block = field(compare=False, repr=False)
    names: frozenset[tuple[str, str]] = frozenset()
    """Names of its parts, and those they are compared by, where these are others."""
    own: Own | None = None
    """Of B: its path and index as B itself calls it."""

    def meaning(self, fused: Fused | None = None, *, rounded: bool = True) -> tuple[str, ...]:
        """Decides whether two are equal: what the block computes, whatever the author's names are."""
        return meaning(self.graph, self.block, dict(self.names), fused, rounded=rounded)

    def compared(self) -> tuple[str, ...]:
        """Its lines as they are compared."""
        return keys(self.graph, self.block, dict(self.names))


def _blocks(graph: Graph) -> Iterator[Equations]:
    written = {name: equations(graph, block) for name, block in graph.blocks.items()}
    for here in graph.instances:
        path, index = collapse(here.path)
        lines = written[here.block.name]
        texts, spans = tuple(e.text for e in lines), tuple(e.span for e in lines)
        yield Equations(path, index, (MAIN, here.path), texts, spans, graph, here.block)


def _settings(graph: Graph, block: Block) -> Iterator[Feature]:
    """The settings of a block's own ops; their paths begin at the block."""
    seen: dict[str, int] = {}
    for node in block.nodes:
        if node.row.control:
            continue
        own = settings(graph, node, node.attrs) | dict(_widths(graph, block, node))
        if node.part is not None:
            own["op"] = node.op
        local = node.part or node.op
        if node.row.role is Role.ROTATION:
            local = "rope"
        number = seen.get(local, 0)
        seen[local] = number + 1
        # Queries and keys are rotated alike; a second, different rotation is a place of its own.
        label = local if number == 0 or local == "rope" else f"{local}#{number + 1}"
        if local == "rope" and number:
            continue
        for name, text in own.items():
            path = f"{label}:{name}"
            yield Feature(Kind.SETTING, path, (), _comparable(text), text, node.span, label)


def _widths(graph: Graph, block: Block, node: Node) -> Iterator[tuple[str, str]]:
    """What an op makes of a width that its weights do not tell: how wide a head is, which share of it is turned."""
    if node.row.role is Role.ATTENTION:
        yield "head_dim", str(graph.operand_types(block, node)[0].shape[-1].value)
    if node.row.role is Role.ROTATION:
        yield "partial", unparse_static(turned_share(graph, block, node))


def _interface(graph: Graph) -> Iterator[Feature]:
    ends: list[tuple[str, str, Span | None]] = [
        (value.id, str(value.type), None) for value in graph.inputs
    ]
    ends += [(name, str(type_), graph.root_block.span) for name, type_ in graph.outputs]
    for name, text, span in ends:
        yield Feature(Kind.INTERFACE, name, (), text, text, span)
    for i, slot in enumerate(cache_of(graph).layers):
        for what, width in (("key", slot.key_dim), ("value", slot.value_dim)):
            text = f"[B, {slot.kv_heads}, P, {width}]"
            path, shape = f"past_key_values.*.{what}", (slot.kv_heads, width)
            yield Feature(Kind.INTERFACE, path, (i,), shape, text, None)
    nodes = (node for block in graph.blocks.values() for node in block.nodes)
    for op in sorted({node.op for node in nodes if not node.row.control}):
        yield Feature(Kind.OPERATOR, op, (), True, op, None)


def _on_runtimes(
    resolved: ResolvedSpec, graphs: Mapping[str, Graph], load: Workload
) -> Iterator[Feature]:
    """Status on each runtime, weights in the workload's dtype; the notes behind it stand in the text."""
    for report in on_runtimes(resolved, graphs, runtimes(), load.weights.name):
        if report.status is None:
            continue
        why = "; ".join(f.note for f in report.facts if f.status is report.status)
        text = f"{report.status}: {why}"
        yield Feature(Kind.RUNTIME, report.name, (), report.status.value, text, None)


def _numbers(graphs: Mapping[str, Graph], load: Workload) -> Iterator[Feature]:
    counted = Counts(graphs, load)
    cache, size = counted.cache, load.cache_bytes
    prefill = count_flops(counted.flops, load.batch, load.context, 0)
    decode = count_flops(counted.flops, load.batch, 1, load.context)
    numbers = {
        "parameters": counted.parameters.total,
        "active_parameters": counted.parameters.active,
        "weight_bytes": counted.weights,
        "kv_bytes_per_token": cache.per_token(size),
        "kv_bytes": load.batch * cache.allocated(load.context, size),
        "resident_bytes": counted.resident(load.batch, load.context),
        "kv_bytes_needed": load.batch * cache.needed(load.context, size),
        "prefill_flops": prefill.total,
        "decode_flops": decode.total,
    }
    if (image := encoder_flops(graphs)) is not None:
        numbers["image_flops"] = image
    for name, number in numbers.items():
        yield Feature(Kind.NUMBER, name, (), number, f"{number:,}", None)
