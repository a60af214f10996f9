"""Decisions for one file before any class is printed: names, helpers, context arguments, variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llamagen.diagnostics import Span
from llamagen.emit.torch.body import Surroundings
from llamagen.emit.torch.constants import Constants
from llamagen.emit.torch.names import class_names
from llamagen.emit.torch.prelude import Prelude, read_prelude
from llamagen.emit.torch.stages import Cut, cuts
from llamagen.ir.graph import Block, BlockPart, Graph, Node, OpPart, StackPart
from llamagen.ops.activations import ACTIVATIONS
from llamagen.ops.code import Code, Text, flat
from llamagen.ops.dims import Dim
from llamagen.ops.op import Attrs, Role, State, a_float, a_str


@dataclass(frozen=True, slots=True)
class NormView:
    """A class of RMS norms: where the result is rounded, and what is added to the gain."""

    name: str
    late: bool
    offset: str


@dataclass(frozen=True, slots=True)
class ExpertsView:
    """A class of experts."""

    name: str
    act: str
    """The expression of the activated gate."""
    in_out: bool
    scale_input: bool


@dataclass(frozen=True, slots=True)
class Extra:
    """An argument of attention functions; ``always`` if no call leaves it out."""

    name: str
    always: bool

    @property
    def parameter(self) -> str:
        type_ = {"scale": "float", "cap": "float", "sinks": "Tensor", "slopes": "list[float]"}[
            self.name
        ]
        return f"{self.name}: {type_}{'' if self.always else ' | None'}"


_EXTRAS: Mapping[str, Callable[[Node], bool]] = {
    "scale": lambda n: n.attrs["scale"] is not None,
    "cap": lambda n: n.attrs["softcap"] is not None,
    "sinks": lambda n: len(n.operands) > 4,
    "slopes": lambda n: n.attrs.get("alibi") is True,
}


@dataclass(slots=True)
class Plan:
    """Filled while the classes are printed (``helpers``, ``norms``, ``experts``), read by the templates."""

    graph: Graph
    constants: Constants
    prelude: Prelude
    names: dict[str, str]
    cuts: dict[str, Cut]
    arguments: dict[str, tuple[str, ...]]
    attending: set[str]
    attending_directly: set[str]
    types: dict[str, str]
    attentions: tuple[tuple[Block, Node], ...]
    helpers: set[str] = field(default_factory=set)
    norms: dict[tuple[str, float], NormView] = field(default_factory=dict)
    experts: dict[tuple[str, str, str], ExpertsView] = field(default_factory=dict)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What attention functions take besides q, k, v and the mask."""
        found: list[Extra] = []
        for name, has in _EXTRAS.items():
            users = [has(n) for _, n in self.attentions]
            if any(users):
                found.append(Extra(name, all(users) or name == "scale"))
        return tuple(found)

    @property
    def special(self) -> bool:
        """Whether some attention does what torch's fused kernel cannot."""
        return any(e.name != "scale" for e in self.extras)

    @property
    def grouped(self) -> bool:
        def heads(block: Block, node: Node) -> list[Dim]:
            return [block.values[o].type.shape[1] for o in node.operands[:2]]

        return any(q != k for q, k in (heads(b, n) for b, n in self.attentions))

    @property
    def masked(self) -> bool:
        return any(len(n.operands) > 3 for _, n in self.attentions)

    @property
    def choice(self) -> bool:
        """Whether the file has two implementations of attention under a mask."""
        return self.masked and not self.special

    @property
    def unmasked(self) -> bool:
        return any(len(n.operands) < 4 for _, n in self.attentions)

    @property
    def caches(self) -> bool:
        return self.has(State.SLOT)

    def has(self, state: State) -> bool:
        return any(n.row.state is state for b in self.graph.blocks.values() for n in b.nodes)

    @property
    def around(self) -> Surroundings:
        return Surroundings(
            graph=self.graph,
            constants=self.constants,
            variables=self.prelude.variables,
            arguments=self.arguments,
            helper=self.helpers.add,
            attend="self.attend" if self.choice else "eager",
            unmasked="eager" if self.special else "full_attention",
            extras=tuple(e.name for e in self.extras),
        )

    def norm_class(self, attrs: Attrs) -> str:
        late, offset = a_str(attrs, "cast") == "after_weight", a_float(attrs, "offset")
        key = (a_str(attrs, "cast"), offset)
        if key not in self.norms:
            parts = (p for b in self.graph.blocks.values() for p in b.parts.values())
            several = {
                (p.attrs["cast"], p.attrs["offset"])
                for p in parts
                if isinstance(p, OpPart) and "cast" in p.attrs
            }
            words = ("Shifted" if offset else "") + ("RoundedLate" if late else "")
            name = f"{words if len(several) > 1 else ''}RMSNorm"
            self.norms[key] = NormView(name, late, repr(offset) if offset else "")
        return self.norms[key].name

    def experts_class(self, attrs: Attrs) -> str:
        key = (a_str(attrs, "act"), a_str(attrs, "layout"), a_str(attrs, "scale"))
        if key not in self.experts:
            suffix = str(len(self.experts) + 1) if self.experts else ""
            act, layout, scale = key
            gate = ACTIVATIONS[act].torch(Text("gate"))
            self.experts[key] = ExpertsView(
                f"Experts{suffix}", flat(gate), layout == "in_out", scale == "input"
            )
        return self.experts[key].name


@dataclass(frozen=True, slots=True)
class ModuleSite:
    """Where the module of a part is made."""

    plan: Plan
    part: OpPart

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def attrs(self) -> Attrs:
        return self.part.attrs

    @property
    def span(self) -> Span | None:
        return self.part.span

    def number(self, name: str) -> Code:
        """An attribute as Python: a constant's name where the spec used one."""
        return self.plan.constants.code(self.attrs[name], self.part.sources.get(name))

    def numbers(self, name: str) -> tuple[Code, ...]:
        return self.plan.constants.codes(self.attrs[name], self.part.sources.get(name))


def make_plan(graph: Graph) -> Plan:
    constants = Constants(graph.constants)
    prelude = read_prelude(graph, constants)
    names = class_names(graph)
    attentions = tuple(
        (b, n) for b in graph.blocks.values() for n in b.nodes if n.row.role is Role.ATTENTION
    )
    masked = {b.name for b, n in attentions if len(n.operands) > 3}
    special = any(has(n) for _, n in attentions for name, has in _EXTRAS.items() if name != "scale")
    directly = set() if special else masked
    attending = _upwards(graph, directly)
    types = {"cache": "KVCache", "position_ids": "Tensor", "attention_mask": "Tensor"}
    types |= {r.variable: "Rope" for r in prelude.ropes}
    types |= {g.variable: "Rope" for g in prelude.grids}
    types |= {
        m.variable: "Tensor | None" if m.plain and not special else "Tensor" for m in prelude.masks
    }
    types |= {t.variable: "Tensor" for t in prelude.temperatures}
    types |= {v: "Tensor" for m in prelude.tiled for v in m.variables}
    types |= dict.fromkeys(prelude.declared, "Tensor")
    states = {b.name: {n.row.state for n in b.nodes} for b in graph.blocks.values()}
    reads = any(State.READ in of_block for of_block in states.values())
    types["cross"] = "Iterator[KeyValue]" if reads else "list[KeyValue]"
    return Plan(
        graph=graph,
        constants=constants,
        prelude=prelude,
        names=names,
        cuts=cuts(graph) if graph.root_block.inputs[0].id == "input_ids" else {},
        arguments=_arguments(graph, prelude, states),
        attending=attending,
        attending_directly=directly,
        types=types,
        attentions=attentions,
    )


def _below(block: Block) -> set[str]:
    found: set[str] = set()
    for part in block.parts.values():
        match part:
            case BlockPart(block=name):
                found.add(name)
            case StackPart(blocks=names):
                found.update(names)
            case OpPart():
                pass
    return found


def _upwards(graph: Graph, start: set[str]) -> set[str]:
    """``start``, the blocks above, and the other members of a stack that has one of them."""
    found = set(start)
    while True:
        grown = found | {b.name for b in graph.blocks.values() if _below(b) & found}
        for block in graph.blocks.values():
            for part in block.parts.values():
                if isinstance(part, StackPart) and set(part.blocks) & grown:
                    grown |= set(part.blocks)
        if grown == found:
            return found
        found = grown


def _arguments(
    graph: Graph, prelude: Prelude, states: Mapping[str, set[State | None]]
) -> dict[str, tuple[str, ...]]:
    """What each forward takes besides its inputs. Layers of one stack take the same."""
    order = (*prelude.order, "cache", "cross")
    needs: dict[str, set[str]] = {}
    for block in graph.blocks.values():
        own = {prelude.variables[c] for c in block.context}
        own |= {"cache"} if State.SLOT in states[block.name] else set()
        own |= {"cross"} if states[block.name] & {State.READ, State.WRITTEN} else set()
        needs[block.name] = own.union(*(needs[name] for name in _below(block)))
    for block in graph.blocks.values():
        for part in block.parts.values():
            if isinstance(part, StackPart):
                union = set[str]().union(*(needs[name] for name in part.blocks))
                for name in part.blocks:
                    needs[name] |= union
    return {name: tuple(v for v in order if v in found) for name, found in needs.items()}
