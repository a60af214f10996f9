"""Graphs that run in pieces as one model from images and ids to logits, as it is trained.

What is computed once from the images becomes an input of the text model, by name everywhere. Two ways are known from
there on: rows in place of those of a token (``Pipeline.placeholders``), and keys and values of cross-attention, which
the pieces compute with the images and a whole model where they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from llamagen.diagnostics import LlamagenError, Span
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import (
    MAIN,
    Block,
    BlockPart,
    Graph,
    Node,
    OpPart,
    Value,
    all_parameters,
    join,
    places,
)
from llamagen.ir.pipeline import pipeline_of
from llamagen.ops.op import State, TensorType

NAME = "VisionLanguageModel"
"""Its root, whatever the pieces are called."""

STATES = "image_states"
"""What keys and values of the images are computed from."""


@dataclass(frozen=True, slots=True)
class Joined:
    """``text`` has what ``encoder`` gives among its inputs; their roots have parts of different names."""

    encoder: Graph
    text: Graph
    skipped: frozenset[str] = frozenset()
    """Blocks of ``text`` that hand on what they get where there is no image."""

    @property
    def handed(self) -> str:
        return self.encoder.output_names[0]

    @property
    def graph(self) -> Graph:
        """``text`` with the parts and the inputs of ``encoder`` at its root; no equation of it reads them.

        Raises LG741 for names that both have.
        """
        seen, text = self.encoder, self.text
        own = {n: b for n, b in seen.blocks.items() if n != seen.root}
        both = [n for n in own if text.blocks.get(n, own[n]) != own[n]]
        both += seen.root_block.parts.keys() & text.root_block.parts.keys()
        both += seen.prelude_values.keys() & text.prelude_values.keys()
        if both:
            raise _refused(text.root_block.span, f"`{both[0]}` is in two of them")
        parts = {**seen.root_block.parts, **text.root_block.parts}
        root = replace(text.root_block, name=NAME, parts=parts)
        blocks = {n: b for n, b in text.blocks.items() if n != text.root}
        return replace(
            text,
            inputs=tuple(dict.fromkeys((*text.inputs, *seen.inputs))),
            prelude=(*seen.prelude, *text.prelude),
            prelude_values={**seen.prelude_values, **text.prelude_values},
            blocks={**own, **blocks, NAME: root},
            root=NAME,
        )


def joined(graphs: Mapping[str, Graph]) -> Joined | None:
    """None for a model of text. Raises LG407 and LG741 for graphs that are no such model."""
    pipeline = pipeline_of(graphs)
    if pipeline is None:
        return None
    *before, last = (graphs[name] for name in pipeline.steps)
    encoders, span = [graphs[name] for name in pipeline.once], last.root_block.span
    if len(encoders) != 1 or len(before) > 1:
        raise _refused(span, "it takes one that reads images, and one or two that read text")
    if before:
        whole = _rows(encoders[0], before[0], graphs[MAIN])
    else:
        whole = _keys(encoders[0], last, graphs[MAIN])
    own = whole.encoder.parameters.keys() | whole.text.parameters.keys()
    if lost := all_parameters(graphs).keys() - own:
        raise _refused(span, f"it would not have the weight `{min(lost)}`")
    return whole


def _refused(span: Span | None, why: str) -> LlamagenError:
    return LlamagenError.of("LG741", f"the graphs cannot be one PyTorch model: {why}", span)


def _rows(encoder: Graph, embedding: Graph, text: Graph) -> Joined:
    """The model of text, where the equations after the graph ``embedding`` has looked ids up follow that look-up."""
    root = below = embedding.root_block
    path, (first, *after) = "", root.nodes
    node = first
    while isinstance(part := below.parts.get(node.part or ""), BlockPart):
        path, below = join(path, part.name), embedding.blocks[part.block]
        if len(below.nodes) != 1:
            raise _refused(below.span, f"`{path}` does not just look ids up")
        (node,) = below.nodes
    blocks = [i.block for i in text.instances if i.path == path]
    looked_up = [n for b in blocks for n in b.nodes if n.part == node.part]
    if not isinstance(part, OpPart) or len(looked_up) != 1:
        raise _refused(node.span, f"the text model has no `{path}.{node.part}`")
    (block,), (here,) = blocks, looked_up
    new = _Copy(block)
    new.ids |= {v.id: f"@{v.id}" for v in root.inputs}
    new.ids |= {first.operands[0]: here.operands[0], first.results[0]: here.results[0]}
    nodes = [new.node(n, root) for n in after]
    (output,) = root.outputs
    at = block.nodes.index(here) + 1

    def later(ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(new.ids[output] if i == here.results[0] else i for i in ids)

    rest = [replace(n, operands=later(n.operands)) for n in block.nodes[at:]]
    changed = replace(
        block,
        nodes=(*block.nodes[:at], *nodes, *rest),
        values=new.values,
        outputs=later(block.outputs),
    )
    return Joined(encoder, _with(text, [changed], *encoder.outputs[0]))


def _keys(encoder: Graph, decoder: Graph, text: Graph) -> Joined:
    """Keys and values of images where they are read, from what the encoder computes them of."""
    root = encoder.root_block
    writes, reads = list(places(encoder, State.WRITTEN)), list(places(decoder, State.READ))
    if not writes or [w.path for w in writes] != [r.path for r in reads]:
        why = "images become neither rows for a token nor keys and values for layers"
        raise _refused(root.span, why)
    call = next(n for n in root.nodes if n.part == writes[0].path.partition(".")[0])
    states, flat, changed = call.operands[0], flatten(encoder), dict[str, Block]()
    for write, read in zip(writes, reads, strict=True):
        inside = [n for n in flat.nodes if f"{n.path}.".startswith(f"{write.path}.")]
        results = {r for n in inside for r in n.results}
        block = _reading(read.block, read.node, write.block, write.node)
        same = changed.setdefault(read.block.name, block) == block
        if not same or {o for n in inside for o in n.operands} - results != {f"/{states}"}:
            why = f"keys and values of `{read.path}` do not come of what those of all layers do"
            raise _refused(write.node.span, why)
    nodes = root.nodes[: root.nodes.index(call)]
    parts = {name: p for name, p in root.parts.items() if any(n.part == name for n in nodes)}
    root = replace(root, nodes=nodes, parts=parts, outputs=(states,))
    blocks = {**encoder.blocks, root.name: root}
    seen = replace(encoder, blocks=_reachable(blocks, root.name), output_names=(STATES,))
    return Joined(
        seen,
        _with(decoder, changed.values(), STATES, root.values[states].type),
        frozenset(_skipped(decoder, text, [r.path for r in reads])),
    )


def _reading(block: Block, read: Node, writer: Block, write: Node) -> Block:
    """``block`` that computes for itself what it reads; only a call with images does, and others have what it wrote."""
    new = _Copy(block)
    new.ids[writer.inputs[0].id] = f"@{STATES}"
    nodes: list[Node] = []
    for node in block.nodes:
        if node != read:
            nodes.append(node)
            continue
        nodes += [new.node(n, writer) for n in writer.nodes if n is not write]
        operands = tuple(new.ids[o] for o in write.operands)
        nodes.append(replace(write, operands=operands, results=read.results))
    parts = {**block.parts, **writer.parts}
    order = dict.fromkeys(n.part for n in nodes if n.part is not None)
    return replace(
        block, nodes=tuple(nodes), values=new.values, parts={name: parts[name] for name in order}
    )


class _Copy:
    """Nodes of another block in ``block``, under ids that are free there."""

    def __init__(self, block: Block) -> None:
        self.values = dict(block.values)
        self.ids: dict[str, str] = {}

    def node(self, node: Node, origin: Block) -> Node:
        for result in node.results:
            fresh, n = result, 0
            while fresh in self.values:
                n += 1
                fresh = f"{result}.{n}"
            self.ids[result] = fresh
            self.values[fresh] = replace(origin.values[result], id=fresh)
        operands = tuple(self.ids.get(o, o) for o in node.operands)
        return replace(node, operands=operands, results=tuple(self.ids[r] for r in node.results))


def _with(graph: Graph, changed: Iterable[Block], name: str, type_: TensorType) -> Graph:
    """``graph`` with an input more, which the blocks ``changed`` read, and so those above them."""
    blocks, reading = dict(graph.blocks), {b.name: b for b in changed}
    for key, block in graph.blocks.items():
        below = set(block.below)
        if key in reading or below & reading.keys():
            block = reading.get(key, block)
            blocks[key] = reading[key] = replace(block, context=(*block.context, name))
    return replace(graph, blocks=blocks, inputs=(*graph.inputs, Value(name, type_, named=True)))


def _skipped(decoder: Graph, text: Graph, paths: Iterable[str]) -> Iterator[str]:
    """The blocks of ``decoder`` around ``paths`` in whose place the model of text hands on what it gets."""
    plain = {i.path: i.block for i in text.instances}
    ours = {i.path: i.block.name for i in decoder.instances}
    for path in paths:
        words = path.split(".")
        above = [".".join(words[:n]) for n in range(1, len(words) + 1)]
        idle = [p for p in above if p in plain and not plain[p].nodes]
        if not idle:
            raise _refused(decoder.root_block.span, f"without an image `{path}` is not skipped")
        yield ours[idle[0]]


def _reachable(blocks: Mapping[str, Block], root: str) -> dict[str, Block]:
    names, waiting = set[str](), [root]
    while waiting:
        name = waiting.pop()
        names.add(name)
        waiting += blocks[name].below
    return {name: block for name, block in blocks.items() if name in names}
