"""The residual stream after every layer, from each witness: where an error begins and how it grows.

Nothing here decides whether a folder passes; logits do. ONNX Runtime is asked through a copy of the
model, in memory, with one more output a layer. The copy may be fused differently than the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamagen.emit.onnx.emit import LAYER_MARK
from llamagen.ir.flatten import FlatGraph
from llamagen.ir.reference import Cache, evaluate
from llamagen.verify.numerics import FloatArray
from llamagen.verify.scenario import IntArray, Scenario
from llamagen.verify.witnesses import OnnxSession, OnnxWitness, TorchSession, WeightReader

if TYPE_CHECKING:
    import onnx
    import torch

_TAP = "llamagen.layer/"
"""Prefix of the added outputs of a copied model, before the layer's role path."""


class LayerSession(Protocol):
    """A session that also gives the layers of its last step."""

    def layers(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> LayerValues:
        """One step; role path of a layer -> what it hands on, [B, S, D], in execution order."""


LayerValues = Mapping[str, FloatArray]


class LayerWitness(Protocol):
    def start(self) -> LayerSession:
        """A session with an empty cache."""


def layers_of(scenario: Scenario, witness: LayerWitness) -> dict[str, FloatArray]:
    """Role path -> the residual stream of every real token, [tokens, D], after that layer."""
    session = witness.start()
    steps = [session.layers(*call) for call in scenario.calls()]
    return {path: scenario.of_tokens([step[path] for step in steps]) for path in steps[0]}


@dataclass(frozen=True)
class ReferenceLayers:
    """In float64."""

    flat: FlatGraph
    weights: WeightReader

    def start(self) -> LayerSession:
        return _ReferenceLayerSession(self)


class _ReferenceLayerSession:
    def __init__(self, witness: ReferenceLayers) -> None:
        self.witness = witness
        self.past: Cache | None = None

    def layers(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> LayerValues:
        w = self.witness
        result = evaluate(
            w.flat, w.weights, input_ids, mask, positions, self.past, keep_values=True
        )
        self.past = result.present
        return {
            layer.path: np.asarray(result.values[layer.value], dtype=np.float64)
            for layer in w.flat.layers
        }


@dataclass(frozen=True)
class TorchLayers:
    """Outputs of the generated module's layers, seen by hooks."""

    model: torch.nn.Module
    paths: Sequence[str]

    def start(self) -> LayerSession:
        return _TorchLayerSession(self)


class _TorchLayerSession:
    def __init__(self, witness: TorchLayers) -> None:
        self.witness = witness
        self.session = TorchSession(witness.model)

    def layers(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> LayerValues:
        modules = dict(self.witness.model.named_modules())
        seen: dict[str, FloatArray] = {}

        def keeper(path: str) -> _Hook:
            def keep(module: object, given: object, result: object) -> None:
                seen[path] = _first(result)

            return keep

        hooks = [modules[p].register_forward_hook(keeper(p)) for p in self.witness.paths]
        try:
            self.session.step(input_ids, mask, positions)
        finally:
            for hook in hooks:
                hook.remove()
        return {path: seen[path] for path in self.witness.paths}


class _Hook(Protocol):
    def __call__(self, module: object, given: object, result: object) -> None: ...


def _first(result: object) -> FloatArray:
    """A layer's tensor; the first of several is the one that is carried."""
    import torch

    tensor = result[0] if isinstance(result, tuple) else result
    assert isinstance(tensor, torch.Tensor)
    return np.asarray(tensor.detach().double().numpy(), dtype=np.float64)


@dataclass(frozen=True)
class OnnxLayers:
    """ONNX Runtime over a copy of a model that also gives its layers."""

    witness: OnnxWitness

    @staticmethod
    def of_file(model_file: Path) -> OnnxLayers | None:
        """None for a model that does not say which of its values are layers."""
        import onnx

        from llamagen.emit.onnx.session import open_session

        model = onnx.load(str(model_file), load_external_data=False)
        if not _tapped(model):
            return None
        session = open_session(model.SerializeToString(), data_folder=model_file.parent)
        return OnnxLayers(OnnxWitness(session))

    def start(self) -> LayerSession:
        return _OnnxLayerSession(self.witness)


class _OnnxLayerSession:
    def __init__(self, witness: OnnxWitness) -> None:
        self.session = OnnxSession(witness.session)

    def layers(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> LayerValues:
        self.session.step(input_ids, mask, positions)
        return {
            name.removeprefix(_TAP): np.asarray(value, dtype=np.float64)
            for name, value in self.session.outputs_of_step.items()
            if name.startswith(_TAP)
        }


def _tapped(model: onnx.ModelProto) -> bool:
    """Add a float32 output for every value marked as a layer; whether there is one."""
    from onnx import TensorProto, helper

    marked = {
        value.name: entry.value
        for value in (*model.graph.value_info, *model.graph.output)
        for entry in value.metadata_props
        if entry.key == LAYER_MARK
    }
    for name, path in marked.items():
        cast = helper.make_node("Cast", [name], [_TAP + path], to=TensorProto.FLOAT)
        model.graph.node.append(cast)
        model.graph.output.append(
            helper.make_tensor_value_info(_TAP + path, TensorProto.FLOAT, None)
        )
    return bool(marked)
