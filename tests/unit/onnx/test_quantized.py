"""Quantised weights in ONNX Runtime's operators: real sessions on single operators, any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from llamagen.emit.onnx.builder import Builder, Quantized
from llamagen.emit.onnx.encode import encode_rows
from llamagen.emit.onnx.initializers import Encoding, Initializer, encoded
from llamagen.emit.onnx.profile import profile_named
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.ops.dims import B, S

Array = np.ndarray


def parts(weight: Array, encoding: Encoding) -> dict[str, Array]:
    whole = Initializer.of("w", weight.shape, "float32")
    entries = encoded(whole, encoding, "float32")
    found = encode_rows(entries, weight)
    assert {e.name: e.shape for e in entries} == {n: a.shape for n, a in found.items()}
    return {name.removeprefix("w_"): array for name, array in found.items()}


def decoded(found: Mapping[str, Array], bits: int, width: int) -> Array:
    """float64, by the operators' description; another way than llamagen/verify/codes.py reads them."""
    codes, scales = found["codes"], found["scales"].astype(np.float64)
    rows, blocks = scales.shape
    flat = codes.reshape(rows, -1)
    points = np.full((rows, blocks), 2 ** (bits - 1))
    if bits == 4:
        values = np.empty((rows, 2 * flat.shape[1]))
        values[:, 0::2], values[:, 1::2] = flat % 16, flat // 16
    else:
        values = flat.astype(np.float64)
    if "zero_points" in found:
        stored = found["zero_points"]
        for b in range(blocks):
            points[:, b] = stored[:, b] if bits == 8 else stored[:, b // 2] // 16 ** (b % 2) % 16
    size = values.shape[1] // blocks
    return ((values - np.repeat(points, size, 1)) * np.repeat(scales, size, 1))[:, :width]


def run(node: onnx.NodeProto, arrays: Mapping[str, Array], x: Array, out: tuple[int, ...]) -> Array:
    kind = TensorProto.INT64 if x.dtype == np.int64 else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    found: Array = open_session(model.SerializeToString(), OpenOptions(threads=1)).run(
        None, {"x": x}
    )[0]
    return found


def computed(
    arrays: Mapping[str, Array],
    encoding: Encoding,
    shape: tuple[int, ...],
    x: Array,
    lower: Callable[[Builder, Quantized, ir.Value], ir.Value],
) -> Array:
    """What the nodes that ``lower`` makes of a quantised weight give for ``x``."""
    profile = profile_named("ort-cpu")
    b = Builder(profile, "float32")

    def value(name: str, array: Array) -> ir.Value:
        return b.value(name, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape))

    stored = {name: value(name, array) for name, array in arrays.items()}
    for name, one in stored.items():
        one.const_value = ir.Tensor(arrays[name], name=name)
    inputs = value("x", x)
    points = stored.get("zero_points")
    y = lower(b, Quantized(encoding, shape, stored["codes"], stored["scales"], points), inputs)
    opsets = {"": profile.opset, "com.microsoft": 1}
    constants = (*stored.values(), *b.constants)
    graph = ir.Graph([inputs], [y], nodes=b.nodes, initializers=constants, opset_imports=opsets)
    model = ir.to_proto(ir.Model(graph, ir_version=profile.ir_version))
    session = open_session(model.SerializeToString(), OpenOptions(threads=1))
    found: Array = session.run(None, {"x": x})[0]
    return found


def product(x: Array, weight: Array, encoding: Encoding, level: int) -> tuple[Array, Array]:
    """What MatMulNBits computes, and the weight it has."""
    found = parts(weight, encoding)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales", *(["zero_points"] if "zero_points" in found else [])],
        ["y"],
        domain="com.microsoft",
        K=weight.shape[1],
        N=weight.shape[0],
        bits=encoding.bits,
        block_size=encoding.block,
        accuracy_level=level,
    )
    y = run(node, found, x, (*x.shape[:-1], len(weight)))
    return y, decoded(found, encoding.bits, weight.shape[1])


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / expected.std())


cases = given(
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64, 128]),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(8, 200),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=40)
@cases
def test_products_in_float32(
    bits: int, block: int, symmetric: bool, m: int, n: int, k: int, seed: int
) -> None:
    """Any number of features: what a last block lacks is padding."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, m, k)).astype(np.float32)
    weight = random.standard_normal((n, k)).astype(np.float32)
    encoding = Encoding("blocks", bits, block, symmetric, 1)  # type: ignore[arg-type]
    y, real = product(x, weight, encoding, level=1)
    scale = np.linalg.norm(x, axis=-1, keepdims=True) * np.linalg.norm(real, axis=-1)
    assert (np.abs(y - x.astype(np.float64) @ real.T) <= 1e-6 * scale + 1e-6).all()


def by_block(x: Array, block: int) -> Array:
    """Activations as accuracy level 4 sees them: int8 with a scale a block, rounded to nearest even."""
    blocks = -(-x.shape[-1] // block)
    padded = np.zeros((*x.shape[:-1], blocks * block), np.float32)
    padded[..., : x.shape[-1]] = x
    apart = padded.reshape(*x.shape[:-1], blocks, block)
    scale = np.abs(apart).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    rounded = np.rint(apart * inverse) * scale.astype(np.float64)
    return rounded.reshape(padded.shape)[..., : x.shape[-1]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_accuracy_level_4_rounds(bits: int, block: int, symmetric: bool) -> None:
    """Nothing but the activations: with them rounded alike, float64 agrees to float32's own error."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 320)).astype(np.float32)
    weight = random.standard_normal((48, 320)).astype(np.float32)
    encoding = Encoding("blocks", bits, block, symmetric, 4)  # type: ignore[arg-type]
    y, real = product(x, weight, encoding, level=4)
    assert relative(y, by_block(x, block) @ real.T) < 3e-6
    assert relative(y, x @ real.T) > 1e-3, "the kernel does round"


@pytest.mark.parametrize("rows", [1, 5])
def test_what_w8a8_rounds(rows: int) -> None:
    """All activations of a call share one scale and zero point."""
    random = np.random.default_rng(rows)
    x = random.standard_normal((rows, 200)).astype(np.float32)
    weight = random.standard_normal((24, 200)).astype(np.float32)
    found = parts(weight, Encoding("channels"))
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "codes", "scales"], ["y"], domain="com.microsoft"
    )
    y = run(node, found, x, (rows, 24))
    real = found["codes"].astype(np.float64) * found["scales"]
    assert np.abs(real.T - weight).max() <= 0.5001 * found["scales"].max()
    low, high = min(0, x.min()), max(0, x.max())
    scale = (np.float32(high) - np.float32(low)) / np.float32(255)
    zero = np.rint(-low / scale)
    seen = np.clip(np.rint(x / scale) + zero, 0, 255)
    exact = (seen - zero) @ found["codes"].astype(np.float64)
    # a CPU without VNNI adds products in pairs, in 16 bits that saturate (ONNX Runtime's notes on U8S8)
    pairs = [
        seen[:, k : k + 2] @ found["codes"][k : k + 2].astype(np.float64) for k in range(0, 200, 2)
    ]
    summed = sum(np.clip(pair, -(2**15), 2**15 - 1) for pair in pairs)
    saturated = summed - zero * found["codes"].sum(axis=0, dtype=np.float64)
    assert not np.array_equal(saturated, exact), "the inputs tell them apart"
    errors = [relative(y, sums * scale * found["scales"]) for sums in (exact, saturated)]
    assert min(errors) < 3e-6, errors


def test_w8a8_has_a_scale_for_each_token() -> None:
    """One with inputs a thousand times as large leaves the others as exact as they are alone."""
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 200)).astype(np.float32)
    x[0] *= 1000
    weight = random.standard_normal((24, 200)).astype(np.float32)
    arrays, encoding = parts(weight, Encoding("channels")), Encoding("channels")
    found = computed(
        arrays, encoding, weight.shape, x, lambda b, whole, value: whole.product(b, value, None)
    )
    for row, wanted in zip(found, x.astype(np.float64) @ weight.T, strict=True):
        assert relative(row, wanted) < 0.05


@settings(max_examples=20)
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64]),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_gathered_exactly(
    bits: int, block: int, symmetric: bool, blocks: int, seed: int
) -> None:
    """An odd number of blocks too, whose last zero point of four bits has a byte of its own."""
    random = np.random.default_rng(seed)
    table = random.standard_normal((30, block * blocks)).astype(np.float32)
    encoding = Encoding("blocks", bits, block, symmetric, 4)  # type: ignore[arg-type]
    found = parts(table, encoding)
    ids = random.integers(0, 30, (2, 7))
    y = computed(
        found, encoding, table.shape, ids, lambda b, whole, value: whole.gather(b, value, (B, S))
    )
    assert np.array_equal(y, decoded(found, bits, block * blocks)[ids].astype(np.float32))
