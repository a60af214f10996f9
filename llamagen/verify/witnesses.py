"""Witnesses of a model's logits: the float64 reference, the generated PyTorch module, an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llamagen.ir.flatten import FlatGraph
from llamagen.ir.graph import Graph, parameters
from llamagen.ir.reference import Rounding, evaluate
from llamagen.verify.numerics import FloatArray, RunDType
from llamagen.verify.scenario import IntArray, Session

if TYPE_CHECKING:
    import onnxruntime as ort
    import torch

WeightReader = Callable[[str], NDArray[np.generic]]
"""Role path -> tensor, read when it is asked for."""


@dataclass(frozen=True)
class ReferenceWitness:
    """The float64 interpreter. Weights are read at every use, so a model need not fit in memory."""

    flat: FlatGraph
    weights: WeightReader
    rounding: Rounding = None
    """Round the result of every op, to see what a dtype alone can do to this model."""
    float32_angles: bool = False
    """And compute rotations in float32, which matters at far positions."""
    name: str = "reference"

    def start(self) -> Session:
        return _ReferenceSession(self)


class _ReferenceSession:
    def __init__(self, witness: ReferenceWitness) -> None:
        self.witness = witness
        self.past: tuple[tuple[FloatArray, FloatArray], ...] | None = None

    def step(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> FloatArray:
        w = self.witness
        result = evaluate(
            w.flat,
            w.weights,
            input_ids,
            mask,
            positions,
            self.past,
            rounding=w.rounding,
            float32_angles=w.float32_angles,
        )
        self.past = result.present
        return result.logits


@dataclass(frozen=True)
class OnnxWitness:
    """An ONNX Runtime session over a model with the standard names of inputs and outputs."""

    session: ort.InferenceSession
    name: str = "onnx"

    @staticmethod
    def of_graph(
        graph: Graph, weights: WeightReader, dtype: RunDType = "float32", threads: int = 1
    ) -> OnnxWitness:
        """Emit ``graph`` with its weights inside; for models far below 2 GB."""
        from llamagen.emit.onnx.data import attach_arrays, serialize
        from llamagen.emit.onnx.emit import emit_onnx
        from llamagen.emit.onnx.session import open_session

        emitted = emit_onnx(graph, dtype=dtype)
        attach_arrays(emitted, lambda path: weights(path).astype(np.float32, copy=False))
        return OnnxWitness(open_session(serialize(emitted), threads))

    def start(self) -> Session:
        return OnnxSession(self.session)


class OnnxSession:
    """Keeps the cache, and all outputs of the last step by name."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.outputs = [o.name for o in session.get_outputs()]
        self.past: dict[str, NDArray[np.generic]] | None = None
        self.outputs_of_step: Mapping[str, NDArray[np.generic]] = {}

    def step(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> FloatArray:
        from llamagen.emit.onnx.session import as_past, empty_cache

        if self.past is None:
            self.past = empty_cache(self.session, len(input_ids))
        feeds: dict[str, NDArray[np.generic]] = {
            "input_ids": np.ascontiguousarray(input_ids),
            "attention_mask": np.ascontiguousarray(mask),
            "position_ids": np.ascontiguousarray(positions),
            **self.past,
        }
        known = {i.name for i in self.session.get_inputs()}
        results = self.session.run(self.outputs, {k: v for k, v in feeds.items() if k in known})
        named = dict(zip(self.outputs, results, strict=True))
        self.past = as_past(named)
        self.outputs_of_step = named
        return np.asarray(named["logits"], dtype=np.float64)


@dataclass(frozen=True)
class TorchWitness:
    """The generated PyTorch module."""

    model: torch.nn.Module
    name: str = "torch"

    @staticmethod
    def of_graph(graph: Graph, weights: WeightReader, dtype: RunDType = "float32") -> TorchWitness:
        """Emit ``graph``, import the file and load the weights by role path."""
        import torch

        from llamagen.emit.torch.emit import emit_torch
        from llamagen.emit.torch.load import load_module

        module = load_module(emit_torch(graph))
        wanted: torch.dtype = getattr(torch, dtype)
        with torch.device("meta"):
            model: torch.nn.Module = getattr(module, graph.root)()
        state = {
            path: torch.from_numpy(np.array(weights(path), dtype=np.float32)).to(wanted)
            for path in parameters(graph)
        }
        tied: Mapping[str, str] = getattr(module, "TIED", {})
        state.update({name: state[source] for name, source in tied.items()})
        model.load_state_dict(state, strict=True, assign=True)
        return TorchWitness(model.eval())

    def start(self) -> Session:
        return TorchSession(self.model)


class TorchSession:
    """Keeps what the module returned as its past."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.past: object = None

    def step(self, input_ids: IntArray, mask: IntArray, positions: IntArray) -> FloatArray:
        import torch

        with torch.no_grad():
            logits, self.past = self.model(
                torch.from_numpy(np.ascontiguousarray(input_ids)),
                position_ids=torch.from_numpy(np.ascontiguousarray(positions)),
                attention_mask=torch.from_numpy(np.ascontiguousarray(mask)),
                past=self.past,
            )
        return np.asarray(logits.double().numpy(), dtype=np.float64)
