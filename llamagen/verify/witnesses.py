"""One graph by three backends: the float64 reference, the generated PyTorch module, an ONNX file.

Each is a piece of a model that is several graphs (verify/pieces.py), and by itself the witness of a model of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import DEFAULTS, ExportOptions
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph, parameters
from llamagen.ir.reference import ReferenceResult, Rounding, evaluate_graph
from llamagen.verify.numerics import FloatArray, RunDType
from llamagen.verify.pieces import OpenPiece, PieceSession, slots
from llamagen.verify.routed_torch import directed
from llamagen.verify.routing import Routers
from llamagen.verify.scenario import NOTHING, Session, Values

if TYPE_CHECKING:
    import onnxruntime as ort
    import torch


CROSS = "cross_key_values"
"""What the generated module takes keys and values of another graph as, and how their names begin outside."""

WeightReader = Callable[[str], NDArray[np.generic]]
"""Role path -> tensor, read when it is asked for."""


@dataclass(frozen=True)
class ReferenceWitness:
    """The float64 interpreter. Weights are read at every use, so a model need not fit in memory."""

    flat: FlatGraph
    weights: WeightReader
    rounding: Rounding = None
    """Round the result of every op, to see what a dtype alone can do to this model."""
    name: str = "reference"
    outputs: tuple[str, ...] = ("logits",)
    """What the graph calls its results."""
    float32_angles: bool = False
    """Compute rotations in float32 too, which matters at far positions."""
    told: Callable[[ReferenceResult], None] | None = None
    """Gets the result of every step with all values in it, if someone wants them."""
    routers: Routers | None = None
    """The experts to take, in place of those that its own scores are for."""

    @staticmethod
    def of_graph(
        graph: Graph,
        weights: WeightReader,
        rounding: Rounding = None,
        float32_angles: bool = False,
    ) -> ReferenceWitness:
        return ReferenceWitness(
            flatten(graph),
            weights,
            rounding=rounding,
            outputs=graph.output_names,
            float32_angles=float32_angles,
        )

    def open(self) -> OpenPiece:
        return _OpenReference(self)

    def start(self, images: Values = NOTHING) -> Session:
        return PieceSession(self.open())


class _OpenReference:
    def __init__(self, witness: ReferenceWitness) -> None:
        self.witness = witness
        self.past: tuple[tuple[FloatArray, FloatArray], ...] | None = None
        self.script = witness.routers.open() if witness.routers is not None else None

    def run(self, values: Values) -> Values:
        w, script = self.witness, self.script
        past = self.past if w.flat.slots else None
        with nullcontext() if script is None else script.call(slots(values)):
            result = evaluate_graph(
                w.flat,
                w.weights,
                values,
                past,
                keep_values=w.told is not None,
                rounding=w.rounding,
                float32_angles=w.float32_angles,
                choose=None if script is None else script.choose,
            )
        if w.told is not None:
            w.told(result)
        self.past = result.present
        return {**dict(zip(w.outputs, result.outputs, strict=True)), **result.cross}


@dataclass(frozen=True)
class OnnxWitness:
    """An ONNX Runtime session over a model with the standard names of inputs and outputs."""

    session: ort.InferenceSession
    name: str = "onnx"
    file: str = "the model"
    made_for: str = ""

    @staticmethod
    def of_graph(
        graph: Graph,
        weights: WeightReader,
        options: ExportOptions = DEFAULTS,
        threads: int = 1,
    ) -> OnnxWitness:
        """Emit ``graph`` with its weights inside; for models far below 2 GB."""
        from llamagen.emit.onnx.data import attach_arrays, serialize
        from llamagen.emit.onnx.emit import emit_onnx
        from llamagen.emit.onnx.session import OpenOptions, open_session

        emitted = emit_onnx(graph, options)
        attach_arrays(emitted, lambda path: weights(path).astype(np.float32, copy=False))
        return OnnxWitness(open_session(serialize(emitted), OpenOptions(threads)))

    def open(self) -> OpenPiece:
        return _OpenOnnx(self)

    def start(self, images: Values = NOTHING) -> Session:
        return PieceSession(self.open())


class _OpenOnnx:
    def __init__(self, witness: OnnxWitness) -> None:
        self.witness = witness
        self.session = witness.session
        self.inputs = {i.name: i.type for i in self.session.get_inputs()}
        self.past: dict[str, NDArray[np.generic]] | None = None

    def run(self, values: Values) -> Values:
        from llamagen.emit.onnx.emit import INPUT_NAMES
        from llamagen.emit.onnx.session import (
            OpenOptions,
            as_input,
            as_past,
            computed,
            computing,
            empty_cache,
        )

        named = {INPUT_NAMES.get(name, name): value for name, value in values.items()}
        batch = len(next(iter(named.values())))
        if self.past is None:
            self.past = empty_cache(self.session, batch)
        given = {**named, **self.past}
        feeds = {n: as_input(given[n], kind) for n, kind in self.inputs.items() if n in given}
        with computing(self.witness.file, OpenOptions(made_for=self.witness.made_for)):
            made = computed(self.session, feeds)
        for name, value in made.items():
            if name == "logits" and (value.ndim != 3 or len(value) != batch):
                message = f"{self.witness.file} gives logits of the shape {list(value.shape)}"
                raise LlamagenError.of("LG760", message, help="export the model again")
        self.past = as_past(made)
        return {name: value for name, value in made.items() if not name.startswith("present.")}


@dataclass(frozen=True)
class TorchWitness:
    """The generated PyTorch module."""

    model: torch.nn.Module
    name: str = "torch"
    outputs: tuple[str, ...] = ("logits",)
    """What the graph calls its results."""
    routers: Routers | None = None
    """The experts to take, in place of those that its own scores are for."""

    @staticmethod
    def of_graph(graph: Graph, weights: WeightReader, dtype: RunDType = "float32") -> TorchWitness:
        """Emit ``graph``, import the file and load the weights by role path."""
        import torch

        from llamagen.emit.torch.check import load_module
        from llamagen.emit.torch.module import emit_torch
        from llamagen.emit.torch.names import class_names

        module = load_module(emit_torch(graph))
        wanted: torch.dtype = getattr(torch, dtype)
        with torch.device("meta"):
            model: torch.nn.Module = getattr(module, class_names(graph)[graph.root])()
        state = {
            path: torch.from_numpy(np.array(weights(path), dtype=np.float32)).to(wanted)
            for path in parameters(graph)
        }
        tied: Mapping[str, str] = getattr(module, "TIED", {})
        state.update({name: state[source] for name, source in tied.items()})
        model.load_state_dict(state, strict=True, assign=True)
        return TorchWitness(model.eval(), outputs=graph.output_names)

    def open(self) -> OpenPiece:
        return _OpenTorch(self)

    def start(self, images: Values = NOTHING) -> Session:
        return PieceSession(self.open())


class _OpenTorch:
    def __init__(self, witness: TorchWitness) -> None:
        from inspect import signature
        from sys import modules

        self.model = witness.model
        self.outputs = witness.outputs
        self.arguments = set(signature(self.model.forward).parameters)
        self.dtype = next(self.model.parameters()).dtype
        self.cache: object = None
        if "cache" in self.arguments:
            self.cache = modules[type(self.model).__module__].KVCache()
        self.script = witness.routers.open() if witness.routers is not None else None

    def run(self, values: Values) -> Values:
        if self.script is None:
            return self.computed(values)
        with self.script.call(slots(values)), directed(self.script):
            return self.computed(values)

    def computed(self, values: Values) -> Values:
        import torch

        from llamagen.emit.onnx.emit import INPUT_NAMES

        named = {INPUT_NAMES.get(name, name): value for name, value in values.items()}
        given: dict[str, object] = {
            n: self.tensor(v) for n, v in named.items() if n in self.arguments
        }
        if CROSS in self.arguments:
            given[CROSS] = self.pairs(values)
        with torch.no_grad():
            if self.cache is not None:
                given["cache"] = self.cache
            made = self.model(**given)
        several = list(made) if isinstance(made, tuple) else [made]
        written = several.pop() if len(several) > len(self.outputs) or not self.outputs else []
        found = dict(zip(self.outputs, several, strict=True))
        for i, (key, value) in enumerate(written):
            found |= {f"{CROSS}.{i}.key": key, f"{CROSS}.{i}.value": value}
        return {name: value.float().numpy() for name, value in found.items()}

    def pairs(self, values: Values) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of another graph, in the order of their slots."""
        count = sum(name.startswith(f"{CROSS}.") for name in values) // 2
        names = [(f"{CROSS}.{i}.key", f"{CROSS}.{i}.value") for i in range(count)]
        return [(self.tensor(values[k]), self.tensor(values[v])) for k, v in names]

    def tensor(self, value: NDArray[np.generic]) -> torch.Tensor:
        """Ids and masks as they are, anything else in the model's dtype."""
        import torch

        if np.issubdtype(value.dtype, np.integer):
            return torch.from_numpy(np.array(value))
        return torch.from_numpy(np.array(value, dtype=np.float64)).to(self.dtype)
