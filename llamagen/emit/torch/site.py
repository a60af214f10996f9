"""Where an op is written: in a forward, in a constructor, at the top of the model's forward. What its row is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

from llamagen.diagnostics import Span
from llamagen.emit.torch.names import identifier
from llamagen.emit.torch.place import statements_of
from llamagen.ir.graph import Block, Node, OpPart
from llamagen.ops.code import (
    Attribute,
    Code,
    Fixed,
    Indexed,
    Keyword,
    Shared,
    Statements,
    Text,
    Tuple,
    call,
    literal,
)
from llamagen.ops.dims import Dim
from llamagen.ops.op import Attrs, Role, TensorType, a_str, keep_of

if TYPE_CHECKING:
    from llamagen.emit.torch.blocks import Body
    from llamagen.emit.torch.plan import Plan


_INTERFACE: Mapping[str, str] = {"cap": "softcap", "sinks": "s_aux"}
"""What transformers calls the extras of an attention."""

_MASKS: Mapping[str, str] = {
    "causal_mask": "create_causal_mask",
    "sliding_causal_mask": "create_sliding_window_causal_mask",
    "chunked_causal_mask": "create_chunked_causal_mask",
}
"""Its masks: window and chunk are those of the configuration."""


@dataclass(frozen=True, slots=True)
class TorchSite:
    """A call in a forward."""

    body: Body
    node: Node

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    @property
    def part(self) -> str | None:
        return self.node.part

    def number(self, name: str) -> Code:
        """An attribute as Python: a constant's name where the spec used one."""
        return self.body.plan.constants.code(self.attrs[name], self.node.sources.get(name))

    def numbers(self, name: str) -> tuple[Code, ...]:
        """An attribute that is a list."""
        return self.body.plan.constants.codes(self.attrs[name], self.node.sources.get(name))

    @property
    def operand_types(self) -> tuple[TensorType, ...]:
        return tuple(self.body.type(o) for o in self.node.operands)

    @property
    def result_types(self) -> tuple[TensorType, ...]:
        return tuple(self.body.type(r) for r in self.node.results)

    def model_dtype(self) -> Code:
        """An expression for the dtype the model runs in."""
        return self.body.model_dtype()

    def size(self, dim: Dim) -> Code:
        """An expression for a symbolic size."""
        return self.body.size(dim)

    def heads(self, count: int) -> Code:
        """How many heads there are: those of a variable that has as many, for they may be a rank's part."""
        for name, type_ in self.body.latest().items():
            if len(type_.shape) == 4 and type_.shape[1] == Dim.of(count):
                return Indexed(Attribute(Text(name), "shape"), "1")
        return literal(count)

    def sizes(self, dims: Sequence[Dim]) -> tuple[Code, ...]:
        """Expressions for a new shape of the same elements."""
        return self.body.sizes(dims)

    @property
    def of_parts(self) -> bool:
        """Whether it cuts a value of which a rank may have a part into pieces."""
        return (self.body.block.name, self.node.results[0]) in self.body.plan.pieces

    @property
    def extras(self) -> tuple[str, ...]:
        """What attention functions take besides q, k, v and the mask."""
        return tuple(self.body.plan.extras)

    def attention(self, operands: Sequence[Code], extras: Sequence[Keyword]) -> Code:
        """The call of the attention function under a mask, or of the one without."""
        plan = self.body.plan
        if len(operands) < 4:
            if plan.special:
                return call("eager", *operands, literal(None), *extras)
            return call("full_attention", *operands, *extras)
        if not plan.config:
            return call("self.attend" if plan.choice else "eager", *operands, *extras)
        # vLLM 0.32 reads the scale and the sinks in the text of this call, by these names
        named = [
            Keyword(_INTERFACE.get(e.name, e.name), e.value) for e in extras if e.name != "scale"
        ]
        named = [Keyword("scaling", Text("self.scaling")), *named]
        attended = call("attend", Text("self"), *operands[:4], *named, Text("**kwargs"))
        return call("by_heads", Indexed(attended, "0"), self.size(self.result_types[0].shape[-1]))

    def listed(self, x: Sequence[Code]) -> Code:
        """All operands as one argument; states that a loop collected are in a list already."""
        states = self.body.lists.get(self.node.operands)
        return Tuple(tuple(x)) if states is None else Text(states)

    def routed(self, x: Sequence[Code]) -> Code:
        """The call of the module of experts."""
        module = f"self.{self.part}"
        if self.body.plan.config:
            return call("each_token", Text(module), *x)
        return call(module, *x)


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


@dataclass(frozen=True, slots=True)
class PreludeSite:
    """Where a value is computed that all blocks share."""

    plan: Plan
    node: Node

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    @property
    def span(self) -> Span | None:
        return self.node.span

    @property
    def bounded(self) -> bool:
        """Whether some slots of the cache keep the last tokens only."""
        return self.plan.bounded

    @property
    def special(self) -> bool:
        """Whether some attention does what torch's fused kernel cannot."""
        return self.plan.special

    @property
    def source(self) -> str:
        """The variable of the first input where the value is computed."""
        whole, graph = self.plan.whole, self.plan.graph
        graph = whole.encoder if whole is not None and self.node in whole.encoder.prelude else graph
        first = graph.root_block.inputs[0].id
        return self.plan.variables.get(first, first)

    @property
    def results(self) -> tuple[str, ...]:
        return tuple(identifier(r, "value") for r in self.node.results)

    def operand(self, i: int) -> str:
        return self.plan.variables[self.node.operands[i].removeprefix("@")]

    def like(self, value: int | float, name: str, define: str = "") -> str:
        """The hyperparameter ``name`` if it has this value; else a constant ``define``, or the literal."""
        return self.plan.constants.number_like(value, name, define)

    def define(self, constant: str, attr: str) -> str:
        """A module constant for an attribute."""
        value = self.attrs[attr]
        assert isinstance(value, int | float | tuple), attr
        return self.plan.constants.define(constant, value).text

    def fresh(self, name: str) -> str:
        taken = self.plan.variables.values()
        names = (name, *(f"{name}_{n}" for n in range(2, len(taken) + 2)))
        return next(n for n in names if n not in taken)

    def kept(self) -> str:
        """The past of the slots that a mask is for; empty if they are not bounded."""
        return self.plan.kept(keep_of(self.attrs))

    def place(
        self, name: str, to: str, fixed: Mapping[str, Fixed], words: Mapping[str, str]
    ) -> None:
        """A definition of the library under a name of its own."""
        self.plan.place(name, to, fixed, words)

    def statements(
        self,
        function: Callable[..., object],
        named: Callable[[str], Text],
        numbers: Mapping[str, float],
    ) -> Statements:
        """Those of a function of a row; what stands behind its ``*`` are ``numbers`` or constants."""
        names = [
            p.name for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        fixed = {name: numbers[name] if name in numbers else named(name) for name in names}
        return statements_of(function, fixed)

    def mask(self, function: str, arguments: Sequence[str], type_: str, causal: bool) -> Shared:
        """A mask by a function of the library, or by the one that transformers has in its place."""
        call = f"{function}({', '.join(arguments)})"
        if self.plan.config:
            type_, call = "Tensor | None", f"{_MASKS[function]}(**seen)"
        return Shared("mask", (self.mask_name(),), type_, call, causal)

    def mask_name(self) -> str:
        several = sum(n.row.role is Role.MASK for n in self.plan.graph.prelude) > 1
        return _mask_name(self.results[0]) if several else "mask"

    def name_by_users(self, name: str) -> str:
        """``rope``; of several tables the one for local layers says so: ``sliding_rope``."""
        graph, table = self.plan.graph, f"@{self.node.results[0]}"
        if sum(n.row.role is self.node.row.role for n in graph.prelude) == 1:
            return name
        users = [b for b in graph.blocks.values() if any(table in n.operands for n in b.nodes)]
        attentions = (n for b in users for n in b.nodes if n.row.role is Role.ATTENTION)
        masks = {o[1:] for n in attentions for o in n.operands[3:]}
        words = {_mask_name(m).partition("_mask")[0] for m in masks}
        return f"{words.pop()}_{name}" if len(words) == 1 and not words & {"mask"} else name

    def partial(self, dim: int) -> bool:
        """Whether a table of ``dim`` features rotates a part of some head only."""
        widths = [b.values[n.results[0]].type.shape[-1] for b, n in self._rotations()]
        partial = any(width != Dim.of(dim) for width in widths)
        self.plan.partial |= partial
        return partial

    def layout(self) -> str:
        """How a table is used: its form differs by layout, so the builder makes one for each."""
        layouts = {a_str(node.attrs, "layout") for _, node in self._rotations()} or {"half"}
        (layout,) = layouts
        return layout

    def _rotations(self) -> list[tuple[Block, Node]]:
        table = f"@{self.node.results[0]}"
        nodes = ((b, n) for b in self.plan.graph.blocks.values() for n in b.nodes)
        return [(b, n) for b, n in nodes if n.row.role is Role.ROTATION and table in n.operands]


def _mask_name(value: str) -> str:
    for kind, word in (("mask_window", "sliding_mask"), ("mask_chunk", "chunked_mask")):
        if value.startswith(kind):
            return value.replace(kind, word)
    return value
