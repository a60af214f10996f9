"""Whether B runs A's weights, and what a runtime does with B. Facts about runtimes are data: spec/runtimes.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llamagen.analysis.ask import Model
from llamagen.analysis.diff.judge import Change, Diff, diff
from llamagen.analysis.diff.surfaces import Surface, Verdict
from llamagen.analysis.diff.transforms import Transform
from llamagen.analysis.numbers.memory import cache_of
from llamagen.analysis.numbers.params import is_tied
from llamagen.analysis.numbers.walk import operand_types, places
from llamagen.analysis.rules import holds, hyperparameter_scope
from llamagen.analysis.tables import load_table
from llamagen.diagnostics import LlamagenError, did_you_mean
from llamagen.ir.graph import Graph, OpPart
from llamagen.spec.evaluate import Static
from llamagen.spec.naming import Closed
from llamagen.spec.resolve import ResolvedSpec


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


@dataclass(frozen=True, slots=True)
class CompatReport:
    """Whether a checkpoint of A works in B's graph."""

    before: str
    after: str
    weights: Verdict
    numerics: Verdict
    transforms: tuple[Transform, ...]
    blocking: tuple[Change, ...]
    """Changes of weights or numerics that no conversion makes up for."""
    runtimes: tuple[RuntimeReport, ...]

    @property
    def verdict(self) -> Verdict:
        """Same or compatible: load and run; convertible: after ``transforms``; breaking: not at all."""
        return max((self.weights, self.numerics), key=lambda v: v.rank)


def runtimes() -> dict[str, Runtime]:
    return load_table("runtimes.yaml", Runtimes).runtimes


def runtime(name: str) -> Runtime:
    """The runtime ``name``. Raises LG901 with the nearest known one."""
    known = runtimes()
    if name not in known:
        hint = did_you_mean(name, known)
        help = f"did you mean `{hint}`?" if hint else f"known: {', '.join(known)}"
        raise LlamagenError.of("LG901", f"`{name}` is not a runtime of runtimes.yaml", help=help)
    return known[name]


def compat(
    before: Model, after: Model, names: tuple[str, ...] = (), dtype: str = "float32"
) -> CompatReport:
    """Whether A's weights run in B, and what the runtimes ``names`` (all without any) do with B in ``dtype``."""
    result: Diff = diff(before, after)
    surfaces = (Surface.WEIGHTS, Surface.NUMERICS)
    blocking = tuple(
        c
        for c in result.changes
        if c.kind != "value" and any(c.verdict(s) is Verdict.BREAKING for s in surfaces)
    )
    reports: tuple[RuntimeReport, ...] = ()
    if after.graph is not None:
        chosen = names or tuple(runtimes())
        reports = tuple(on_runtime(after.resolved, after.graph, n, dtype) for n in chosen)
    return CompatReport(
        before.id,
        after.id,
        result.verdict(Surface.WEIGHTS),
        result.verdict(Surface.NUMERICS),
        result.transforms(),
        blocking,
        reports,
    )


def on_runtime(resolved: ResolvedSpec, graph: Graph, name: str, dtype: str) -> RuntimeReport:
    """What is known about ``graph`` on the runtime ``name`` in ``dtype``."""
    found = runtime(name)
    scope = _scope(resolved, graph, dtype)
    return RuntimeReport(name, found, tuple(f for f in found.facts if holds(f.when, scope)))


def _scope(resolved: ResolvedSpec, graph: Graph, dtype: str) -> dict[str, Static]:
    nodes = [node for block in graph.blocks.values() for node in block.nodes]
    attentions = list(places(graph, frozenset({"attention"})))
    experts = [n for n in nodes if n.op == "experts"]
    parts = [p for b in graph.blocks.values() for p in b.parts.values() if isinstance(p, OpPart)]
    topk = [
        operand_types(graph, block, node)[1].shape[-1].value
        for block in graph.blocks.values()
        for node in block.nodes
        if node.op == "experts"
    ]
    scales = [n.attrs["scale"] for n in experts]
    layouts = dict.fromkeys(str(n.attrs["layout"]) for n in nodes if n.op == "rotate")
    cache = cache_of(graph).layers
    return {
        **hyperparameter_scope(resolved),
        "ops": tuple(dict.fromkeys(n.op for n in nodes)),
        "local_layers": sum(1 for layer in cache if layer.reach is not None),
        "nope_layers": sum(1 for a in attentions if all(n.op != "rotate" for n in a.block.nodes)),
        "cross_layers": len(attentions) - len(cache),
        "moe_layers": sum(1 for _ in places(graph, frozenset({"experts"}))),
        "rotary_layouts": tuple(layouts),
        "topk": max(topk, default=0),
        "expert_scale": str(scales[0]) if scales else None,
        "biases": any(p.kind == "bias" for part in parts for p in part.parameters),
        "tied": is_tied(graph),
        "dtype": dtype,
        "head_dims": tuple(dict.fromkeys(layer.key_dim for layer in cache)),
    }
