"""Parameters and weights of a model that is several graphs, each weight once, by what it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamagen.analysis.numbers.params import (
    Classifier,
    Component,
    ComponentCount,
    ParameterReport,
    Storage,
    count_parameters,
    is_tied,
    part_bytes,
    weight_bytes,
)
from llamagen.ir.graph import MAIN, Block, Graph, OpPart, instances, join
from llamagen.ir.pipeline import reads_tokens


@dataclass(frozen=True, slots=True)
class _Extra:
    """A part that the text model lacks."""

    component: Component
    part: OpPart


def whole_parameters(graphs: Mapping[str, Graph]) -> ParameterReport:
    """Parameters of all graphs by component. What is computed from images alone counts as vision.

    Keys and values that an encoder makes for a layer of the decoder belong to that layer's attention.
    """
    text = graphs[MAIN]
    report = count_parameters(text)
    extras = list(_extras(graphs))
    if not extras:
        return report
    counts = {c.component: (c.count, c.active) for c in report.components}
    for extra in extras:
        size = sum(p.count for p in extra.part.parameters)
        count, active = counts.get(extra.component, (0, 0))
        counts[extra.component] = (count + size, active + size)
    rows = tuple(ComponentCount(c, *counts[c]) for c in Component if c in counts)
    return ParameterReport(rows, is_tied(text))


def whole_weight_bytes(graphs: Mapping[str, Graph], form: Storage) -> int:
    """Bytes of the weights of all graphs in ``form``, each weight once."""
    return weight_bytes(graphs[MAIN], form) + sum(part_bytes(e.part, form) for e in _extras(graphs))


def _extras(graphs: Mapping[str, Graph]) -> Iterator[_Extra]:
    if len(graphs) == 1:
        return
    known = {path for path, _, _ in _op_parts(graphs[MAIN])}
    readers = {name: Classifier(graph) for name, graph in graphs.items() if reads_tokens(graph)}
    of_text: dict[str, tuple[Classifier, Block]] = {}
    for name, classifier in readers.items():
        for here in instances(graphs[name]):
            if here.path:
                of_text.setdefault(here.path, (classifier, here.block))
    for name, graph in graphs.items():
        for path, block, part in _op_parts(graph):
            if path in known or not part.parameters:
                continue
            known.add(path)
            if name in readers:
                yield _Extra(readers[name].component(block, part), part)
                continue
            owner = of_text.get(path.rpartition(".")[0])
            component = (
                owner[0].component(owner[1], part) if owner is not None else Component.VISION
            )
            yield _Extra(component, part)


def _op_parts(graph: Graph) -> Iterator[tuple[str, Block, OpPart]]:
    for here in instances(graph):
        for part in here.block.parts.values():
            if isinstance(part, OpPart):
                yield join(here.path, part.name), here.block, part
