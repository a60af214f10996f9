"""What runtimes do with a model. Facts about them are data: spec/runtimes.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from llamagen.analysis.numbers import cache_of
from llamagen.analysis.tables import chosen, holds, hyperparameter_scope, load_table
from llamagen.ir.graph import MAIN, Graph, OpPart, places
from llamagen.ops.op import Role
from llamagen.spec.expr import Static
from llamagen.spec.families import family_of
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import Closed


class Status(StrEnum):
    RUNS = "runs"
    SLOW = "slow"
    WRONG = "wrong"
    REFUSES = "refuses"


class Fact(Closed):
    """One row: where ``when`` holds for a model, the runtime behaves as ``status`` says."""

    when: str
    status: Status
    note: str
    source: str


class Runtime(Closed):
    title: str
    version: str
    facts: tuple[Fact, ...]


class Runtimes(Closed):
    version: int
    runtimes: dict[str, Runtime]


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """Facts that apply to one model on one runtime."""

    name: str
    runtime: Runtime
    facts: tuple[Fact, ...]

    @property
    def status(self) -> Status | None:
        """The worst of the facts; none when nothing is known."""
        order = list(Status)
        return max((f.status for f in self.facts), key=order.index, default=None)


def runtimes() -> dict[str, Runtime]:
    return load_table("runtimes.yaml", Runtimes).runtimes


def runtime(name: str) -> Runtime:
    """The runtime ``name``. Raises LG901 with the nearest known one."""
    return chosen(runtimes(), name, "a runtime of runtimes.yaml")


def on_runtimes(
    resolved: ResolvedSpec, graphs: Mapping[str, Graph], names: Iterable[str], dtype: str
) -> tuple[RuntimeReport, ...]:
    """What is known about ``graphs`` on the runtimes ``names`` in ``dtype``. Raises LG901 for an unknown one."""
    known = {name: runtime(name) for name in names}
    scope = _scope(resolved, graphs, dtype)
    return tuple(
        RuntimeReport(name, one, tuple(f for f in one.facts if holds(f.when, scope)))
        for name, one in known.items()
    )


def _scope(resolved: ResolvedSpec, graphs: Mapping[str, Graph], dtype: str) -> dict[str, Static]:
    graph = graphs[MAIN]
    blocks = [block for one in graphs.values() for block in one.blocks.values()]
    nodes = [node for block in blocks for node in block.nodes]
    attentions = list(places(graph, Role.ATTENTION))
    experts = [n for n in nodes if n.row.role is Role.EXPERTS]
    parts = [p for b in blocks for p in b.parts.values() if isinstance(p, OpPart)]
    topk = [
        graph.operand_types(block, node)[1].shape[-1].value
        for block in graph.blocks.values()
        for node in block.nodes
        if node.row.role is Role.EXPERTS
    ]
    scales = [n.attrs["scale"] for n in experts]
    layouts = dict.fromkeys(str(n.attrs["layout"]) for n in nodes if n.row.role is Role.ROTATION)
    cache = cache_of(graph).layers
    return {
        **hyperparameter_scope(resolved),
        "graphs": tuple(graphs),
        "ops": tuple(dict.fromkeys(n.op for n in nodes)),
        "local_layers": sum(1 for layer in cache if layer.reach is not None),
        "nope_layers": sum(
            1 for a in attentions if all(n.row.role is not Role.ROTATION for n in a.block.nodes)
        ),
        "cache_shapes": len(
            {(layer.kv_heads, d) for layer in cache for d in (layer.key_dim, layer.value_dim)}
        ),
        "config_kind": _config_kind(resolved),
        "moe_layers": sum(1 for _ in places(graph, Role.EXPERTS)),
        "rotary_layouts": tuple(layouts),
        "topk": max(topk, default=0),
        "expert_scale": str(scales[0]) if scales else None,
        "biases": any(p.kind == "bias" for part in parts for p in part.parameters),
        "tied": bool(graph.ties),
        "dtype": dtype,
        "head_dims": tuple(dict.fromkeys(layer.key_dim for layer in cache)),
    }


def _config_kind(resolved: ResolvedSpec) -> str | None:
    """``model_type`` of the config.json; none where a spec of another family than wrote it has changed the wiring."""
    kind = resolved.leaf("config", "kind")
    if kind is None or resolved.spec.config is None:
        return None
    writers = {
        leaf.origins[-1].spec_id for path, leaf in resolved.leaves if path.startswith("blocks.")
    }
    families = {family_of(one) for one in (kind.origins[-1].spec_id, *writers)}
    return resolved.spec.config.kind if len(families) == 1 else None
