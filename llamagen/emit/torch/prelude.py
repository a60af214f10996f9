"""What a forward pass computes once, at the top: rope tables, masks, temperatures. View-models for the templates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil, floor, log, pi

from llamagen.diagnostics import LlamagenError
from llamagen.emit.torch.code import Text, call, statement
from llamagen.emit.torch.constants import Constants, kept_text
from llamagen.emit.torch.names import identifier
from llamagen.emit.torch.tiled import TiledView, tiled_view
from llamagen.ir.dims import Dim
from llamagen.ir.graph import Graph, Node
from llamagen.ir.optypes import a_float, a_int, a_str, keep_of


@dataclass(frozen=True, slots=True)
class RopeView:
    """One table of cosines and sines; the texts are constants or literals."""

    variable: str
    function: str
    layout: str
    partial: bool
    scaling: str
    dim: str
    theta: str
    factor: str
    low_freq_factor: str
    high_freq_factor: str
    original_max_positions: str
    attention_factor: str
    ramp_start: str
    ramp_width: str

    @property
    def half(self) -> bool:
        return self.layout == "half"

    @property
    def scaled_tables(self) -> bool:
        return self.attention_factor != "1.0"

    @property
    def shape(self) -> str:
        width = "R" if self.partial else "H"
        return f"[B, 1, S, {width}]" if self.half else f"[B, 1, S, {width} / 2]"


@dataclass(frozen=True, slots=True)
class MaskView:
    """One mask; ``limit`` is the window or the chunk, ``keep`` the past of the slots it is for if they are bounded."""

    variable: str
    kind: str
    limit: str
    keep: str = ""

    @property
    def plain(self) -> bool:
        return self.kind == "causal"

    @property
    def lines(self) -> list[str]:
        """The call that makes it."""
        function = "causal_mask" if self.plain else f"{self.kind}_causal_mask"
        given = ["S", "P", "attention_mask", "device", self.limit, self.keep]
        given = [g for g in given if g]
        return statement(f"{self.variable} = ", call(function, *(Text(g) for g in given)), 2)


@dataclass(frozen=True, slots=True)
class TemperatureView:
    variable: str
    scale: str
    floor_scale: str

    @property
    def lines(self) -> list[str]:
        arguments = [Text(a) for a in ("position_ids", self.scale, self.floor_scale)]
        return statement(f"{self.variable} = ", call("temperature_table", *arguments), 2)


@dataclass(frozen=True, slots=True)
class GridView:
    """One table of a grid; the texts are constants or literals."""

    variable: str
    function: str
    rows: str
    columns: str
    pairs: int
    theta: str
    extra: str
    shape: str


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
    ropes: list[RopeView] = []
    grids: list[GridView] = []
    masks: list[MaskView] = []
    temperatures: list[TemperatureView] = []
    tiled: list[TiledView] = []
    variables = {"positions": "position_ids", "attention_mask": "attention_mask"}
    declared = [v.id for v in graph.inputs if v.id not in ("input_ids", *variables)]
    variables.update({name: identifier(name, "input") for name in declared})
    several = sum(n.op == "causal_mask" for n in graph.prelude) > 1
    tables = sum(n.op == "rope_table" for n in graph.prelude)
    for node in graph.prelude:
        first = identifier(node.results[0], "value")
        match node.op:
            case "rope_table":
                variable = _fresh(_rope_name(graph, first, tables), variables.values())
                ropes.append(_rope(graph, node, variable, constants))
            case "grid_rope_table":
                variable = _fresh("grid_rope", variables.values())
                grids.append(_grid(node, variable, constants))
            case "causal_mask":
                variable = _mask_name(first) if several else "mask"
                masks.append(_mask(node, variable, constants))
            case "attention_temperature":
                variable = first.replace("attention_temperature", "temperature")
                temperatures.append(_temperature(node, variable, constants))
            case "tile_mask" | "cross_mask":
                tiled.append(tiled_view(node, variables, constants))
                variables.update(zip(node.results, tiled[-1].variables, strict=True))
                continue
            case _:
                message = f"`{node.op}` cannot be computed once a forward pass in PyTorch"
                raise LlamagenError.of("LG741", message, node.span)
        variables.update(dict.fromkeys(node.results, variable))
    if any(
        m.keep for m in masks
    ):  # functions of masks then take how many past keys there are at most
        masks = [m if m.plain or m.keep else replace(m, keep="P") for m in masks]
    return Prelude(
        tuple(ropes),
        tuple(grids),
        tuple(masks),
        tuple(temperatures),
        tuple(tiled),
        tuple(declared),
        variables,
    )


def _grid(node: Node, variable: str, constants: Constants) -> GridView:
    rows, columns, extra = (a_int(node.attrs, n) for n in ("rows", "columns", "extra"))
    pairs, prefix = a_int(node.attrs, "dim") // 2, variable.upper()
    return GridView(
        variable=variable,
        function=f"{variable}_table",
        rows=constants.define(f"{prefix}_ROWS", rows).text,
        columns=constants.define(f"{prefix}_COLUMNS", columns).text,
        pairs=pairs,
        theta=constants.define(f"{prefix}_THETA", a_float(node.attrs, "theta")).text,
        extra=str(extra) if extra else "",
        shape=f"[1, 1, {rows * columns + extra}, {pairs}]",
    )


def _rope_name(graph: Graph, table: str, tables: int) -> str:
    """``rope``; of several the one for local layers says so: ``sliding_rope``."""
    if tables == 1:
        return "rope"
    users = [b for b in graph.blocks.values() if any(f"@{table}" in n.operands for n in b.nodes)]
    masks = {o[1:] for b in users for n in b.nodes if n.op == "attention" for o in n.operands[3:]}
    words = {_mask_name(m).partition("_mask")[0] for m in masks}
    return f"{words.pop()}_rope" if len(words) == 1 and not words & {"mask"} else "rope"


def _fresh(name: str, taken: Collection[str]) -> str:
    names = (name, *(f"{name}_{n}" for n in range(2, len(taken) + 2)))
    return next(n for n in names if n not in taken)


def _mask_name(value: str) -> str:
    for kind, word in (("mask_window", "sliding_mask"), ("mask_chunk", "chunked_mask")):
        if value.startswith(kind):
            return value.replace(kind, word)
    return value


def _partial(graph: Graph, table: str, dim: int) -> bool:
    """Whether it rotates a part of some head only."""
    return any(
        block.values[node.results[0]].type.shape[-1] != Dim.of(dim)
        for block in graph.blocks.values()
        for node in block.nodes
        if node.op == "rotate" and f"@{table}" in node.operands
    )


def _layout(graph: Graph, table: str) -> str:
    """How the table is used: its form differs by layout, so two layouts of one table are refused."""
    found = {
        a_str(node.attrs, "layout")
        for block in graph.blocks.values()
        for node in block.nodes
        if node.op == "rotate" and f"@{table}" in node.operands
    }
    if len(found) > 1:
        message = "one rope table is used in two layouts"
        raise LlamagenError.of("LG741", message, help="give each layout a rope hyperparameter")
    return found.pop() if found else "half"


def _rope(graph: Graph, node: Node, variable: str, constants: Constants) -> RopeView:
    attrs, prefix, table = node.attrs, variable.upper(), node.results[0]
    scaling, dim, theta = a_str(attrs, "scaling"), a_int(attrs, "dim"), a_float(attrs, "theta")

    def named(name: str) -> str:
        value = attrs[name]
        assert isinstance(value, int | float), name
        return constants.define(f"{prefix}_{name.upper()}", value).text

    uses = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions"),
        "yarn": ("factor",),
    }[scaling]
    start, width = _yarn_ramp(node, dim, theta) if scaling == "yarn" else (0, 1.0)
    attention_factor = a_float(attrs, "attention_factor")
    theta_text = named("theta")
    texts = {name: named(name) for name in uses}
    return RopeView(
        variable=variable,
        function=f"{variable}_table",
        layout=_layout(graph, table),
        partial=_partial(graph, table, dim),
        scaling=scaling,
        dim=constants.number_like(dim, "head_dim", define=f"{prefix}_DIM"),
        theta=theta_text,
        factor=texts.get("factor", ""),
        low_freq_factor=texts.get("low_freq_factor", ""),
        high_freq_factor=texts.get("high_freq_factor", ""),
        original_max_positions=texts.get("original_max_positions", ""),
        attention_factor=named("attention_factor") if attention_factor != 1.0 else "1.0",
        ramp_start=repr(start),
        ramp_width=repr(width),
    )


def _yarn_ramp(node: Node, dim: int, theta: float) -> tuple[int, float]:
    """First frequency that is not kept, and over how many the blend runs (arXiv 2309.00071, section 3.2)."""
    original = a_int(node.attrs, "original_max_positions")

    def index(rotations: float) -> float:
        return dim * log(original / (rotations * 2 * pi)) / (2 * log(theta))

    low = max(floor(index(a_float(node.attrs, "beta_fast"))), 0)
    high = min(ceil(index(a_float(node.attrs, "beta_slow"))), dim - 1)
    return low, float(high - low) or 0.001


def _mask(node: Node, variable: str, constants: Constants) -> MaskView:
    window, chunk = node.attrs["window"], node.attrs["chunk"]
    if isinstance(window, int) and isinstance(chunk, int):
        message = "a mask has a window or a chunk, not both"
        raise LlamagenError.of("LG741", message, node.span)
    keep = keep_of(node.attrs)
    kept = "" if keep is None else kept_text(constants, keep)
    if isinstance(window, int):
        limit = constants.number_like(window, "sliding_window")
        return MaskView(variable, "sliding", limit, kept)
    if isinstance(chunk, int):
        limit = constants.number_like(chunk, "attention_chunk_size")
        return MaskView(variable, "chunked", limit, kept)
    return MaskView(variable, "causal", "")


def _temperature(node: Node, variable: str, constants: Constants) -> TemperatureView:
    scale, floor_scale = a_float(node.attrs, "scale"), a_int(node.attrs, "floor_scale")
    return TemperatureView(
        variable,
        constants.number_like(scale, "attention_temperature_scale"),
        constants.number_like(floor_scale, "attention_temperature_floor"),
    )
