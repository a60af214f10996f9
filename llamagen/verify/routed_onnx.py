"""ONNX Runtime asked which experts it chose: copies of the models, in memory, that give them as outputs.

Every router is a TopK whose places other operators read, so that nothing can be fused across the new output: tests
compare the logits of copy and model bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamagen.emit.onnx.emit import PACKED_LAYER_MARK
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.verify.exact_products import make_exact
from llamagen.verify.pieces import OpenPiece, in_place
from llamagen.verify.routing import Routing
from llamagen.verify.scenario import IntArray, Values
from llamagen.verify.stored import graph_of
from llamagen.verify.witnesses import OnnxWitness

if TYPE_CHECKING:
    import onnx

_OUTPUT = "router/"


@dataclass(frozen=True)
class RoutedOnnx:
    """One graph; ``seen`` gets the experts [B, S, k] of every router and call."""

    witness: OnnxWitness
    packed: bool
    """Whether real tokens come first in the model's rows."""
    seen: list[list[IntArray]] = field(default_factory=list)
    name: str = "onnx"

    def open(self) -> OpenPiece:
        self.seen.clear()
        return _OpenRouted(self, self.witness.open())


class _OpenRouted:
    def __init__(self, piece: RoutedOnnx, inner: OpenPiece) -> None:
        self.piece = piece
        self.inner = inner

    def run(self, values: Values) -> Values:
        made = self.inner.run(values)
        routers = [name for name in made if name.startswith(_OUTPUT)]
        for i, name in enumerate(routers):
            chosen = np.asarray(made[name], dtype=np.int64)
            batch, new = values["input_ids"].shape
            chosen = chosen.reshape(batch, new, -1)
            if self.piece.packed:
                chosen = in_place(chosen, values["attention_mask"])
            if i == len(self.piece.seen):
                self.piece.seen.append([])
            self.piece.seen[i].append(chosen)
        return {name: value for name, value in made.items() if name not in routers}


def routing_of(pieces: Mapping[str, RoutedOnnx]) -> Routing:
    """What was chosen since the pieces were opened."""
    return Routing(
        {
            graph: tuple(np.concatenate(calls, axis=1) for calls in piece.seen)
            for graph, piece in pieces.items()
            if piece.seen
        }
    )


def open_routed(model_file: Path, options: OpenOptions) -> tuple[RoutedOnnx, bool]:
    """The model with its choices as outputs, and whether products of a quantised one were made exact."""
    model = graph_of(model_file)
    exact = make_exact(model.graph)
    _tap(model)
    packed = any(
        entry.key == PACKED_LAYER_MARK
        for value in model.graph.value_info
        for entry in value.metadata_props
    )
    session = open_session(model.SerializeToString(), options, model_file.parent)
    witness = OnnxWitness(session, file=str(model_file), made_for=options.made_for)
    return RoutedOnnx(witness, packed), exact


def _tap(model: onnx.ModelProto) -> None:
    """Name the places of every router ``router/0``, ``router/1`` ... and give them as outputs."""
    from onnx import TensorProto, helper

    routers = [
        node
        for node in model.graph.node
        if node.op_type == "TopK" and any(a.name == "axis" and a.i == -1 for a in node.attribute)
    ]
    for i, node in enumerate(routers):
        name = f"{_OUTPUT}{i}"
        model.graph.node.append(helper.make_node("Identity", [node.output[1]], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
