"""All graphs of a spec: the text model at ``root`` and those under ``graphs``, which hand values over by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llamagen.diagnostics import LlamagenError
from llamagen.ir.build import Builder
from llamagen.ir.flatten import cross_name
from llamagen.ir.graph import Graph, parameters, places
from llamagen.ops.op import Parameter, State, TensorType
from llamagen.spec.resolved import ResolvedSpec

MAIN = "model"
"""The name of the graph at ``root`` beside those under ``graphs``."""


def build_all(resolved: ResolvedSpec) -> dict[str, Graph]:
    """Every graph of a spec by name, ``model`` (the text model) first; just that one for most specs.

    Raises LlamagenError as ``build`` does, and LG407 when graphs do not fit together: a hand-over with two shapes,
    or a weight that two graphs have in two shapes.
    """
    builders = {MAIN: Builder(resolved)} | {n: Builder(resolved, n) for n in resolved.spec.graphs}
    graphs = {name: builder.run() for name, builder in builders.items()}
    if resolved.spec.graphs:
        last = builders[MAIN]
        last.find_unused(set[str]().union(*(b.scope.read for b in builders.values())))
        if last.findings:
            raise LlamagenError(*last.findings)
        clash = _clash(graphs)
        if clash is not None:
            raise LlamagenError.of("LG407", clash, span=resolved.place("graphs"))
    return graphs


def _clash(graphs: Mapping[str, Graph]) -> str | None:
    handed: dict[str, tuple[str, TensorType]] = {}
    weights: dict[str, tuple[str, Parameter]] = {}
    writes = {name: crossing(graph, "write") for name, graph in graphs.items()}
    written = {n for names in writes.values() for n in names}
    for name, graph in graphs.items():
        read = crossing(graph, "read")
        missing = [n for n in read if n not in written]
        if missing:
            return f"graph `{name}` reads `{missing[0]}`, which no graph writes"
        handed_over = (*writes[name].items(), *read.items())
        for value, type_ in (*graph.outputs, *((v.id, v.type) for v in graph.inputs), *handed_over):
            other, known = handed.setdefault(value, (name, type_))
            if known != type_:
                return f"`{value}` is {known} in graph `{other}` and {type_} in `{name}`"
        for path, parameter in parameters(graph).items():
            other, same = weights.setdefault(path, (name, parameter))
            if same != parameter:
                return f"weight `{path}` differs in graphs `{other}` and `{name}`"
    return None


def crossing(graph: Graph, way: Literal["read", "write"]) -> dict[str, TensorType]:
    """Names and types of the keys and values that a graph reads from another, or writes for others."""
    found: dict[str, TensorType] = {}
    for i, here in enumerate(places(graph, State.WRITTEN if way == "write" else State.READ)):
        for end, value in zip(("key", "value"), here.node.results, strict=True):
            found[cross_name(i, end)] = here.block.values[value].type
    return found


def names_elsewhere(graphs: Mapping[str, Graph], name: str) -> tuple[str, ...]:
    """How names of weights begin that graph ``name`` does not have and others do, as short as can be.

    ``N`` stands for the number of a layer. A name that this graph has for some layers only stands as it is.
    """
    own = parameters(graphs[name])
    known = {any_layer(path) for path in own}
    found: dict[str, None] = {}
    for path in all_parameters(graphs):
        if path in own:
            continue
        words = any_layer(path).split(".")
        starts = (".".join(words[: i + 1]) + "." * (i + 1 < len(words)) for i in range(len(words)))
        free = (s for s in starts if not any(o.startswith(s) for o in known))
        found[next(free, any_layer(path))] = None
    return tuple(found)


def any_layer(path: str) -> str:
    """``model.layers.N.mlp`` for each layer."""
    return ".".join("N" if word.isdecimal() else word for word in path.split("."))


def all_parameters(graphs: Mapping[str, Graph]) -> dict[str, Parameter]:
    """Role path -> parameter of a model that is several graphs: shared weights once."""
    return {path: p for graph in graphs.values() for path, p in parameters(graph).items()}


def names_read(resolved: ResolvedSpec) -> frozenset[str]:
    """Names of the spec (hyperparameters, constants, patterns) that some graph of it depends on."""
    builders = [Builder(resolved), *(Builder(resolved, name) for name in resolved.spec.graphs)]
    for builder in builders:
        builder.run()
    return frozenset[str]().union(*(builder.scope.read for builder in builders))
