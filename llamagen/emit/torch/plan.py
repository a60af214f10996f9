"""What is decided for one file before its blocks are printed: names, context arguments, variants of the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.names import Constants, class_names, identifier
from llamagen.emit.torch.place import library
from llamagen.emit.torch.site import PreludeSite
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart
from llamagen.ops.activations import ACTIVATIONS
from llamagen.ops.code import Fixed, Shared, Stay, Template, Text, flat
from llamagen.ops.dims import Dim
from llamagen.ops.op import Attrs, Role, State, TensorType, a_float, a_str, keep_of


@dataclass(frozen=True, slots=True)
class Cut:
    """The nodes of a block around its layers: ``before`` needs the embedding stage, ``after`` the head stage.

    ``call`` runs the stack, or the block that contains it. One tensor crosses from each to the next.
    """

    before: tuple[Node, ...]
    call: Node
    after: tuple[Node, ...]


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
    cuts: dict[str, Cut] = field(default_factory=dict)
    fixed: dict[str, dict[str, Fixed]] = field(default_factory=dict)
    """What the model says of the parameters of library definitions."""
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    """... and of their docstrings."""
    placed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Definitions of the library that a file may have several of: their texts by name."""
    experts: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Activation, layout and scale -> class."""
    attentions: list[tuple[Block, Node]] = field(default_factory=list)
    extras: dict[str, Fixed] = field(default_factory=dict)
    """What attention functions take besides q, k, v and the mask."""

    def place(
        self, name: str, to: str, fixed: Mapping[str, Fixed], words: Mapping[str, str] | None = None
    ) -> None:
        """A definition that a file may have several of."""
        self.placed.setdefault(name, {})[to] = library().place(name, fixed, to=to, words=words)

    def has(self, state: State) -> bool:
        return any(n.row.state is state for b in self.graph.blocks.values() for n in b.nodes)

    @property
    def types(self) -> dict[str, str]:
        """Context variable -> its type."""
        cross = "Iterator[KeyValue]" if self.has(State.READ) else "list[KeyValue]"
        types = {"cache": "KVCache", "cross": cross}
        types |= dict.fromkeys(("position_ids", "attention_mask", *self.declared), "Tensor")
        return types | {v: s.type for s in self.shared for v in s.variables}

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
        return {b.name for b, n in self.attentions if len(n.operands) > 3} if self.choice else set()

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

    def kept(self, keep: int | None) -> str:
        """How many tokens a bounded slot keeps: one less than the window or the chunk that bounds it, or nothing."""
        if keep is None:
            return ""
        return self.constants.one_below(keep, "sliding_window", "attention_chunk_size")


def make_plan(graph: Graph) -> Plan:
    """Raises LlamagenError (LG740, LG741) for names and ops that PyTorch cannot have."""
    plan = Plan(graph, Constants(graph.constants), class_names(graph))
    plan.variables = {"positions": "position_ids", "attention_mask": "attention_mask"}
    plan.declared = tuple(v.id for v in graph.inputs if v.id not in ("input_ids", *plan.variables))
    plan.variables |= {name: identifier(name, "input") for name in plan.declared}
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
    _variants(plan)
    plan.arguments = _arguments(plan)
    plan.attending = _attending(plan)
    plan.cuts = cuts(graph) if graph.root_block.inputs[0].id == "input_ids" else {}
    return plan


def _variants(plan: Plan) -> None:
    """Which variants of the library's functions this model has."""
    bounded = plan.bounded
    keep = Stay.PRESENT if bounded else None
    plan.fixed = {
        "KVCache": {"keep": Stay.KEPT if bounded else None},
        "causal_mask": {"bounded": bounded},
        "sliding_causal_mask": {"keep": keep},
        "chunked_causal_mask": {"keep": keep},
    }
    for block in plan.graph.blocks.values():
        for node in block.nodes:
            if node.row.role is Role.ROTATION:
                x, table = (type_of(plan.graph, block, o).shape[-1] for o in node.operands[:2])
                half = a_str(node.attrs, "layout") == "half"
                function = "rotate" if half else "rotate_interleaved"
                if table * 2 != x:
                    plan.fixed[function] = {"partial": True}
                    plan.words[function] = {"H/2": "R/2"} if half else {}

    def heads(block: Block, node: Node) -> list[Dim]:
        return [block.values[o].type.shape[1] for o in node.operands[:2]]

    grouped = any(q != k for q, k in (heads(b, n) for b, n in plan.attentions))
    mask = Stay.KEPT if plan.mask_type == "Tensor | None" else Stay.PRESENT
    scale = {"scale": plan.extras["scale"]} if "scale" in plan.extras else {}
    causal = any(s.causal for s in plan.shared)
    plan.fixed["sdpa"] = {"mask": mask, "grouped": grouped, "causal": causal, **scale}
    plan.fixed["eager"] = {"mask": mask, "grouped": grouped, **plan.extras}
    plan.fixed["full_attention"] = {"grouped": grouped, **scale}
    if scale:
        plan.words["sdpa"] = plan.words["eager"] = {"/ sqrt(H)": "scale"}


def _arguments(plan: Plan) -> dict[str, tuple[str, ...]]:
    """What each forward takes besides its inputs. Layers of one stack take the same."""
    made = sorted(plan.shared, key=lambda s: _ARGUMENTS.index(s.kind))
    order = ["position_ids", *(v for s in made for v in s.variables)]
    order += [*plan.declared, "attention_mask", "cache", "cross"]
    blocks = plan.graph.blocks.values()
    needs: dict[str, set[str]] = {}
    for block in blocks:
        states = {n.row.state for n in block.nodes}
        own = {plan.variables[c] for c in block.context}
        own |= {"cache"} if State.SLOT in states else set()
        own |= {"cross"} if states & {State.READ, State.WRITTEN} else set()
        needs[block.name] = own.union(*(needs[name] for name in below(block)))
    for block in blocks:
        for part in block.parts.values():
            if isinstance(part, StackPart):
                union = set[str]().union(*(needs[name] for name in part.blocks))
                for name in part.blocks:
                    needs[name] |= union
    return {name: tuple(v for v in order if v in own) for name, own in needs.items()}


def below(block: Block) -> set[str]:
    """The blocks of its parts."""
    names: set[str] = set()
    for part in block.parts.values():
        match part:
            case BlockPart(block=name):
                names.add(name)
            case StackPart(blocks=several):
                names.update(several)
            case OpPart():
                pass
    return names


def _attending(plan: Plan) -> set[str]:
    """Blocks whose constructor takes an attention: those that call it, those above, and all of a stack with one."""
    blocks = plan.graph.blocks.values()
    names = plan.directly_attending
    while True:
        grown = names | {b.name for b in blocks if below(b) & names}
        for part in (p for b in blocks for p in b.parts.values()):
            if isinstance(part, StackPart) and set(part.blocks) & grown:
                grown |= set(part.blocks)
        if grown == names:
            return names
        names = grown


def type_of(graph: Graph, block: Block, operand: str) -> TensorType:
    if not operand.startswith("@"):
        return block.values[operand].type
    name = operand[1:]
    if name in graph.prelude_values:
        return graph.prelude_values[name].type
    return next(v.type for v in graph.inputs if v.id == name)


def cuts(graph: Graph) -> dict[str, Cut]:
    """Block name -> how it is cut, for the blocks from the root to the stack; empty if there is no such way."""
    found: dict[str, Cut] = {}
    block = graph.root_block
    while True:
        way = [n for n in block.nodes if _leads_to_stack(graph, block, n)]
        if len(way) != 1:
            return {}
        cut = _cut(block, way[0])
        if cut is None or block.name in found:
            return {}
        found[block.name] = cut
        part = block.parts[way[0].part or ""]
        if isinstance(part, StackPart):
            return found
        assert isinstance(part, BlockPart)
        block = graph.blocks[part.block]


def _leads_to_stack(graph: Graph, block: Block, node: Node) -> bool:
    part = block.parts[node.part] if node.part is not None else None
    match part:
        case StackPart():
            return True
        case BlockPart(block=name):
            below = graph.blocks[name]
            return any(_leads_to_stack(graph, below, n) for n in below.nodes)
        case OpPart() | None:
            return False


def _cut(block: Block, call: Node) -> Cut | None:
    at = block.nodes.index(call)
    before, after = block.nodes[:at], block.nodes[at + 1 :]
    if len(block.inputs) != 1 or len(block.outputs) != 1 or len(call.results) != 1:
        return None
    carried_in = call.operands[0]
    made_before = {r for n in before for r in n.results} | {block.inputs[0].id}
    crossing = {o for n in after for o in n.operands} | set(block.outputs) | set(call.operands[1:])
    if made_before & crossing or any(o not in made_before for o in (carried_in,)):
        return None
    if block.parts.keys() - _parts(before) - _parts(after) - _parts((call,)):
        return None
    owned = (before and _parts(before), after and _parts(after))
    if any(nodes is not None and nodes == set() for nodes in owned) or _parts(before) & _parts(
        after
    ):
        return None
    return Cut(before, call, after)


def _parts(nodes: tuple[Node, ...]) -> set[str]:
    return {n.part for n in nodes if n.part is not None}
