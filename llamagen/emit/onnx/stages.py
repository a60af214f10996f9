"""A text model in stages: graphs of some layers each, one after the other, over the data files of the whole.

What follows from the inputs alone (masks, angles) every stage computes for itself; what took weights is handed on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.data import MODEL_FILE
from llamagen.emit.onnx.emit import LAYER_MARK, PACKED_LAYER_MARK


@dataclass(frozen=True, slots=True)
class Stage:
    """One graph: ``inputs`` are inputs of the model and what stages before hand on, ``outputs`` what it gives."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"


def write_stages(folder: Path, count: int) -> tuple[Stage, ...]:
    """Cut the model of ``folder`` into graphs of as many layers each as possible, and write them beside it.

    Raises LG724 where there are fewer layers than stages.
    """
    model = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
    cut = _Cut(model)
    if not 1 < count <= len(cut.layers):
        message = f"{count} stages of a model with {len(cut.layers)} layers"
        help = "give every stage a layer, and make two stages or more"
        raise LlamagenError.of("LG724", message, help=help)
    ends = [cut.layers[len(cut.layers) * n // count - 1] for n in range(1, count)]
    stages = cut.stages(ends)
    for stage, graph in stages.items():
        onnx.save(graph, str(folder / stage.file))
    return tuple(stages)


class _Cut:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self.nodes = list(graph.node)
        self.makers = {name: n for n, node in enumerate(self.nodes) for name in node.output if name}
        self.weights = {one.name: one for one in graph.initializer}
        self.inputs = {one.name: one for one in graph.input}
        self.outputs = {one.name: one for one in graph.output}
        self.typed = {one.name: one for one in graph.value_info} | self.outputs
        marks = (LAYER_MARK, PACKED_LAYER_MARK)
        self.layers = [
            one.name
            for one in graph.value_info
            if any(prop.key in marks for prop in one.metadata_props)
        ]
        """What each layer hands on, in their order."""
        self.reads: list[set[str]] = [set(read_by(node)) for node in self.nodes]
        self.sources: list[frozenset[str]] = []
        """By node, what it follows from: weights, the call, the past."""
        for read in self.reads:
            self.sources.append(frozenset().union(*map(self.sources_of, read)))

    def sources_of(self, name: str) -> frozenset[str]:
        if name in self.makers:
            return self.sources[self.makers[name]]
        if name in self.weights:
            outside = self.weights[name].data_location == onnx.TensorProto.EXTERNAL
            return frozenset({"weights"} if outside else ())
        return frozenset({"past" if name.startswith("past_key_values.") else "call"})

    def is_made_again(self, name: str) -> bool:
        """What no product of a weight with a text went into: it is cheaper to compute than to hand on."""
        sources = self.sources_of(name)
        return "past" not in sources and sources != {"weights", "call"}

    def before(self, names: Iterable[str]) -> set[int]:
        """Nodes that ``names`` need."""
        found: set[int] = set()
        wanted = [self.makers[name] for name in names if name in self.makers]
        while wanted:
            node = wanted.pop()
            if node not in found:
                found.add(node)
                wanted += [self.makers[name] for name in self.reads[node] if name in self.makers]
        return found

    def leaves(self, nodes: Iterable[int]) -> set[str]:
        """Weights and pasts that they read."""
        read = set().union(*(self.reads[node] for node in nodes))
        outside = (name for name in read if name not in self.makers)
        return {name for name in outside if self.sources_of(name) & {"weights", "past"}}

    def stages(self, ends: list[str]) -> dict[Stage, onnx.ModelProto]:
        needs = {name: self.before([name]) for name in self.outputs}
        done, given = set[int](), set[str]()
        parts: list[tuple[set[int], list[str]]] = []
        for end in (*ends, None):
            if end is None:
                own = [name for name in self.outputs if name not in given]
            else:
                reached = self.leaves(self.before([end]))
                own = [n for n in needs if n not in given and self.leaves(needs[n]) <= reached]
            nodes = self.before([*own, *([end] if end else [])]) - done
            parts.append((nodes, own))
            done, given = done | nodes, given | set(own)
        owner = {node: n for n, (nodes, _) in enumerate(parts) for node in nodes}
        handed: list[list[str]] = [[] for _ in parts]
        taken: list[list[str]] = [[] for _ in parts]
        for n, (nodes, _) in enumerate(parts):
            read = dict.fromkeys(
                name for node in sorted(nodes) for name in sorted(self.reads[node])
            )
            for name in read:
                if name in self.makers and owner[self.makers[name]] < n:
                    if self.is_made_again(name):
                        nodes |= self.before([name])
                    else:
                        taken[n].append(name)
                        handed[owner[self.makers[name]]].append(name)
        return {
            stage: self.graph_of(stage, nodes)
            for n, (nodes, own) in enumerate(parts)
            for stage in [self.stage(n, nodes, taken[n], [*own, *dict.fromkeys(handed[n])])]
        }

    def stage(self, n: int, nodes: set[int], taken: list[str], gives: list[str]) -> Stage:
        read = set().union(*(self.reads[node] for node in nodes))
        return Stage(f"stage_{n}", (*(i for i in self.inputs if i in read), *taken), tuple(gives))

    def graph_of(self, stage: Stage, nodes: set[int]) -> onnx.ModelProto:
        kept = [self.nodes[node] for node in sorted(nodes)]
        read = set().union(*(self.reads[node] for node in nodes))
        inner = {name for node in kept for name in node.output}
        graph = onnx.helper.make_graph(
            kept,
            stage.name,
            [self.inputs.get(name) or self.typed[name] for name in stage.inputs],
            [self.typed[name] for name in stage.outputs],
            [one for name, one in self.weights.items() if name in read],
            value_info=[
                one
                for name, one in self.typed.items()
                if name in inner and name not in stage.outputs
            ],
        )
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.CopyFrom(graph)
        return model


def read_by(node: onnx.NodeProto) -> Iterable[str]:
    """Values that a node reads, those of graphs inside it too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            own = {name for inner in attribute.g.node for name in inner.output}
            own |= {one.name for one in (*attribute.g.input, *attribute.g.initializer)}
            for inner in attribute.g.node:
                yield from (name for name in read_by(inner) if name not in own)
            yield from (one.name for one in attribute.g.output if one.name not in own)
