"""The residual stream after every layer, from each witness: where an error begins and how it grows.

Nothing here decides whether a folder passes; logits do. ONNX Runtime is asked through copies of the
models, in memory, with one more output a layer; a copy may be fused differently than its model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llamagen.emit.onnx.emit import LAYER_MARK, PACKED_LAYER_MARK
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.ir.flatten import FlatGraph
from llamagen.ir.pipeline import Pipeline
from llamagen.ir.reference import ReferenceResult
from llamagen.verify.exact_products import make_exact
from llamagen.verify.numerics import FloatArray
from llamagen.verify.pieces import GraphsWitness, OpenPiece, Piece, in_place
from llamagen.verify.scenario import Scenario, Values
from llamagen.verify.stored import graph_of
from llamagen.verify.witnesses import OnnxWitness, ReferenceWitness, TorchWitness

if TYPE_CHECKING:
    import onnx

Keep = Callable[[str, FloatArray], None]
"""Takes what a layer, by its role path, hands on."""

_TAPS: Mapping[str, str] = {LAYER_MARK: "layer/", PACKED_LAYER_MARK: "packed layer/"}
"""Mark of a value -> prefix of the output that is added for it, before the layer's role path."""


@dataclass(frozen=True, slots=True)
class LayerId:
    """A layer of one of the graphs of a model."""

    graph: str
    path: str


@dataclass(frozen=True)
class Layers:
    """Pieces of a witness that tell what their layers do: a scenario goes through them as through any."""

    name: str
    pieces: Mapping[str, Piece]
    pipeline: Pipeline | None
    seen: dict[LayerId, list[FloatArray]] = field(default_factory=dict)

    def of(self, scenario: Scenario) -> dict[LayerId, FloatArray]:
        """The residual stream after each layer, [tokens, D], in execution order.

        Padding is left out. A layer of images has a row for each of their patches.
        """
        self.seen.clear()
        told = {name: _Told(piece, self.keeper(name)) for name, piece in self.pieces.items()}
        scenario.given(GraphsWitness(self.name, told, self.pipeline))
        once = () if self.pipeline is None else self.pipeline.once
        return {
            layer: np.concatenate([v.reshape(-1, v.shape[-1]) for v in values])
            if layer.graph in once
            else scenario.of_tokens(values)
            for layer, values in self.seen.items()
        }

    def keeper(self, graph: str) -> Keep:
        def keep(path: str, value: FloatArray) -> None:
            self.seen.setdefault(LayerId(graph, path), []).append(value)

        return keep


@dataclass(frozen=True)
class _Told:
    """A piece whose layers go to ``keep``."""

    piece: Piece
    keep: Keep

    @property
    def name(self) -> str:
        return self.piece.name

    def open(self) -> OpenPiece:
        match self.piece:
            case ReferenceWitness(flat=flat):
                return replace(self.piece, told=_of_reference(flat, self.keep)).open()
            case TorchWitness():
                return _TorchTold(self.piece, self.keep)
            case OnnxWitness():
                return _OnnxTold(self.piece.open(), self.keep)
            case other:
                raise TypeError(f"{other.name} cannot tell what its layers do")


def _of_reference(flat: FlatGraph, keep: Keep) -> Callable[[ReferenceResult], None]:
    def told(result: ReferenceResult) -> None:
        for layer in flat.layers:
            keep(layer.path, np.asarray(result.values[layer.value], dtype=np.float64))

    return told


class _TorchTold:
    def __init__(self, witness: TorchWitness, keep: Keep) -> None:
        self.model = witness.model
        self.open_piece = witness.open()
        self.keep = keep

    def run(self, values: Values) -> Values:
        hooks = [
            module.register_forward_hook(self.hook(path))
            for path, module in self.model.named_modules()
            if path.rpartition(".")[2].isdecimal()  # the layers of a stack are numbered
        ]
        try:
            return self.open_piece.run(values)
        finally:
            for hook in hooks:
                hook.remove()

    def hook(self, path: str) -> Callable[[object, object, object], None]:
        def keep(module: object, given: object, result: object) -> None:
            self.keep(path, _carried(result))

        return keep


def _carried(result: object) -> FloatArray:
    """A layer's tensor; the first of several is the one that is carried."""
    import torch

    tensor = result[0] if isinstance(result, tuple) else result
    assert isinstance(tensor, torch.Tensor)
    return np.asarray(tensor.detach().double().numpy(), dtype=np.float64)


class _OnnxTold:
    def __init__(self, piece: OpenPiece, keep: Keep) -> None:
        self.piece = piece
        self.keep = keep

    def run(self, values: Values) -> Values:
        made = self.piece.run(values)
        plain, packed = _TAPS[LAYER_MARK], _TAPS[PACKED_LAYER_MARK]
        rest: dict[str, NDArray[np.generic]] = {}
        for name, value in made.items():
            if name.startswith(plain):
                self.keep(name.removeprefix(plain), np.asarray(value, dtype=np.float64))
            elif name.startswith(packed):
                self.keep(
                    name.removeprefix(packed),
                    in_place(np.asarray(value, dtype=np.float64), values["attention_mask"]),
                )
            else:
                rest[name] = value
        return rest


def onnx_pieces(
    folder: Path, graphs: Sequence[str], options: OpenOptions
) -> dict[str, Piece] | None:
    """Sessions that also give their layers; None where a model does not say which values those are."""
    found: dict[str, Piece] = {}
    marked = False
    for name in graphs:
        model = graph_of(folder / f"{name}.onnx")
        make_exact(model.graph)
        marked |= _tap(model)
        session = open_session(model.SerializeToString(), options, folder)
        found[name] = OnnxWitness(session, file=name, made_for=options.made_for)
    return found if marked else None


def _tap(model: onnx.ModelProto) -> bool:
    """Add a float32 output for every value marked as a layer; whether there is one."""
    from onnx import TensorProto, helper

    marked = [
        (value.name, _TAPS[entry.key] + path)
        for value in (*model.graph.value_info, *model.graph.output)
        for entry in value.metadata_props
        if entry.key in _TAPS
        for path in entry.value.split()
    ]
    for name, output in marked:
        model.graph.node.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    return bool(marked)
