"""View-model of the model class: the root block plus what every model has (loading, caching, generating)."""

from __future__ import annotations

from dataclasses import dataclass

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.body import Body
from llamagen.emit.torch.classes import init_lines
from llamagen.emit.torch.names import part_name
from llamagen.emit.torch.plan import Plan
from llamagen.emit.torch.staged import enter, guard, leave
from llamagen.emit.torch.stages import Cut
from llamagen.ir.flatten import flatten
from llamagen.ir.graph import Graph, OpPart, StackPart, instances, join
from llamagen.ops.code import WIDTH, Indexed, Text, flat, signature
from llamagen.ops.op import State

_LAST = ":, -logits_to_keep:"
TEXT_INPUTS = ("input_ids", "position_ids", "attention_mask")


@dataclass(frozen=True, slots=True)
class TieView:
    """``self.lm_head.weight = self.model.embed_tokens.weight``, where a stage has both."""

    path: str
    source: str

    @property
    def owner(self) -> str:
        return f"self.{self.path.rpartition('.')[0]}"

    @property
    def source_owner(self) -> str:
        return f"self.{self.source.rpartition('.')[0]}"


@dataclass(frozen=True, slots=True)
class RootView:
    name: str
    staged: bool
    num_layers: str
    init: tuple[str, ...]
    forward: tuple[str, ...]
    result: str
    ties: tuple[TieView, ...]
    choice: bool
    caches: bool
    bounded: bool
    """Whether some slots of the cache keep the last tokens only."""
    places: bool
    """Whether the prologue needs positions at all."""
    reads_mask: bool
    inputs: tuple[str, ...]
    """Variables of the graph's inputs; the first of a text model is what stands for its tokens."""
    reads_cross: bool
    """Whether it attends to keys and values of another graph."""
    writes_cross: bool
    """Whether it makes keys and values for another graph."""
    piece: bool
    """Whether it has neither tokens in order nor a cache: an encoder, what joins embeddings."""
    doc: tuple[str, ...]
    """Docstring of a model without stages: what a piece takes and returns."""

    @property
    def source(self) -> str:
        return self.inputs[0]

    @property
    def reads_ids(self) -> bool:
        return self.source == "input_ids"

    @property
    def generates(self) -> bool:
        return self.caches and self.reads_ids and not self.more

    @property
    def more(self) -> tuple[str, ...]:
        """What a text model takes after its tokens, without defaults."""
        if self.piece:
            return ()
        cross = ("cross_key_values",) if self.reads_cross else ()
        return (*(i for i in self.inputs[1:] if i not in TEXT_INPUTS), *cross)

    @property
    def more_parameters(self) -> tuple[str, ...]:
        types = {"cross_key_values": "Sequence[KeyValue]"}
        return tuple(f"{name}: {types.get(name, 'Tensor')}" for name in self.more)

    @property
    def call(self) -> str:
        """Arguments of a call, for the head of the file."""
        return ", ".join((self.source, *self.more))

    @property
    def signature(self) -> list[str]:
        """Of a piece's forward."""
        made = ["Tensor"] if self.result else []
        made += ["list[KeyValue]"] if self.writes_cross else []
        type_ = made[0] if len(made) == 1 else f"tuple[{', '.join(made)}]"
        return signature("forward", ["self", *(f"{i}: Tensor" for i in self.inputs)], type_, 1)

    @property
    def made(self) -> str:
        """Names of what a piece returns."""
        cross = ("cross_key_values",) if self.writes_cross else ()
        return ", ".join((*((self.result,) if self.result else ()), *cross))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Of the constructor, with defaults."""
        attention = ('attention: str = "sdpa"',) if self.choice else ()
        if not self.staged:
            return attention
        layers = f"layers: Sequence[int] = range({self.num_layers})"
        return (*attention, layers, "embed: bool = True", "head: bool = True")

    @property
    def inline_parameters(self) -> str:
        return "".join(f", {p}" for p in self.parameters)

    @property
    def arguments(self) -> str:
        return ", ".join(p.partition(":")[0] for p in self.parameters)

    @property
    def tied(self) -> str:
        items = ", ".join(f'"{t.path}": "{t.source}"' for t in self.ties)
        return f"{{{items}}}"

    @property
    def returns(self) -> str:
        if not self.caches:
            return f"return {self.result}"
        present = "Past(P + S, cache.present)" if self.bounded else "cache.present"
        return f"return {self.result}, {present}"


def root_view(plan: Plan) -> RootView:
    """Raises LlamagenError (LG741) for a model with no input or two results, or ties what a path cannot name."""
    graph, block = plan.graph, plan.graph.root_block
    if not block.inputs or len(block.outputs) != 1:
        message = "a PyTorch model takes a tensor first and returns one"
        raise LlamagenError.of("LG741", message, block.span)
    places = plan.prelude.placed or "position_ids" in plan.arguments[block.name]
    piece = graph.output_names != ("logits",) and not places and not plan.caches
    body = Body(block, plan.around)
    body.bind_graph_inputs()
    cut = plan.cuts.get(block.name)
    writes = plan.has(State.WRITTEN)
    if piece:
        lines, result = _piece(body, graph.output_names, writes)
    else:
        lines, result = _staged(body, cut) if cut is not None else _whole(body)
    return RootView(
        name=plan.names[block.name],
        staged=cut is not None,
        num_layers=_num_layers(plan),
        init=tuple(init_lines(plan, block, "self.attend")),
        forward=tuple(lines),
        result=result,
        ties=_ties(graph),
        choice=plan.choice,
        caches=plan.caches,
        bounded=plan.prelude.bounded,
        places=places,
        reads_mask="attention_mask" in plan.arguments[block.name],
        inputs=tuple(dict.fromkeys((*body.input_names, *plan.prelude.declared))),
        reads_cross=plan.has(State.READ),
        writes_cross=writes,
        piece=piece,
        doc=_doc(graph, piece),
    )


def _doc(graph: Graph, piece: bool) -> tuple[str, ...]:
    if not piece:
        return ('    """The whole model."""',)
    inputs, outputs = _shapes(graph)
    line = f'    """One graph of the model: {inputs} -> {outputs}."""'
    if len(line) <= WIDTH:
        return (line,)
    return (
        '    """One graph of the model:',
        "",
        f"    {inputs}",
        f"    -> {outputs}",
        '    """',
    )


def _shapes(graph: Graph) -> tuple[str, str]:
    """``pixel_values [I, 3, 336, 336]`` and ``image_features [I, 144, 5120]``"""
    given = [(v.id, v.type) for v in graph.inputs]
    sides = [
        [f"{n} [{', '.join(map(str, t.shape))}]" for n, t in s] for s in (given, graph.outputs)
    ]
    slots = flatten(graph).cross_writes
    if slots:
        sides[1].append(f"(key, value) for each of {len(slots)} layers")
    return ", ".join(sides[0]), ", ".join(sides[1])


def _piece(body: Body, outputs: tuple[str, ...], writes: bool) -> tuple[list[str], str]:
    body.run(body.block.nodes)
    result = body.results()
    if not outputs:
        return [*body.lines, *body.put("", result), "        return cross"], ""
    if writes:
        return [*body.lines, *body.put("x = ", result), "        return x, cross"], outputs[0]
    return [*body.lines, *body.put("return ", result)], outputs[0]


def _whole(body: Body) -> tuple[list[str], str]:
    body.run(body.block.nodes)
    lines = [*body.lines, *body.put("logits = ", body.results())]
    return [*lines, f"        logits = logits[{_LAST}]"], "logits"


def _staged(body: Body, cut: Cut) -> tuple[list[str], str]:
    carried = enter(body, cut)
    if not cut.after:
        return [*body.lines, f"        {carried} = {carried}[{_LAST}]"], carried
    there, value = f"self.{guard(cut.after)}", cut.call.results[0]
    early, once = _last_tokens_first(body, cut), body.left[value] == 1
    if early and once:
        body.codes[value] = Indexed(Text(carried), _LAST)
    lines, code = leave(body.fork(), cut)
    short = f"        logits = {flat(code)} if {there} else {carried}"
    if early and once and not lines and len(short) <= WIDTH:
        return [*body.lines, short], "logits"
    body.depth = 3
    lines, code = leave(body, cut)
    pad, sliced = "            ", f"[{_LAST}]"
    first = [f"{pad}{carried} = {carried}{sliced}"] if early and not once else []
    last = [] if early else [f"{pad}logits = logits{sliced}"]
    here = [f"        logits = {carried}", f"        if {there}:"]
    return [*body.lines, *here, *first, *lines, *body.put("logits = ", code), *last], "logits"


def _last_tokens_first(body: Body, cut: Cut) -> bool:
    """Whether the head works token by token, so that dropped tokens need not be computed."""
    return all(
        not any(o.startswith("@") for o in n.operands)
        and n.row.on_each_token(
            [body.type(o) for o in n.operands], [body.type(r) for r in n.results], n.attrs
        )
        for n in cut.after
    )


def _num_layers(plan: Plan) -> str:
    for name in plan.cuts:
        for part in plan.graph.blocks[name].parts.values():
            if isinstance(part, StackPart):
                return flat(plan.constants.code(len(part.blocks), part.count_source))
    return ""


def _ties(graph: Graph) -> tuple[TieView, ...]:
    found: list[TieView] = []
    for here in instances(graph):
        for part in here.block.parts.values():
            if isinstance(part, OpPart) and part.tied_to is not None:
                tie = TieView(join(join(here.path, part.name), "weight"), part.tied_to)
                for component in (*tie.path.split("."), *tie.source.split(".")):
                    if component.isdecimal():
                        message = f"`{tie.path}` is tied to `{tie.source}`: layers of a stack cannot be tied"
                        raise LlamagenError.of("LG741", message, part.span)
                    part_name(component, part.span)
                found.append(tie)
    return tuple(found)
