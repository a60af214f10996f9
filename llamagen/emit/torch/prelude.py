"""What a forward pass computes once, at the top: rope tables, masks, temperatures. View-models for the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from llamagen.diagnostics import LlamagenError, Span
from llamagen.emit.torch.constants import Constants, kept_text
from llamagen.emit.torch.names import identifier
from llamagen.ir.graph import Block, Graph, Node
from llamagen.ops.attention import MaskView, TemperatureView
from llamagen.ops.dims import Dim
from llamagen.ops.images import TiledView
from llamagen.ops.op import Attrs, Role, a_str, keep_of
from llamagen.ops.rope import GridView, RopeView

View: TypeAlias = RopeView | GridView | MaskView | TemperatureView | TiledView
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class PreludeSite:
    """Where a value of the prelude is computed."""

    graph: Graph
    node: Node
    constants: Constants
    variables: Mapping[str, str]
    """Of the graph-level values so far."""

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    @property
    def span(self) -> Span | None:
        return self.node.span

    @property
    def results(self) -> tuple[str, ...]:
        return tuple(identifier(r, "value") for r in self.node.results)

    def operand(self, i: int) -> str:
        return self.variables[self.node.operands[i].removeprefix("@")]

    def define(self, constant: str, attr: str) -> str:
        """A module constant for an attribute."""
        value = self.attrs[attr]
        assert isinstance(value, int | float), attr
        return self.constants.define(constant, value).text

    def fresh(self, name: str) -> str:
        taken = self.variables.values()
        names = (name, *(f"{name}_{n}" for n in range(2, len(taken) + 2)))
        return next(n for n in names if n not in taken)

    def kept(self) -> str:
        """The past of the slots that a mask is for; empty if they are not bounded."""
        keep = keep_of(self.attrs)
        return "" if keep is None else kept_text(self.constants, keep)

    def mask_name(self) -> str:
        several = sum(n.row.role is Role.MASK for n in self.graph.prelude) > 1
        return _mask_name(self.results[0]) if several else "mask"

    def name_by_users(self, name: str) -> str:
        """``rope``; of several tables the one for local layers says so: ``sliding_rope``."""
        if sum(n.row.role is self.node.row.role for n in self.graph.prelude) == 1:
            return name
        table, blocks = f"@{self.node.results[0]}", self.graph.blocks.values()
        users = [b for b in blocks if any(table in n.operands for n in b.nodes)]
        attentions = (n for b in users for n in b.nodes if n.row.role is Role.ATTENTION)
        masks = {o[1:] for n in attentions for o in n.operands[3:]}
        words = {_mask_name(m).partition("_mask")[0] for m in masks}
        return f"{words.pop()}_{name}" if len(words) == 1 and not words & {"mask"} else name

    def partial(self, dim: int) -> bool:
        """Whether a table of ``dim`` features rotates a part of some head only."""
        return any(
            block.values[node.results[0]].type.shape[-1] != Dim.of(dim)
            for block, node in self._rotations()
        )

    def layout(self) -> str:
        """How a table is used: its form differs by layout, so two layouts of one table are refused."""
        layouts = {a_str(node.attrs, "layout") for _, node in self._rotations()}
        if len(layouts) > 1:
            message = "one rope table is used in two layouts"
            raise LlamagenError.of("LG741", message, help="give each layout a rope hyperparameter")
        return layouts.pop() if layouts else "half"

    def _rotations(self) -> list[tuple[Block, Node]]:
        table = f"@{self.node.results[0]}"
        nodes = ((b, n) for b in self.graph.blocks.values() for n in b.nodes)
        return [(b, n) for b, n in nodes if n.row.role is Role.ROTATION and table in n.operands]


@dataclass(frozen=True, slots=True)
class Prelude:
    ropes: tuple[RopeView, ...]
    grids: tuple[GridView, ...]
    masks: tuple[MaskView, ...]
    temperatures: tuple[TemperatureView, ...]
    tiled: tuple[TiledView, ...]
    declared: tuple[str, ...]
    """Inputs that the spec declares for this graph."""
    variables: Mapping[str, str]
    """Graph-level value -> the Python variable that carries it (both rope tables are one)."""

    @property
    def partial(self) -> bool:
        return any(r.partial for r in self.ropes)

    @property
    def sliding(self) -> bool:
        return any(m.kind == "sliding" for m in self.masks)

    @property
    def chunked(self) -> bool:
        return any(m.kind == "chunked" for m in self.masks)

    @property
    def bounded(self) -> bool:
        """Whether some masks are for slots that do not keep all keys."""
        return any(m.keep for m in self.masks)

    @property
    def placed(self) -> bool:
        """Whether something here depends on positions or the mask."""
        return bool(self.ropes or self.masks or self.temperatures)

    @property
    def order(self) -> tuple[str, ...]:
        """Variables in the order in which forwards take them."""
        made = [v.variable for v in self.ropes]
        made += [v.variable for v in self.grids]
        made += [v.variable for v in self.masks]
        made += [v.variable for v in self.temperatures]
        made += [name for v in self.tiled for name in v.variables]
        return ("position_ids", *made, *self.declared, "attention_mask")

    def masks_by(self, function: str) -> bool:
        """Whether a mask of images is made by this function."""
        return any(v.function == function for v in self.tiled)


def read_prelude(graph: Graph, constants: Constants) -> Prelude:
    """Views of the prelude. Raises LlamagenError (LG741) for an op that cannot be hoisted here."""
    views: list[View] = []
    variables = {"positions": "position_ids", "attention_mask": "attention_mask"}
    declared = [v.id for v in graph.inputs if v.id not in ("input_ids", *variables)]
    variables.update({name: identifier(name, "input") for name in declared})
    for node in graph.prelude:
        if node.row.torch_prelude is None:
            message = f"`{node.op}` cannot be computed once a forward pass in PyTorch"
            raise LlamagenError.of("LG741", message, node.span)
        view = node.row.torch_prelude(PreludeSite(graph, node, constants, variables))
        views.append(view)
        names = (
            view.variables if isinstance(view, TiledView) else [view.variable] * len(node.results)
        )
        variables.update(zip(node.results, names, strict=True))
    masks = _of(MaskView, views)
    if any(
        m.keep for m in masks
    ):  # functions of masks then take how many past keys there are at most
        masks = tuple(m if m.plain or m.keep else replace(m, keep="P") for m in masks)
    return Prelude(
        _of(RopeView, views),
        _of(GridView, views),
        masks,
        _of(TemperatureView, views),
        _of(TiledView, views),
        tuple(declared),
        variables,
    )


def _of(kind: type[V], views: Sequence[View]) -> tuple[V, ...]:
    return tuple(view for view in views if isinstance(view, kind))


def _mask_name(value: str) -> str:
    for kind, word in (("mask_window", "sliding_mask"), ("mask_chunk", "chunked_mask")):
        if value.startswith(kind):
            return value.replace(kind, word)
    return value
