"""The numbers of one architecture, from its graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llamagen.analysis.family.architecture import Architecture, Slot, Totals, Weight
from llamagen.analysis.labels import BYTES_16, collapse
from llamagen.analysis.numbers.compute import count_flops, flops_of
from llamagen.analysis.numbers.images import encoder_flops
from llamagen.analysis.numbers.memory import CacheReport, cache_of
from llamagen.analysis.numbers.params import Component, count_parameters
from llamagen.analysis.numbers.whole import whole_parameters
from llamagen.ir.build_graphs import MAIN, all_parameters, build_all
from llamagen.ir.graph import Graph, Place, parameters, places
from llamagen.ops.op import Parameter, Role
from llamagen.spec.resolved import ResolvedSpec


def measure(resolved: ResolvedSpec) -> Architecture:
    """Builds every graph. Raises LlamagenError as ``build_all`` does."""
    graphs = build_all(resolved)
    text = graphs[MAIN]
    weights = all_parameters(graphs)
    cache = cache_of(text)
    attentions = tuple(places(text, Role.ATTENTION))
    return Architecture(
        _totals(graphs, weights, cache, attentions),
        _ops(graphs),
        tuple(graphs),
        tuple(_slots(cache, attentions)),
        tuple(_folded(weights)),
    )


def _totals(
    graphs: Mapping[str, Graph],
    weights: Mapping[str, Parameter],
    cache: CacheReport,
    attentions: tuple[Place, ...],
) -> Totals:
    text = graphs[MAIN]
    counted = count_parameters(text)
    whole = sum(p.count for p in weights.values())
    return Totals(
        params=whole,
        active_params=whole - (counted.total - counted.active),
        kv_bytes_per_token=cache.per_token(BYTES_16),
        flops_per_token=count_flops(flops_of(text), 1, 1, 0).total,
        local_layers=sum(1 for layer in cache.layers if layer.reach is not None),
        nope_layers=sum(1 for a in attentions if not _rotates(a)),
        moe_layers=sum(1 for _ in places(text, Role.EXPERTS)),
        biases=sum(1 for p in parameters(text).values() if p.kind == "bias"),
        vision_params=whole_parameters(graphs).of(Component.VISION),
        image_flops=encoder_flops(graphs),
    )


def _rotates(attention: Place) -> bool:
    return any(node.row.role is Role.ROTATION for node in attention.block.nodes)


def _ops(graphs: Mapping[str, Graph]) -> tuple[str, ...]:
    blocks = (block for graph in graphs.values() for block in graph.blocks.values())
    nodes = (node for block in blocks for node in block.nodes)
    return tuple(sorted({node.op for node in nodes if not node.row.control}))


def _slots(cache: CacheReport, attentions: tuple[Place, ...]) -> Iterator[Slot]:
    rotated = {a.path: _rotates(a) for a in attentions}
    for one in cache.layers:
        yield Slot(
            one.path,
            one.kv_heads,
            one.key_dim,
            one.value_dim,
            one.window,
            one.chunk,
            rotated.get(one.path),
        )


def _folded(weights: Mapping[str, Parameter]) -> Iterator[Weight]:
    times: dict[tuple[str, tuple[int, ...]], int] = {}
    for path, parameter in weights.items():
        key = (collapse(path)[0], parameter.shape)
        times[key] = times.get(key, 0) + 1
    for (path, shape), count in times.items():
        yield Weight(path, count, shape)
