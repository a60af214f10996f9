"""What engines that others wrote must know of a model, and which models they cannot run: spec/rules/engines.yaml.

They cut a decoder into tokens -> embedding -> layers with one cache each -> norm -> head, and read some facts of it
from keys of config.json alone, whatever its code says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llamagen.analysis.numbers import expert_choice
from llamagen.analysis.tables import chosen, fill, holds, load_table, value_of
from llamagen.diagnostics import LlamagenError
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, Place, StackPart, join, places
from llamagen.ir.shard import Style, plan
from llamagen.ops.op import Attrs, Role, State, a_float, a_int, a_str
from llamagen.ops.rope import ROPE_KINDS
from llamagen.spec.expr import Static
from llamagen.spec.schema import Closed, Spec

TEXT = frozenset({"input_ids", "positions", "attention_mask"})
"""Inputs that every decoder of text may have."""


class Key(Closed):
    """A key of config.json, the value that it has, and who reads it for what; left out where ``when`` is false."""

    key: str
    value: str
    when: str = "true"
    read_by: tuple[str, ...]
    use: str


class Refusal(Closed):
    """A model that an engine cannot run as the code of a folder, and the class of its own that runs such a one."""

    when: str
    why: str
    own: str | None = None


class Engine(Closed):
    title: str
    version: str
    refuses: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()
    """What it cannot on some machines."""


class Engines(Closed):
    version: int
    keys: tuple[Key, ...]
    engines: dict[str, Engine]


def _table() -> Engines:
    return load_table("rules/engines.yaml", Engines)


@dataclass(frozen=True, slots=True)
class Decoder:
    """The parts of a graph that engines want to find."""

    base: BlockPart
    """Of the root: the model without its head."""
    stack: StackPart
    """Of the base: the layers."""
    embedding: str
    """Of the base: what reads the token ids."""
    before: tuple[Node, ...]
    """Nodes of the base before the layers, and after them."""
    after: tuple[Node, ...]
    head: OpPart
    attentions: tuple[Place, ...]
    """One a layer."""


def decoder_of(graph: Graph) -> Decoder | tuple[str, ...]:
    """The parts, or why there are none: clauses that follow "the model"."""
    root, reasons = graph.root_block, list[str]()
    beside = sorted({v.id for v in graph.inputs} - TEXT)
    if beside or graph.output_names != ("logits",):
        reasons.append(f"takes or gives more than text: {', '.join(beside or graph.output_names)}")
    calls = [(n, p) for n in root.nodes if isinstance(p := root.part_of(n), BlockPart)]
    heads = [p for n in root.nodes if isinstance(p := root.part_of(n), OpPart)]
    if len(calls) != 1 or len(heads) != 1 or heads[0].row.role is not Role.LINEAR:
        reasons.append(
            f"is not one block of layers and a linear head behind it alone, in `{root.name}`"
        )
        return tuple(reasons)
    ((call, base),) = calls
    rest = [n for n in root.nodes if n is not call]
    if any(o not in _made(rest, call.results) for n in rest for o in n.operands):
        reasons.append("reads more behind its layers than their result")
    block = graph.blocks[base.block]
    stacks = [(n, p) for n in block.nodes if isinstance(p := block.part_of(n), StackPart)]
    if len(stacks) != 1:
        reasons.append(f"has {len(stacks)} stacks of layers in `{block.name}`, not one")
        return tuple(reasons)
    ((run, stack),) = stacks
    at = block.nodes.index(run)
    before, after = block.nodes[:at], block.nodes[at + 1 :]
    if len(run.operands) != 1 or len(run.results) != 1 or len(block.inputs) != 1:
        reasons.append("hands more than one value from layer to layer")
    elif any(o not in _made(after, run.results) for n in after for o in n.operands):
        reasons.append(
            "reads behind its layers a parameter of their block, or what was computed before them"
        )
    ids = {v.id for v in block.inputs} | {"@input_ids"}
    readers = [n for n in block.nodes if ids & set(n.operands)]
    if len(readers) != 1 or readers[0].row.role is not Role.EMBEDDING:
        reasons.append("reads the token ids elsewhere than in one embedding")
        return tuple(reasons)
    reasons += _of_layers(graph, join(base.name, stack.name), len(stack.blocks))
    if reasons:
        return tuple(reasons)
    attentions = tuple(places(graph, Role.ATTENTION))
    embedding = readers[0].part or ""
    return Decoder(base, stack, embedding, before, after, heads[0], attentions)


def _made(nodes: Sequence[Node], given: Sequence[str]) -> set[str]:
    return {*given, *(r for n in nodes for r in n.results)}


def _of_layers(graph: Graph, path: str, count: int) -> Iterator[str]:
    """Why they are not one attention with one cache each."""
    if (other := next(places(graph, State.FIXED), None)) is not None:
        yield f"keeps a state of `{other.node.op}`, and caches of transformers are used for keys and values only"
        return
    for what, trait in (("attention", Role.ATTENTION), ("cache", State.SLOT)):
        found = [one.path for one in places(graph, trait)]
        layers = [p.removeprefix(f"{path}.").partition(".")[0] for p in found]
        if layers != [str(i) for i in range(count)]:
            yield f"has not one {what} in each of its {count} layers"
            return
    for one in places(graph, Role.ATTENTION):
        if graph.mask_of(one.node) is None or not any(
            n.row.state is State.SLOT for n in one.block.nodes
        ):
            yield "has an attention without a causal mask and a cache in the same block"
            return


def require_decoder(graph: Graph) -> Decoder:
    """Raises LG743 with every reason why there is none."""
    decoder = decoder_of(graph)
    if isinstance(decoder, Decoder):
        return decoder
    raise LlamagenError.of(
        "LG743",
        f"`{graph.spec_id}` cannot be code for transformers: the model {'; it '.join(decoder)}",
        graph.root_block.span,
        "`llamagen generate --target torch` has no such limit; `llamagen explain LG743` says what a decoder is here",
    )


def scope_of(spec: Spec, graph: Graph, decoder: Decoder) -> dict[str, Static]:
    """Names of the expressions in engines.yaml. What differs from layer to layer is none, and `uneven` names it."""
    attentions = decoder.attentions
    attended = [one.node.attrs for one in attentions]
    shapes = [graph.operand_types(one.block, one.node) for one in attentions]
    limits = [graph.limits(one.node) for one in attentions]
    windows, chunks = ({w for w in one if w is not None} for one in zip(*limits, strict=True))
    each: dict[str, list[Static]] = {
        "heads": [q.shape[1].value for q, *_ in shapes],
        "kv_heads": [k.shape[1].value for _, k, *_ in shapes],
        "head_dim": [q.shape[3].value for q, *_ in shapes],
        "value_dim": [v.shape[3].value for _, _, v, *_ in shapes],
        "attention_cap": [_number(a, "softcap") for a in attended],
    }
    parts = [p for b in graph.blocks.values() for p in b.parts.values() if isinstance(p, OpPart)]
    routed = [
        (one.block, part)
        for one in places(graph, Role.EXPERTS)
        if isinstance(part := one.block.part_of(one.node), OpPart)
    ]
    each |= {
        "experts": [a_int(part.attrs, "num_experts") for _, part in routed],
        "experts_per_token": [expert_choice(graph, *one)[1] for one in routed],
        "expert_width": [a_int(part.attrs, "intermediate") for _, part in routed],
        "expert_act": [a_str(part.attrs, "act") for _, part in routed],
        "expert_scale": [a_str(part.attrs, "scale") for _, part in routed],
        "expert_layout": [a_str(part.attrs, "layout") for _, part in routed],
    }
    uneven = [name for name, values in each.items() if len(set(values)) > 1]
    kinds = ["chunked" if c else "sliding" if w else "full" for w, c in limits]
    ropes = [n.attrs for n in graph.prelude if "scaling" in n.attrs]
    base = graph.blocks[decoder.base.block]
    scale, cap, others = _of_logits(graph.root_block, decoder)
    settings = spec.hyperparameters
    return {
        **{name: values[0] if values else None for name, values in each.items()},
        **dict.fromkeys(uneven),
        "uneven": tuple(uneven),
        "vocab_size": a_int(decoder.head.attrs, "out_features"),
        "hidden_size": graph.type_of(base, decoder.before[-1].results[0]).shape[-1].value,
        "layers": len(decoder.stack.blocks),
        "intermediate_size": settings.intermediate_size,
        "max_positions": settings.context,
        "window": min(windows) if len(windows) == 1 else None,
        "windows": len(windows),
        "chunk": min(chunks) if len(chunks) == 1 else None,
        "chunks": len(chunks),
        "layer_types": tuple(f"{kind}_attention" for kind in kinds),
        "alibi": any(a.get("alibi") is True for a in attended),
        "sinks": any(len(one.node.operands) > 4 for one in attentions),
        "logit_scale": scale,
        "logit_cap": cap,
        "logits_other": others,
        "head": decoder.head.name,
        "tied": bool(graph.ties),
        "odd_offsets": tuple(
            sorted({a_float(p.attrs, "offset") for p in parts if "offset" in p.attrs} - {0.0, 1.0})
        ),
        "rope_of_call": any(ROPE_KINDS[a_str(a, "scaling")].of_call is not None for a in ropes),
    }


def _number(attrs: Attrs, name: str) -> float | None:
    return None if attrs[name] is None else a_float(attrs, name)


def _of_logits(root: Block, decoder: Decoder) -> tuple[float, float | None, tuple[str, ...]]:
    """What the root does with the logits: a bound, then a factor; and the ops that are neither, or in another order."""
    scale, cap, others = 1.0, None, list[str]()
    at = next(i for i, n in enumerate(root.nodes) if n.part == decoder.head.name)
    for node in root.nodes[1:at]:
        others.append(node.op)
    for node in root.nodes[at + 1 :]:
        row = node.row
        if row.elementwise and row.symbol in ("*", "/") and "value" in node.attrs:
            value = a_float(node.attrs, "value")
            scale = scale * value if row.symbol == "*" else scale / value
        elif row.elementwise and "cap" in node.attrs and cap is None and scale == 1.0:
            cap = a_float(node.attrs, "cap")
        else:
            others.append(node.op)
    return scale, cap, tuple(others)


def facts_of(spec: Spec, graph: Graph, decoder: Decoder) -> dict[str, Static]:
    """Key of config.json -> value, of all that engines read from there."""
    scope = scope_of(spec, graph, decoder)
    return {one.key: value_of(one.value, scope) for one in _table().keys if holds(one.when, scope)}


def refusals(engine: str, spec: Spec, graph: Graph) -> tuple[str, ...]:
    """Why ``engine`` cannot run the code of a folder, each a sentence; empty if it can."""
    row = _engine(engine)
    decoder = decoder_of(graph)
    if not isinstance(decoder, Decoder):
        return tuple(f"the model {reason}" for reason in decoder)
    scope = scope_of(spec, graph, decoder)
    return tuple(_sentence(row, one, scope) for one in row.refuses if holds(one.when, scope))


def _sentence(engine: Engine, one: Refusal, scope: Mapping[str, Static] | None) -> str:
    why = one.why if scope is None else fill(one.why, scope)
    own = f"; it has a class of its own for such a model, {one.own}" if one.own else ""
    return f"{engine.title} cannot express {why} as custom code{own}"


def _engine(name: str) -> Engine:
    return chosen(_table().engines, name, "an engine of engines.yaml")


# how engines cut


@dataclass(frozen=True, slots=True)
class Cutting:
    """What the plans of transformers and vLLM say of a model."""

    styles: Mapping[str, str]
    """Part of the base, with * for the layer -> transformers' name of how it is cut."""
    head: str | None
    degrees: Mapping[str, tuple[int, ...]]
    """Engine -> over how many devices each layer may be cut."""
    reasons: Mapping[str, str]
    """Engine -> what keeps it from more: something of the engine, or the sizes that have to be divided."""


_STYLES: Mapping[Style, str] = {
    Style.COLUMN: "colwise",
    Style.ROW: "rowwise",
    Style.VOCABULARY: "embedding_rowwise",
    Style.SHARED: "replicated_with_grad_allreduce",
}
_FUSED = "no engine cuts what one product computes piece by piece"
_LAYER = re.compile(r"\.\d+(?=\.|$)")


def cutting_of(graph: Graph, decoder: Decoder) -> Cutting:
    """By dataflow (ir/shard.py), in the engines' words: what these lack is whole, or the model is not cut."""
    fused = {key: _FUSED for key, share in plan(graph).shares.items() if len(share.pieces) > 1}
    shared = plan(graph, fused)
    styles: dict[str, str] = {}
    seen: dict[str, set[Style | None]] = {}
    for path, _, part in graph.op_parts:
        if not path.startswith(f"{decoder.base.name}."):
            continue
        name = _LAYER.sub(".*", path.removeprefix(f"{decoder.base.name}."))
        share = shared.at.get(path)
        style = None if share is None or share.style is Style.WHOLE else share.style
        seen.setdefault(name, set()).add(style)
        if style is Style.EXPERTS:
            packed, down = "packed_colwise", "rowwise"
            if part.attrs["layout"] == "in_out":
                packed, down = "packed_rowwise", "colwise"
            styles |= {f"{name}.gate_up_proj": packed, f"{name}.down_proj": down}
            styles[name] = "moe_tp_experts"
        elif style is not None and style in _STYLES:
            styles[name] = _STYLES[style]
    attending = {one.block.name for one in decoder.attentions}
    columns = {block for (block, _), s in shared.shares.items() if s.style is Style.COLUMN}
    sinks = {
        (one.block.name, node.part)
        for one in decoder.attentions
        for node in one.block.nodes
        if len(one.node.operands) > 4 and one.node.operands[4] in node.results
    }
    cut_parameters = {k for k, s in shared.shares.items() if s.style is Style.PARAMETER}
    alibi = any(one.node.attrs.get("alibi") is True for one in decoder.attentions)
    norms = any(s.style is Style.NORM for s in shared.shares.values())
    reasons: dict[str, str] = {}
    if cut_parameters or alibi:
        reasons["transformers"] = "it has no word for a parameter, or slopes, cut by heads"
    if norms:
        reasons["transformers"] = "it has no norm over features that are on several devices"
    if cut_parameters - sinks:
        reasons["vllm"] = "it has no word for a parameter cut by heads"
    if not attending <= columns:
        reasons["vllm"] = f"it cuts attention by heads, and {_FUSED}"
    if differing := [name for name, several in seen.items() if len(several) > 1]:
        reasons |= dict.fromkeys(ENGINES, f"`{differing[0]}` is not cut alike in all layers")
    degrees = {e: (1,) if e in reasons else shared.degrees for e in ENGINES}
    sizes = ", ".join(f"{one.parts[0]} has {one.size} {one.what}" for one in shared.limits)
    reasons = {**dict.fromkeys(ENGINES, sizes or _FUSED), **reasons}
    head = shared.at.get(decoder.head.name)
    gathered = head is not None and head.style is Style.HEAD
    return Cutting(styles, "colwise_gather_output" if gathered else None, degrees, reasons)


def engine_version(name: str) -> str:
    """The version of an engine that is known."""
    return _engine(name).version


ENGINES = ("transformers", "vllm")
"""In the order of engines.yaml, which a test compares."""


def engine_text(name: str) -> str:
    """Which keys of config.json an engine reads, and what it cannot run."""
    engine = _engine(name)
    keys = [one for one in _table().keys if name in one.read_by]
    width = max(len(one.key) for one in keys)
    value = max(len(one.value) for one in keys)
    lines = [
        f"{engine.title}: what it reads from config.json, whatever the code of the folder says.",
        "",
    ]
    for one in keys:
        when = "" if one.when == "true" else f"; where {one.when}"
        lines.append(f"  {one.key.ljust(width)}  {one.value.ljust(value)}  {one.use}{when}")
    lines += ["", "It cannot express as custom code:", ""]
    for refusal in engine.refuses:
        own = f"; it has a class of its own, {refusal.own}" if refusal.own else ""
        lines.append(f"  {refusal.why}{own}")
    lines.append("  what is not one decoder of text: `llamagen explain LG743`")
    lines += ["", *(f"{note}." for note in engine.notes)]
    lines += [
        "",
        f"Names are those of spec/rules/engines.yaml, read off the graph. Version {engine.version}.",
    ]
    return "".join(f"{line}\n" for line in lines)
