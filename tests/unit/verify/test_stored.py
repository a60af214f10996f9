"""Weights read back out of a folder: each parameter, also where several are stored as one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.data import SOURCES, attach_arrays, serialize, write_models
from llamagen.emit.onnx.emit import OnnxModel
from llamagen.emit.onnx.initializers import Initializer, Placement, Source, quantization_of
from llamagen.emit.onnx.profile import PORTABLE
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.emit.options import NOT_QUANTIZED
from llamagen.ops.op import Parameter
from llamagen.verify.stored import stored_weights
from llamagen.weights.pieces import Piece

RANDOM = np.random.default_rng(3)
WEIGHTS = {
    "q": RANDOM.standard_normal((8, 4), np.float32),
    "k": RANDOM.standard_normal((2, 4), np.float32),
    "v": RANDOM.standard_normal((2, 4), np.float32),
    "o": RANDOM.standard_normal((4, 12), np.float32),
}
WANTED = {name: Parameter(name, array.shape, "matrix") for name, array in WEIGHTS.items()}


def model() -> OnnxModel:
    """``x @ [q | k | v].T @ o.T``."""
    joined = Initializer.joined("qkv", [Source(n, WEIGHTS[n].shape) for n in "qkv"], "float32")
    table = (joined, Initializer.of("o", WEIGHTS["o"].shape, "float32"))
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape([1, 4]))
    weights = [ir.Value(name=t.name, type=kind, shape=ir.Shape(t.shape)) for t in table]
    first = ir.node("Gemm", [x, weights[0]], {"transB": 1})
    second = ir.node("Gemm", [first.outputs[0], weights[1]], {"transB": 1})
    first.outputs[0].type = kind
    second.outputs[0].name, second.outputs[0].type = "y", kind
    second.outputs[0].shape = ir.Shape([1, 4])
    graph = ir.Graph(
        [x], second.outputs, nodes=[first, second], initializers=weights, opset_imports={"": 24}
    )
    properties = {"llamagen.spec_digest": "0"}
    made = ir.Model(graph, ir_version=11, metadata_props=properties)
    codes = quantization_of(NOT_QUANTIZED, PORTABLE)
    return OnnxModel(made, table, PORTABLE, "float32", "all", None, codes, runtime="1.32")


def copy(spots: Sequence[Placement]) -> Iterator[Piece]:
    (spot,) = spots
    parts = [WEIGHTS[source.path].reshape(-1) for source in spot.initializer.sources]
    data = np.concatenate(parts).view(np.uint8)
    yield Piece(len(data), lambda: [(spot.offset, data)])


def test_parameters_are_read_out_of_a_joined_tensor(tmp_path: Path) -> None:
    write_models({"model": model()}, tmp_path, copy)
    stored = stored_weights(tmp_path)
    stored.require(WANTED, "model.onnx")
    assert set(stored.places) == set(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert np.array_equal(stored.read(name), array)


def test_arrays_in_memory_are_joined_alike(tmp_path: Path) -> None:
    write_models({"model": model()}, tmp_path, copy)
    inside = model()
    attach_arrays(inside, WEIGHTS.__getitem__)
    x = RANDOM.standard_normal((1, 4), np.float32)
    expected = x @ np.concatenate([WEIGHTS[n] for n in "qkv"]).T @ WEIGHTS["o"].T
    for source in (tmp_path / "model.onnx", serialize(inside)):
        found = open_session(source, OpenOptions(threads=1)).run(["y"], {"x": x})[0]
        assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('[["q", [8, 4]], ["k", [2, 4]]]', "but joins `q` [8, 4], `k` [2, 4]"),
        ('[["q", [8, 4]], ["k", [2, 4]], ["v", [2, 3]]]', "but joins `q`"),
        ("[]", "but joins nothing"),
        ('[["q", []]]', "but joins `q`"),
        ('[["q"', "does not say which parameters it joins"),
        ('{"q": 3}', "does not say which parameters it joins"),
    ],
)
def test_a_joined_tensor_that_lies_about_its_parts_is_refused(
    said: str, reason: str, tmp_path: Path
) -> None:
    write_models({"model": model()}, tmp_path, copy)
    proto = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    (told,) = (p for t in proto.graph.initializer for p in t.metadata_props if p.key == SOURCES)
    told.value = said
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(LlamagenError) as caught:
        stored_weights(tmp_path)
    assert caught.value.diagnostics[0].code == "LG773"
    assert reason in caught.value.diagnostics[0].message
