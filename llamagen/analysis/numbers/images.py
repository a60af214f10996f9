"""What images cost: the graphs that see them, the tokens they stand for, what is kept of them while text is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamagen.analysis.numbers.compute import FlopCount, flops_of
from llamagen.analysis.numbers.memory import activations_of
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph
from llamagen.ir.pipeline import pipeline_of
from llamagen.ops.op import TensorType, elements


@dataclass(frozen=True, slots=True)
class ImageCost:
    """``count`` entries of the size ``I`` for each sequence: tiles where every tile is an input, else images."""

    count: int
    inputs: tuple[str, ...]
    """Name and shape of each input that images come in by."""
    encoder: FlopCount
    """FLOPs of the graphs that are run once for the images, whole batch. Their head is no vocabulary."""
    tokens: int
    """Tokens of a sequence that the images stand for."""
    kept_bytes: int
    """What the encoder hands over, whole batch; it is kept while text is generated."""
    activation_peak: int
    prefill: FlopCount
    """The graphs that are run for text, at the stated workload."""
    decode: FlopCount


def image_cost(
    graphs: Mapping[str, Graph], count: int, batch: int, context: int, value_bytes: int
) -> ImageCost | None:
    """What ``count`` images a sequence cost beside ``context`` tokens; none for a model of text."""
    pipeline = pipeline_of(graphs)
    if pipeline is None or not pipeline.once:
        return None
    flat = [flatten(graphs[name]) for name in pipeline.once]
    given = {name: f.types[name] for f in flat for name in f.inputs if name in pipeline.images}
    each_row = any("B" in dim.symbols for type_ in given.values() for dim in type_.shape)
    images = {"I": count if each_row else count * batch}
    encoded = {"B": batch, "S": 0, "P": 0, **images}
    kept = [
        t for f, name in zip(flat, pipeline.once, strict=True) for t in _handed(graphs[name], f)
    ]
    return ImageCost(
        count,
        tuple(f"{name} {type_}" for name, type_ in given.items()),
        _flops(graphs, pipeline.once, encoded),
        sum(p.rows * count for p in pipeline.placeholders.values()),
        value_bytes * sum(elements(t.shape).evaluate(encoded) for t in kept),
        max(activations_of(graphs[n], value_bytes).peak(encoded) for n in pipeline.once),
        _flops(graphs, pipeline.steps, {"B": batch, "S": context, "P": 0, **images}),
        _flops(graphs, pipeline.steps, {"B": batch, "S": 1, "P": context, **images}),
    )


def encoder_flops(graphs: Mapping[str, Graph]) -> int | None:
    """FLOPs of seeing one image or tile; none for a model of text."""
    pipeline = pipeline_of(graphs)
    if pipeline is None or not pipeline.once:
        return None
    return _flops(graphs, pipeline.once, {"B": 1, "S": 0, "P": 0, "I": 1}).total


def _handed(graph: Graph, flat: FlatGraph) -> Iterator[TensorType]:
    """What a graph makes for others: its outputs, and keys and values for their cross-attention."""
    yield from (type_ for _, type_ in graph.outputs)
    yield from (flat.types[id] for id in flat.handed_out.values())


def _flops(
    graphs: Mapping[str, Graph], names: tuple[str, ...], sizes: Mapping[str, int]
) -> FlopCount:
    reports = [flops_of(graphs[name]) for name in names]
    return FlopCount(
        sum(r.matmul.evaluate(sizes) for r in reports),
        sum(r.attention.evaluate(sizes) for r in reports),
        sum(r.head.evaluate(sizes) for r in reports),
    )
