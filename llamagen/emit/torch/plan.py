"""What is decided for one file before its blocks are printed: names, context arguments, variants of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.names import Constants, class_names, identifier
from llamagen.emit.torch.place import library
from llamagen.emit.torch.site import PreludeSite
from llamagen.ir import shard
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart
from llamagen.ir.joined import Joined
from llamagen.ops.activations import ACTIVATIONS
from llamagen.ops.code import Fixed, Shared, Stay, Template, Text, flat
from llamagen.ops.dims import S
from llamagen.ops.op import Attrs, Role, State, a_float, a_str, keep_of, no_flops
from llamagen.ops.states import gates_of

CACHED = frozenset({State.SLOT, State.FIXED})
"""What a `KVCache` holds."""
_ARGUMENTS = ("rope", "grid", "mask", "temperature", "tiles")
_EXTRAS: Mapping[str, Callable[[Node], bool]] = {
    "scale": lambda n: n.attrs["scale"] is not None,
    "cap": lambda n: n.attrs["softcap"] is not None,
    "sinks": lambda n: len(n.operands) > 4,
    "slopes": lambda n: n.attrs.get("alibi") is True,
}


@dataclass(slots=True)
class Plan:
    """``placed`` grows while classes are printed."""

    graph: Graph
    constants: Constants
    names: dict[str, str]
    """Block -> class."""
    whole: Joined | None = None
    """Of a model that reads images too: what ``graph`` was joined of."""
    beside: dict[str, str] = field(default_factory=dict)
    """Variable that each call with images has for its tokens, or that is made of one -> that one."""
    variables: dict[str, str] = field(default_factory=dict)
    """Graph-level value -> Python variable; the two tables of a rope are one."""
    shared: list[Shared] = field(default_factory=list)
    declared: tuple[str, ...] = ()
    """Inputs that the spec declares for this graph."""
    partial: bool = False
    """Whether a rope rotates a part of some head only."""
    arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Block -> what its forward takes besides its inputs."""
    attending: set[str] = field(default_factory=set)
    """Blocks whose constructor takes an attention."""
    fixed: dict[str, dict[str, Fixed]] = field(default_factory=dict)
    """What the model says of the parameters of library definitions."""
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    """... and of their docstrings."""
    placed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Definitions of the library that a file may have several of: their texts by name."""
    experts: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Activation, layout and scale -> class."""
    attentions: list[tuple[Block, Node]] = field(default_factory=list)
    head: str = ""
    """The block whose last nodes are computed for the kept tokens only; empty if there is none."""
    pieces: frozenset[tuple[str, str]] = frozenset()
    """Block and first result of ops that cut what a rank has a part of into pieces."""
    extras: dict[str, Fixed] = field(default_factory=dict)
    """What attention functions take besides q, k, v and the mask."""
    config: str = ""
    """In a file for transformers, whose attention and cache its layers use: the class of its configuration."""

    def place(
        self, name: str, to: str, fixed: Mapping[str, Fixed], words: Mapping[str, str] | None = None
    ) -> None:
        """A definition that a file may have several of."""
        self.placed.setdefault(name, {})[to] = library().place(name, fixed, to=to, words=words)

    def has(self, state: State) -> bool:
        return any(n.row.state is state for b in self.graph.blocks.values() for n in b.nodes)

    def types(self, block: str) -> dict[str, str]:
        """Context variable -> its type in a block; what comes of images may be absent."""
        cross = "Iterator[KeyValue]" if self.has(State.READ) else "list[KeyValue]"
        cache = "Cache | None" if self.config else "KVCache | None"
        types = {"cache": cache, "cross": cross, "logits_to_keep": "int"}
        types |= dict.fromkeys(("position_ids", "attention_mask", *self.declared), "Tensor")
        types |= {v: s.type for s in self.shared for v in s.variables}
        if self.whole is not None:
            absent = {self.handed, *(self.beside if block not in self.behind else ())}
            types |= {variable: f"{types[variable]} | None" for variable in absent}
        return types

    @property
    def handed(self) -> str:
        """The variable of what comes of the images."""
        return self.variables[self.whole.handed] if self.whole is not None else ""

    @property
    def behind(self) -> set[str]:
        """Blocks that run for images only."""
        skipped = self.whole.skipped if self.whole is not None else frozenset()
        names = {n for name in skipped for n in self.graph.blocks[name].below}
        others = [b for b in self.graph.blocks.values() if b.name not in skipped | names]
        return names.difference(*(b.below for b in others))

    @property
    def bounded(self) -> bool:
        """Whether some slots of the cache keep the last tokens only."""
        return any(keep_of(n.attrs) is not None for n in self.graph.prelude)

    @property
    def special(self) -> bool:
        """Whether some attention does what torch's fused kernel cannot."""
        return any(name != "scale" for name in self.extras)

    @property
    def choice(self) -> bool:
        """Whether the file has two implementations of attention under a mask."""
        return any(len(n.operands) > 3 for _, n in self.attentions) and not self.special

    @property
    def mask_type(self) -> str:
        """None means that a kernel knows the mask, or with one implementation that nothing is hidden."""
        unmasked = any(len(n.operands) < 4 for _, n in self.attentions)
        none = any(s.causal for s in self.shared) if self.choice else unmasked
        return "Tensor | None" if none else "Tensor"

    @property
    def directly_attending(self) -> set[str]:
        own = self.choice or self.config
        return {b.name for b, n in self.attentions if len(n.operands) > 3} if own else set()

    @property
    def layers(self) -> set[str]:
        """Blocks whose activations transformers may compute again in place of keeping them."""
        parts = (p for b in self.graph.blocks.values() for p in b.parts.values())
        stacked = {n for p in parts if isinstance(p, StackPart) for n in p.blocks}
        return stacked if self.config else set()

    @property
    def attention_arguments(self) -> dict[str, str]:
        """What a block with attention is made with, by name and type."""
        return {"config": self.config, "layer_idx": "int"} if self.config else {"attend": "Attend"}

    def taken_by(self, block: str) -> list[Text]:
        """What a call of ``block`` has after its operands."""
        words = [Text(a) for a in self.arguments.get(block, ())]
        return [*words, Text("**kwargs")] if self.config and block in self.attending else words

    def norm_class(self, attrs: Attrs) -> str:
        late, offset = a_str(attrs, "cast") == "after_weight", a_float(attrs, "offset")
        parts = [p for b in self.graph.blocks.values() for p in b.parts.values()]
        kinds = {
            (p.attrs["cast"], p.attrs["offset"])
            for p in parts
            if isinstance(p, OpPart) and "cast" in p.attrs
        }
        words = ("Shifted" if offset else "") + ("RoundedLate" if late else "")
        name = f"{words if len(kinds) > 1 else ''}RMSNorm"
        doc = {"* weight": f"* ({offset!r} + weight)"} if offset else {}
        doc |= {"normalised in": "in"} if late else {}
        self.place("RMSNorm", name, {"late": late, "offset": offset}, doc)
        return name

    def experts_class(self, attrs: Attrs) -> str:
        key = act, layout, scale = tuple(a_str(attrs, n) for n in ("act", "layout", "scale"))
        if key not in self.experts:
            self.experts[key] = f"Experts{len(self.experts) + 1 if self.experts else ''}"
            gate = flat(ACTIVATIONS[act].torch(Text("{}")))
            fixed: dict[str, Fixed] = {"act": Template(gate)}
            fixed |= {"in_out": layout == "in_out", "scale_input": scale == "input"}
            self.place("Experts", self.experts[key], fixed)
        return self.experts[key]

    def alibi_heads(self, block: Block) -> int | None:
        """Of how many heads a block has the slopes, if it has."""
        nodes = [n for b, n in self.attentions if b is block and n.attrs.get("alibi") is True]
        counts = {block.values[n.operands[0]].type.shape[1].value for n in nodes}
        if len(counts) > 1:
            message = f"block `{block.name}` has alibi slopes of {sorted(counts)} heads"
            raise LlamagenError.of("LG741", message, block.span)
        return counts.pop() if counts else None

    def kept(self, keep: int | None) -> str:
        """How many tokens a bounded slot keeps: one less than the window or the chunk that bounds it, or nothing."""
        if keep is None:
            return ""
        return self.constants.one_below(keep, "sliding_window", "attention_chunk_size")


def make_plan(model: Graph | Joined, config: str = "") -> Plan:
    """Raises LlamagenError (LG740, LG741) for names and ops that PyTorch cannot have."""
    whole = model if isinstance(model, Joined) else None
    graph = model.graph if isinstance(model, Joined) else model
    plan = Plan(graph, Constants(graph.constants), class_names(graph), whole, config=config)
    plan.variables = {"positions": "position_ids", "attention_mask": "attention_mask"}
    plan.declared = tuple(v.id for v in graph.inputs if v.id not in ("input_ids", *plan.variables))
    plan.variables |= {name: identifier(name, "input") for name in plan.declared}
    if whole is not None:
        of_images = {whole.handed, *(v.id for v in whole.encoder.inputs)}
        own = [plan.variables[n] for n in plan.declared if n not in of_images]
        plan.beside = dict(zip(own, own, strict=True))
    plan.attentions = [
        (b, n) for b in graph.blocks.values() for n in b.nodes if n.row.role is Role.ATTENTION
    ]
    for name, has in _EXTRAS.items():
        users = [has(n) for _, n in plan.attentions]
        if any(users):
            plan.extras[name] = Stay.PRESENT if all(users) or name == "scale" else Stay.KEPT
    for node in graph.prelude:
        if node.row.torch_prelude is None:
            message = f"`{node.op}` cannot be computed once a forward pass in PyTorch"
            raise LlamagenError.of("LG741", message, node.span)
        one = node.row.torch_prelude(PreludeSite(plan, node))
        plan.shared.append(one)
        names = one.variables if len(one.variables) > 1 else one.variables * len(node.results)
        plan.variables.update(zip(node.results, names, strict=True))
        for operand in node.operands:
            if plan.variables[operand[1:]] in plan.beside:
                plan.beside |= dict.fromkeys(names, plan.variables[operand[1:]])
    _variants(plan)
    way = _way_to_head(graph, graph.root_block) if graph.output_names == ("logits",) else ()
    plan.head = way[-1] if way else ""
    plan.arguments = _arguments(plan)
    for name in way[1:]:
        plan.arguments[name] += ("logits_to_keep",)
    plan.attending = _attending(plan)
    plan.pieces = shard.plan(graph).split
    return plan


def _variants(plan: Plan) -> None:
    """Which variants of the library's functions this model has."""
    bounded = plan.bounded
    keep = Stay.PRESENT if bounded else None
    if plan.has(State.FIXED):
        keys = "Keys and values of every attention"
        states = f"{keys} and other states" if plan.has(State.SLOT) else "States"
        plan.words["KVCache"] = {keys: states}
    plan.fixed = {
        "KVCache": {
            "keep": Stay.KEPT if bounded else None,
            "CROSS": plan.whole is not None and plan.has(State.WRITTEN),
            "KEYS": plan.has(State.SLOT),
            "STATES": plan.has(State.FIXED),
        },
        "causal_mask": {"bounded": bounded},
        "sliding_causal_mask": {"keep": keep},
        "chunked_causal_mask": {"keep": keep},
    }
    recurrences = [
        n for b in plan.graph.blocks.values() for n in b.nodes if n.row.role is Role.RECURRENCE
    ]
    gates = ("decay", "beta")
    users = {gate: [gate in gates_of(n.attrs) for n in recurrences] for gate in gates}
    plan.fixed["linear_attention"] = {
        gate: Stay.KEPT if any(has) and not all(has) else Stay.PRESENT if any(has) else None
        for gate, has in users.items()
    }
    parts = [p for b in plan.graph.blocks.values() for p in b.parts.values()]
    biased = any(
        isinstance(p, OpPart) and p.row.role is Role.LINEAR and p.attrs["bias"] for p in parts
    )
    plan.fixed["init_weights"] = {"biased": biased}
    for block in plan.graph.blocks.values():
        for node in block.nodes:
            if node.row.role is Role.ROTATION:
                x, table = (plan.graph.type_of(block, o).shape[-1] for o in node.operands[:2])
                half = a_str(node.attrs, "layout") == "half"
                function = "rotate" if half else "rotate_interleaved"
                if table * 2 != x:
                    plan.fixed[function] = {"partial": True}
                    plan.words[function] = {"H/2": "R/2"} if half else {}

    def grouped(attentions: Iterable[tuple[Block, Node]]) -> Fixed:
        """Whether queries share keys; a condition if some do. torch has fewer kernels for those that do."""
        heads = [[b.values[o].type.shape[1] for o in n.operands[:2]] for b, n in attentions]
        several = {q != k for q, k in heads}
        return Text("q_BNSH.shape[1] != k_BKTH.shape[1]") if len(several) > 1 else several == {True}

    masked = [(b, n) for b, n in plan.attentions if len(n.operands) > 3]
    plain = [(b, n) for b, n in plan.attentions if len(n.operands) < 4]
    mask = Stay.KEPT if plan.mask_type == "Tensor | None" else Stay.PRESENT
    scale = {"scale": plan.extras["scale"]} if "scale" in plan.extras else {}
    causal = any(s.causal for s in plan.shared)
    plan.fixed["sdpa"] = {"mask": mask, "grouped": grouped(masked), "causal": causal, **scale}
    of_eager = grouped(plan.attentions if plan.special else masked) is not False
    plan.fixed["eager"] = {"mask": mask, "grouped": of_eager, **plan.extras}
    if plan.config:
        plan.fixed["eager"] |= {"mask": Stay.PRESENT, "scale": Stay.PRESENT}
    plan.fixed["full_attention"] = {"grouped": grouped(plain), **scale}
    if scale:
        plan.words["sdpa"] = plan.words["eager"] = {"/ sqrt(H)": "scale"}


def _arguments(plan: Plan) -> dict[str, tuple[str, ...]]:
    """What each forward takes besides its inputs. Layers of one stack take the same."""
    shared = sorted(plan.shared, key=lambda s: _ARGUMENTS.index(s.kind))
    order = ["position_ids", *(v for s in shared for v in s.variables)]
    order += [*plan.declared, "attention_mask", "cache", "cross"]
    blocks = plan.graph.blocks.values()
    needs: dict[str, set[str]] = {}
    for block in blocks:
        states = {n.row.state for n in block.nodes}
        own = {plan.variables[c] for c in block.context}
        crossing = bool(states & {State.READ, State.WRITTEN})
        own |= {"cache"} if states & CACHED or (crossing and plan.whole) else set()
        own |= {"cross"} if crossing and not plan.whole else set()
        needs[block.name] = own.union(*(needs[name] for name in block.below))
    for block in blocks:
        for part in block.parts.values():
            if isinstance(part, StackPart):
                union = set[str]().union(*(needs[name] for name in part.blocks))
                for name in part.blocks:
                    needs[name] |= union
    return {name: tuple(v for v in order if v in own) for name, own in needs.items()}


def _attending(plan: Plan) -> set[str]:
    """Blocks whose constructor takes an attention: those that call it, those above, and all of a stack with one."""
    blocks = plan.graph.blocks.values()
    names = plan.directly_attending
    while True:
        grown = names | {b.name for b in blocks if names & set(b.below)}
        for part in (p for b in blocks for p in b.parts.values()):
            if isinstance(part, StackPart) and set(part.blocks) & grown:
                grown |= set(part.blocks)
        if grown == names:
            return names
        names = grown


def last_nodes(graph: Graph, block: Block) -> tuple[Node, ...]:
    """The nodes at the end of a block that work on each token alone: nothing before them reads a result of theirs."""
    alone: list[Node] = []
    read_before: set[str] = set()
    for node in reversed(block.nodes):
        if _on_each_token(graph, block, node) and not read_before & set(node.results):
            alone.append(node)
        else:
            read_before.update(node.operands)
    return tuple(reversed(alone))


def _on_each_token(graph: Graph, block: Block, node: Node) -> bool:
    if any(o.startswith("@") for o in node.operands):
        return False
    if node.row.control:
        part = block.parts[node.part or ""]
        if not isinstance(part, BlockPart):
            return False
        called = graph.blocks[part.block]
        return all(_on_each_token(graph, called, n) for n in called.nodes)
    operands, results = (
        [block.values[v].type for v in ids] for ids in (node.operands, node.results)
    )
    return node.row.on_each_token(operands, results, node.attrs)


def taken_from(block: Block, last: Sequence[Node]) -> tuple[str, ...]:
    """Values of new tokens that the nodes ``last``, or the result, take from those before."""
    own = {r for n in last for r in n.results}
    read = dict.fromkeys((*(o for n in last for o in n.operands), *block.outputs))
    return tuple(v for v in read if v not in own and S in block.values[v].type.shape)


def _way_to_head(graph: Graph, block: Block) -> tuple[str, ...]:
    """The blocks from ``block`` to the one where the last products begin; empty if there are none."""
    last = last_nodes(graph, block)
    taken = taken_from(block, last)
    before = [n for n in block.nodes if n not in last]
    if len(taken) == 1 and not any(taken[0] in n.operands for n in before):
        for node in before:
            part = block.parts.get(node.part or "")
            if taken == node.results and isinstance(part, BlockPart) and _called_once(graph, part):
                below = _way_to_head(graph, graph.blocks[part.block])
                if below:
                    return (block.name, *below)
    products = any(n.row.control or n.row.flops is not no_flops for n in last)
    return (block.name,) if products else ()


def _called_once(graph: Graph, part: BlockPart) -> bool:
    parts = [p for b in graph.blocks.values() for n in b.nodes if (p := b.parts.get(n.part or ""))]
    return sum(isinstance(p, BlockPart) and p.block == part.block for p in parts) == 1
