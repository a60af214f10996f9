"""A spec with random weights at unit scale, built once, and its witnesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamagen.ir.bounded import with_caches
from llamagen.ir.elaborate import build, build_all
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph, all_parameters
from llamagen.ir.pipeline import Pipeline, pipeline_of
from llamagen.ops.op import Parameter
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.verify.scenarios import Scenario
from llamagen.verify.witnesses import (
    GraphsWitness,
    OneGraph,
    OnnxWitness,
    ReferenceWitness,
    TorchWitness,
)
from llamagen.weights.random import random_values

SPECS = Path(__file__).parents[1] / "specs"
FOREIGN = tuple(
    sorted(p.stem for p in (SPECS / "foreign").glob("*.yaml") if not p.stem.startswith("_"))
)
NOT_CODE = ("diffllama", "lfm2", "qwen3_next")
"""Two attentions a layer, or states beside keys and values: no code for transformers says so."""


@dataclass(frozen=True)
class RandomModel:
    resolved: ResolvedSpec
    seed: int = 7
    _made: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def named(name: str) -> RandomModel:
        return RandomModel(Registry(roots=(SPECS,)).load(name))

    @staticmethod
    def of_text(text: str) -> RandomModel:
        return RandomModel(Registry(roots=(SPECS,)).load_text(text))

    @cached_property
    def graph(self) -> Graph:
        return build(self.resolved)

    def bounded(self) -> RandomModel:
        """The same model with its caches bounded: equal weights, another graph."""
        other = RandomModel(self.resolved, self.seed, self._made)
        other.__dict__["graphs"] = with_caches(self.graphs, "bounded")
        other.__dict__["graph"] = other.graphs["model"]
        return other

    @cached_property
    def flat(self) -> FlatGraph:
        return flatten(self.graph)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return self.graph.parameters

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """All graphs of the spec; ``model`` is the text model."""
        return build_all(self.resolved)

    @cached_property
    def all_parameters(self) -> dict[str, Parameter]:
        return all_parameters(self.graphs)

    @property
    def vocab_size(self) -> int:
        size = self.resolved.spec.hyperparameters.vocab_size
        assert size is not None
        return size

    def weight(self, path: str) -> NDArray[np.float32]:
        """Biases, gates and norm gains are live."""
        if path not in self._made:
            p = self.all_parameters[path]
            self._made[path] = random_values(self.seed, path, p.shape, p.kind)
        return self._made[path]

    @cached_property
    def reference(self) -> ReferenceWitness:
        return ReferenceWitness(self.flat, self.weight)

    @cached_property
    def rounded(self) -> ReferenceWitness:
        return ReferenceWitness(
            self.flat, self.weight, rounding="float32", name="rounded reference"
        )

    def rounded_for(self, scenario: Scenario) -> ReferenceWitness:
        """What rounding alone does; with far positions the angles are rounded too, as both backends do."""
        return replace(self.rounded, float32_angles=scenario.shift > 0)

    @cached_property
    def pipeline(self) -> Pipeline | None:
        return pipeline_of(self.graphs)

    def whole(self, backend: str) -> GraphsWitness:
        """All graphs by ``reference``, ``rounded`` (that in float32), ``onnx`` or ``torch``."""
        return self._whole[backend]

    @cached_property
    def _whole(self) -> dict[str, GraphsWitness]:
        def graphs(make: Callable[[Graph], OneGraph]) -> dict[str, OneGraph]:
            return {name: make(graph) for name, graph in self.graphs.items()}

        made = {
            "reference": graphs(lambda g: ReferenceWitness.of_graph(g, self.weight)),
            "rounded": graphs(lambda g: ReferenceWitness.of_graph(g, self.weight, "float32")),
            "onnx": graphs(lambda g: OnnxWitness.of_graph(g, self.weight)),
            "torch": graphs(lambda g: TorchWitness.of_graph(g, self.weight)),
        }
        return {name: GraphsWitness(name, found, self.pipeline) for name, found in made.items()}

    @cached_property
    def onnx(self) -> OnnxWitness:
        return OnnxWitness.of_graph(self.graph, self.weight)

    @cached_property
    def torch(self) -> TorchWitness:
        return TorchWitness.of_graph(self.graph, self.weight)
