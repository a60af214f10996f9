"""What the layers of a text model are: facts that an expert names, read from the graph and from no name of the spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llamagen.analysis.numbers import expert_choice, slices_used
from llamagen.ir.graph import MAIN, Block, BlockPart, Graph, Node, OpPart, StackPart, join
from llamagen.ir.pipeline import pipeline_of
from llamagen.ops.op import AttrValue, Role, a_int, a_ints
from llamagen.ops.rope import ROPE_KINDS

Settings: TypeAlias = Mapping[str, AttrValue]


@dataclass(frozen=True, slots=True)
class Heads:
    query: int
    key_value: int
    dim: int
    latent: int | None = None
    """Width of the vector that is keys, with a rotated part beside it, and values of every head (DeepSeek's MLA)."""


@dataclass(frozen=True, slots=True)
class Experts:
    count: int
    used: int
    """By a token."""
    width: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What a layer of the text model is; none for what it does not have."""

    heads: Heads | None
    cross: bool
    """It attends to something else than the text."""
    window: int | None
    chunk: int | None
    rope: Settings | None
    positions: str | None
    """How else it knows them."""
    attention: Settings
    """What the scores are computed with; without a scale that is the usual 1/√head_dim."""
    layout: str | None
    """Which values of a head are turned together."""
    temperature: Settings | None
    qk_norm: str | None
    experts: Experts | None
    width: int | None
    """Of the dense feed-forward, or of the shared expert."""
    activation: str | None
    norms: tuple[int, str]
    """How many, and by which op."""
    normed: str | None
    """Where they stand: before attention and feed-forward, behind them, or on the sum with what went in."""
    eps: str
    biases: str | None

    def kind(self) -> tuple[object, ...]:
        """What it does, but for sizes and constants."""
        has = (self.window, self.chunk, self.rope, self.temperature, self.experts, self.width)
        return (
            self.cross,
            self.positions,
            *(one is None for one in has),
            self.qk_norm,
            self.norms,
            self.normed,
            self.biases,
        )


def layers_of(graph: Graph) -> tuple[str, list[Facts]]:
    """Role path of the stack that attends, and what its layers are; no layers where there is no such stack."""
    for here in graph.instances:
        for part in here.block.parts.values():
            if isinstance(part, StackPart) and any(_attends(graph, name) for name in part.blocks):
                known = {name: _facts(graph, graph.blocks[name]) for name in set(part.blocks)}
                return join(here.path, part.name), [known[name] for name in part.blocks]
    return "", []


def _below(graph: Graph, block: Block) -> Iterator[Block]:
    yield block
    for part in block.parts.values():
        if isinstance(part, BlockPart):
            yield from _below(graph, graph.blocks[part.block])


def _attends(graph: Graph, name: str) -> bool:
    blocks = _below(graph, graph.blocks[name])
    return any(node.row.role is Role.ATTENTION for block in blocks for node in block.nodes)


def _facts(graph: Graph, layer: Block) -> Facts:
    blocks = list(_below(graph, layer))
    attending = [b for b in blocks if any(n.row.role is Role.ATTENTION for n in b.nodes)]
    within = [x for b in attending for x in (_below(graph, b) if b is not layer else [b])]
    others = [b for b in blocks if b not in within]
    heads: Heads | None = None
    cross = False
    settings: Settings = {}
    limits: tuple[int | None, int | None] = (None, None)
    nodes: Sequence[Node] = attending[0].nodes if attending else ()
    scored: list[Node] = []
    for node in nodes:
        if node.row.role is Role.ATTENTION:
            scored = list(_after_projections(graph, attending[0], node.operands[:2]))
            query, key = (t.shape for t in graph.operand_types(attending[0], node)[:2])
            latent = _latent(graph, attending[0], node)
            heads = Heads(query[1].value, key[1].value, query[3].value, latent)
            limits = graph.limits(node)
            usual = heads.dim**-0.5
            settings = {n: v for n, v in node.attrs.items() if (n, v) != ("scale", usual)}
            cross = graph.mask_of(node) is None and len(node.operands) > 3
    prelude = {f"@{r}": node for node in graph.prelude for r in node.results}
    read = [prelude[o] for n in nodes for o in n.operands if o in prelude]
    rope = next((n for n in read if n.row.role is Role.ROPE_TABLE), None)
    warm = next((n for n in read if n.row.role is Role.TEMPERATURE), None)
    turned = next((n for n in nodes if n.row.role is Role.ROTATION), None)
    share = turned_share(graph, attending[0], turned) if turned is not None else 1.0
    table = any(
        node.row.role is Role.EMBEDDING and "@positions" in node.operands
        for block in graph.blocks.values()
        for node in block.nodes
    )
    parts = [(b, p) for b in blocks for p in b.parts.values() if isinstance(p, OpPart)]
    experts = next(((b, p) for b, p in parts if p.row.role is Role.EXPERTS), None)
    dense = [(b, w) for b in others if (w := _width(b)) is not None]
    norms = [p for b, p in parts if p.row.role is Role.NORM and b in others]
    linear = [p for _, p in parts if p.row.role is Role.LINEAR]
    return Facts(
        heads=heads,
        cross=cross,
        window=limits[0],
        chunk=limits[1],
        rope=_rope(rope, share) if rope is not None else None,
        positions="ALiBi" if settings.get("alibi") else "a table of positions" if table else None,
        attention=settings,
        layout=str(turned.attrs["layout"]) if turned is not None else None,
        temperature=dict(warm.attrs) if warm is not None else None,
        qk_norm=None
        if heads is not None and heads.latent is not None
        else _names(n.op for n in scored if n.row.role in (Role.NORM, Role.BARE_NORM)),
        experts=_experts(graph, *experts) if experts is not None else _spelled(parts),
        width=dense[0][1] if dense else None,
        activation=_names(
            n.op for block, _ in dense for n in block.nodes if _activates(graph, block, n)
        ),
        norms=(len(norms), _names(p.op for p in norms) or ""),
        normed=_places_of_norms(others),
        eps=_names(str(p.attrs.get("eps")) for p in norms) or "",
        biases=_names(p.name for p in linear if any(q.kind == "bias" for q in p.parameters)),
    )


def _after_projections(graph: Graph, block: Block, values: Sequence[str]) -> Iterator[Node]:
    """What is done to values since the linear parts that they come from, in blocks of its own too."""
    made = {r: node for node in block.nodes for r in node.results}
    waiting, seen = list(values), set[str]()
    while waiting:
        value = waiting.pop()
        node = made.get(value)
        if node is None or value in seen or node.row.role is Role.LINEAR:
            continue
        seen.add(value)
        yield node
        part = block.part_of(node)
        if isinstance(part, BlockPart):
            yield from (n for b in _below(graph, graph.blocks[part.block]) for n in b.nodes)
        waiting += node.operands


def _places_of_norms(blocks: Sequence[Block]) -> str | None:
    """Of the norms that are parts of ``blocks``; the residual stream is what goes in and what is added up."""
    found: set[str] = set()
    for block in blocks:
        made = {r: node for node in block.nodes for r in node.results}
        for node in block.nodes:
            if node.part is None or node.row.role is not Role.NORM:
                continue
            source = made.get(node.operands[0])
            stream = source is None or source.row.symbol == "+"
            goes_on = node.results[0] in block.outputs or any(
                n.row.symbol == "+" and node.results[0] in n.operands for n in block.nodes
            )
            found.add("behind" if not stream else "on the sum of" if goes_on else "before")
    return " and ".join(w for w in ("before", "behind", "on the sum of") if w in found) or None


def _activates(graph: Graph, block: Block, node: Node) -> bool:
    """Whether it is a function of each value: no sum or product, and no cast."""
    result = block.values[node.results[0]].type
    alike = graph.operand_types(block, node) == [result]
    return node.row.elementwise and not node.row.symbol and alike


def _names(words: Iterator[str]) -> str | None:
    return ", ".join(sorted(set(words))) or None


def _rope(table: Node, share: float) -> Settings:
    scaling = str(table.attrs["scaling"])
    names = ("theta", "scaling", *(a.name for a in ROPE_KINDS[scaling].attrs))
    return {name: table.attrs.get(name) for name in names} | {"partial": share}


def turned_share(graph: Graph, block: Block, rotation: Node) -> float:
    """Of a head's width that which is turned: a table has an angle for every two of its values."""
    head, table = (t.shape[-1].value for t in graph.operand_types(block, rotation)[:2])
    return 2 * table / head


def _latent(graph: Graph, block: Block, attention: Node) -> int | None:
    """Width of the values, where these are a part of the keys."""
    _, key, value = attention.operands[:3]
    made = next((n for n in block.nodes if key in n.results), None)
    if made is None or made.part is not None or value not in made.operands:
        return None
    return graph.operand_types(block, attention)[2].shape[-1].value


def _spelled(parts: Sequence[tuple[Block, OpPart]]) -> Experts | None:
    """Experts that equations spell out over tensors with a slice an expert: the last is [E, F, D]."""
    found = [p for _, p in parts if slices_used(p) and len(a_ints(p.attrs, "shape")) == 3]
    if not found:
        return None
    count, width, _ = a_ints(found[-1].attrs, "shape")
    return Experts(count, slices_used(found[-1]), width)


def _experts(graph: Graph, block: Block, part: OpPart) -> Experts:
    return Experts(*expert_choice(graph, block, part), a_int(part.attrs, "intermediate"))


def _width(block: Block) -> int | None:
    """Of a feed-forward: how many features its last linear part reads."""
    made = {r: node for node in block.nodes for r in node.results}
    last = made.get(block.outputs[0]) if block.outputs else None
    part = block.part_of(last) if last is not None and last.row.role is Role.LINEAR else None
    return part.parameters[0].shape[1] if isinstance(part, OpPart) and part.parameters else None


def with_images(graphs: Mapping[str, Graph]) -> Graph:
    """The graph that has the layers of the text, those that see images with them."""
    pipeline = pipeline_of(graphs)
    return graphs[pipeline.steps[-1]] if pipeline is not None else graphs[MAIN]
