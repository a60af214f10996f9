"""Every lowering against the float64 reference, in every dtype, extreme operands included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llamagen.emit.onnx.data import attach_arrays, serialize
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.onnx.lowering import LOWERINGS
from llamagen.emit.onnx.profile import ONNX_DTYPES, OnnxDType
from llamagen.ir.graph import AttrValue, DType, TensorType
from llamagen.ir.ops import OPS

from .single import (
    SIZES,
    Array,
    boolean,
    compare,
    concrete,
    feed,
    float32,
    int64,
    model,
    normal,
    one_op,
    random_weights,
    rounded,
)

MAX, RMS = 1e-5, 1.5e-6
"""PROOF.md: float32, over the standard deviation."""

ROUNDOFF: Mapping[OnnxDType, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoffs; an op rounds its result and at most its inner tables or a product, so rms stays below two."""

B, S, P = SIZES["B"], SIZES["S"], SIZES["P"]
T = P + S
X = model("B", "S", 12)
HEADS = model("B", 4, "S", 6)
TABLE = float32("B", "S", 3)
ONE_TABLE = float32(1, "S", 3)
CACHED = model("B", 2, "P + S", 6)
MASK = boolean("B", 1, "S", "P + S")


@dataclass(frozen=True)
class Case:
    op: str
    operands: tuple[TensorType, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = " ".join(str(t.shape) for t in self.operands)
        return f"{self.op}({shapes} {dict(self.attrs)})"


def unary(op: str, **attrs: AttrValue) -> Case:
    return Case(op, (X,), attrs)


EXPERTS = {"num_experts": 5, "features": 12, "intermediate": 7}
ROPE = {"theta": 10000.0, "dim": 6}
LLAMA3 = {"scaling": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

CASES = (
    unary("silu"),
    unary("gelu"),
    unary("gelu", approximate="tanh"),
    unary("relu"),
    unary("relu2"),
    unary("sigmoid"),
    unary("tanh"),
    unary("softplus"),
    unary("exp"),
    unary("square"),
    unary("neg"),
    unary("softcap", cap=1.7),
    unary("clamp", low=-0.5, high=0.75),
    unary("clamp", low=-0.5),
    unary("clamp", high=0.75),
    unary("rms_normalize", eps=1e-5),
    unary("float32"),
    unary("softmax"),
    unary("softmax", axis=1),
    unary("sum"),
    unary("sum", axis=1),
    unary("mean"),
    unary("add_scalar", value=0.1),
    unary("mul_scalar", value=-1.7),
    unary("div_scalar", value=3.3),
    unary("topk", k=3),
    unary("split_heads", heads=3),
    unary("split", sizes=(2, 9, 1)),
    unary("split", sizes=(12,)),
    unary("reshape", shape="B, S, 3, 4"),
    unary("reshape", shape="B, 3, S, 4"),
    unary("reshape", shape="12, B*S"),
    unary("reshape", shape="S, B, 12"),
    unary("reshape", shape="B, 12*S"),
    unary("permute", axes=(1, 0, 2)),
    unary("slice", start=2, stop=11),
    Case("slice", (model("B", 5, "S"),), {"start": 1, "stop": 4, "axis": 1}),
    Case("expand", (model("B", "S", 1),), {"shape": "B, S, 12"}),
    Case("expand", (model("S", 1),), {"shape": "4, S, 12"}),
    Case("replace_rows", (X, model(3, 12), int64("B", "S")), {"id": 1}),
    Case("replace_rows", (X, model(1, 3, 12), int64("B", "S")), {"id": 1}),
    Case("grid_rope_table", (), {"rows": 3, "columns": 4, "dim": 16, "theta": 100.0, "extra": 2}),
    Case("grid_rope_table", (), {"rows": 2, "columns": 5, "dim": 4, "theta": 1e4}),
    Case("sqrt", (X,)),
    Case("model_dtype", (float32("B", "S", 12),)),
    Case("merge_heads", (HEADS,)),
    Case("repeat_heads", (model("B", 1, "S", 6),), {"heads": 4}),
    Case("add", (X, X)),
    Case("add", (X, float32("B", 1, 12))),
    Case("sub", (X, model("B", "S", 1))),
    Case("mul", (HEADS, float32("B", 1, "S", 1))),
    Case("div", (X, X)),
    Case("gather", (X, int64("B", "S", 2))),
    Case("concat", (X, X, model("B", "S", 5)), {"axis": -1}),
    Case("concat", (X, model("B", "P", 12)), {"axis": 1}),
    Case("embedding", (int64("B", "S"),), {"rows": 9, "features": 12}),
    Case("linear", (X,), {"in_features": 12, "out_features": 10, "bias": True}),
    Case("linear", (X,), {"in_features": 12, "out_features": 10, "bias": False}),
    Case("linear", (model("B", 12),), {"in_features": 12, "out_features": 10, "bias": True}),
    Case("linear", (HEADS,), {"in_features": 6, "out_features": 5, "bias": True}),
    Case("linear", (float32("B", "S", 12),), {"in_features": 12, "out_features": 4, "bias": True}),
    Case("rms_norm", (X,), {"features": 12, "eps": 1e-5}),
    Case("rms_norm", (X,), {"features": 12, "eps": 1e-6, "cast": "after_weight"}),
    Case("rms_norm", (X,), {"features": 12, "eps": 1e-6, "offset": 1.0, "cast": "after_weight"}),
    Case("rms_norm", (HEADS,), {"features": 6, "eps": 1e-6, "offset": 1.0}),
    Case("rms_norm", (float32("B", "S", 12),), {"features": 12, "eps": 1e-5}),
    Case("layer_norm", (X,), {"features": 12, "eps": 1e-5}),
    Case("layer_norm", (X,), {"features": 12, "eps": 1e-5, "weight": False, "bias": False}),
    Case("layer_norm", (X,), {"features": 12, "eps": 1e-5, "weight": False}),
    Case("layer_norm", (X,), {"features": 12, "eps": 1e-5, "bias": False}),
    Case("parameter", (), {"shape": (3, 4)}),
    Case("rope_table", (int64("B", "S"),), ROPE),
    Case("rope_table", (int64("B", "S"),), ROPE | {"scaling": "linear", "factor": 4.0}),
    Case("rope_table", (int64("B", "S"),), ROPE | LLAMA3 | {"original_max_positions": 40}),
    Case("rope_table", (int64("B", "S"),), ROPE | LLAMA3 | {"high_freq_factor": 1.0}),
    Case(
        "rope_table",
        (int64("B", "S"),),
        {"theta": 10000.0, "dim": 16, "scaling": "yarn", "factor": 4.0, "attention_factor": 1.14}
        | {"original_max_positions": 64},
    ),
    Case("rotate", (HEADS, TABLE, TABLE)),
    Case("rotate", (HEADS, TABLE, TABLE), {"layout": "interleaved"}),
    Case("rotate", (model("B", 2, "S", 10), TABLE, TABLE)),
    Case("rotate", (model("B", 2, "S", 10), TABLE, TABLE), {"layout": "interleaved"}),
    Case("rotate", (HEADS, ONE_TABLE, ONE_TABLE), {"layout": "interleaved"}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S"))),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"window": 3}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"chunk": 3}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"window": 2, "chunk": 4}),
    Case("attention", (HEADS, CACHED, CACHED, MASK)),
    Case("attention", (HEADS, CACHED, CACHED)),
    Case("attention", (HEADS, CACHED, model("B", 2, "P + S", 5), MASK), {"scale": 0.3}),
    Case("attention", (HEADS, CACHED, CACHED, MASK), {"softcap": 1.5}),
    Case("attention", (HEADS, CACHED, CACHED, MASK), {"alibi": True}),
    Case("attention", (HEADS, CACHED, CACHED), {"alibi": True}),
    Case("attention", (HEADS, CACHED, CACHED, MASK, model(4)), {"softcap": 2.5}),
    Case("attention", (HEADS, CACHED, CACHED, MASK, model(4)), {"alibi": True, "scale": 0.2}),
    Case("attention_temperature", (int64("B", "S"),), {"scale": 0.1, "floor_scale": 3}),
    *(
        Case(
            "experts",
            (X, int64("B", "S", 2), model("B", "S", 2)),
            EXPERTS | {"layout": layout, "scale": scale, "act": act},
        )
        for layout, scale, act in (
            ("out_in", "output", "silu"),
            ("in_out", "input", "silu"),
            ("out_in", "input", "gelu_tanh"),
            ("in_out", "output", "relu2"),
        )
    ),
)


def operands_of(case: Case) -> list[Array]:
    """Random operands that fit the op: positions, padding, masks, distinct experts."""
    rng = np.random.default_rng(11)
    arrays: list[Array] = []
    for i, t in enumerate(case.operands):
        shape = concrete(t)
        match case.op, t.dtype:
            case "experts", DType.INT64:
                rows = [rng.permutation(5)[: shape[-1]] for _ in range(B * S)]
                arrays.append(np.array(rows).reshape(shape))
            case "gather", DType.INT64:
                arrays.append(rng.integers(0, 12, shape))
            case "replace_rows", DType.INT64:
                arrays.append(np.array([[1, 0, 1], [0, 1, 0]]))
            case "embedding", _:
                arrays.append(rng.integers(0, 9, shape))
            case "causal_mask", _ if i == 1:
                mask = np.ones(shape, np.int64)
                mask[1, : P + 1] = 0  # the first new token of row 1 is padding: it sees nothing
                arrays.append(mask)
            case _, DType.INT64:
                arrays.append(np.arange(P, P + S) + np.array([[0], [7]]))
            case _, DType.BOOL:
                seen = np.tril(np.ones(shape, bool), P)
                seen[1, :, :, : P + 1] = False
                arrays.append(seen)
            case "rotate", _ if i > 0:
                angles = rng.uniform(-4, 4, shape)
                table = np.cos(angles) if i == 1 else np.sin(angles)
                arrays.append(table.astype(np.float32).astype(np.float64))
            case "sqrt", _:
                arrays.append(np.abs(normal(t)))
            case "div", _ if i == 1:
                arrays.append(np.sign(normal(t, 5)) * (0.5 + np.abs(normal(t, 5))))
            case _:
                arrays.append(normal(t, 3 + i))
    return [a if a.dtype != np.float64 else a.astype(np.float32).astype(np.float64) for a in arrays]


def test_every_op_has_a_lowering_and_a_case() -> None:
    assert set(LOWERINGS) | {"cache"} == set(OPS)
    assert {c.op for c in CASES} | {"cache"} == set(OPS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_reference(case: Case) -> None:
    worst, rms = compare(case.op, case.operands, operands_of(case), **case.attrs).errors()
    assert worst <= MAX
    assert rms <= RMS


@pytest.mark.parametrize("dtype", [d for d in ONNX_DTYPES if d != "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reduced_dtypes_stay_within_their_roundoff(case: Case, dtype: OnnxDType) -> None:
    found = compare(case.op, case.operands, operands_of(case), dtype, **case.attrs)
    _, rms = found.errors()
    assert rms <= 2 * ROUNDOFF[dtype]


EXTREME = np.array(
    [0.0, -0.0, 1e-30, -1e-30, 1e-4, 17.9, -17.9, 30.0, -30.0, 88.0, -88.0, 3e4, -3e4, 1e15]
)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("silu", {}),
        ("gelu", {}),
        ("gelu", {"approximate": "tanh"}),
        ("sigmoid", {}),
        ("tanh", {}),
        ("softplus", {}),
        ("softmax", {}),
        ("softcap", {"cap": 30.0}),
        ("relu2", {}),
        ("rms_normalize", {"eps": 1e-5}),
    ],
)
def test_extreme_operands(op: str, attrs: Mapping[str, AttrValue]) -> None:
    """Each value is right to 1e-5 of itself or of one, whichever is larger; nothing overflows or turns NaN."""
    grid = np.broadcast_to(EXTREME, (B, S, len(EXTREME))).copy()
    found = compare(op, (model("B", "S", len(EXTREME)),), [grid], **attrs)
    got, want = found.onnx[0].astype(np.float64), found.reference[0]
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= 1e-5 * np.maximum(np.abs(want), 1)).all()


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e4, 1e15])
def test_rms_norm_at_every_scale(scale: float) -> None:
    """Squares near eps and far above it: an eps that is wrong by a tenth shows at 1e-3."""
    worst, rms = compare("rms_norm", (X,), [normal(X, scale=scale)], features=12, eps=1e-5).errors()
    assert worst <= MAX
    assert rms <= RMS


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_attention_with_large_scores(scale: float) -> None:
    operands = (HEADS, CACHED, CACHED, MASK)
    arrays = operands_of(Case("attention", operands))
    arrays[0] = arrays[0] * scale
    worst, rms = compare("attention", operands, arrays, scale=None, softcap=None).errors()
    assert worst <= MAX
    assert rms <= RMS


def test_a_query_that_sees_nothing_is_finite() -> None:
    operands = (HEADS, CACHED, CACHED, MASK)
    arrays = operands_of(Case("attention", operands))
    arrays[3] = np.zeros_like(arrays[3])
    found = compare("attention", operands, arrays)
    assert np.isfinite(found.onnx[0]).all()


def test_unchosen_experts_are_not_evaluated(tmp_path: Path) -> None:
    """Two matrix products for each expert that a token chose, none for the others."""
    operands = (X, int64("B", "S", 2), model("B", "S", 2))
    graph = one_op("experts", operands, EXPERTS)
    weights = random_weights(graph)
    emitted = emit_onnx(graph)
    attach_arrays(emitted, weights.__getitem__)
    chosen = np.broadcast_to(np.array([4, 1]), (B, S, 2)).copy()
    chosen[0, 0] = [4, 3]
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    running = ort.InferenceSession(serialize(emitted), options, providers=["CPUExecutionProvider"])
    arrays = {"x0": normal(operands[0]), "x1": chosen, "x2": normal(operands[2])}
    running.run(None, feed(running.get_inputs(), arrays))
    events = json.loads(Path(running.end_profiling()).read_text())
    kernels = [e for e in events if e["name"].endswith("kernel_time")]
    assert sum(e["args"]["op_name"] == "Gemm" for e in kernels) == 2 * 3


@pytest.mark.parametrize("cast", ["before_weight", "after_weight"])
def test_rms_norm_rounds_where_its_row_says(cast: str) -> None:
    """bfloat16: nearly all values are those of the stated rounding; those of the other differ in a quarter."""
    wide = model("B", "S", 512)
    gain = random_weights(one_op("rms_norm", (wide,), {"features": 512, "eps": 1e-5}))
    found = compare(
        "rms_norm", (wide,), [normal(wide)], "bfloat16", gain, features=512, eps=1e-5, cast=cast
    )
    x = rounded(normal(wide), "bfloat16")
    weight = rounded(gain["part.weight"], "bfloat16")
    normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
    orders = {
        "before_weight": rounded(weight * rounded(normed, "bfloat16"), "bfloat16"),
        "after_weight": rounded(weight * normed, "bfloat16"),
    }
    same = {name: (found.onnx[0] == want).mean() for name, want in orders.items()}
    assert same.pop(cast) > 0.995
    assert all(share < 0.9 for share in same.values())


def test_float16_rms_norm_keeps_the_gain_outside_the_float32_part() -> None:
    """stash_type 1 casts back before the gain; the operator takes and gives float16."""
    graph = emit_onnx(
        one_op("rms_norm", (X,), {"features": 12, "eps": 1e-5}), dtype="float16"
    ).model
    (node,) = graph.graph
    assert [v.dtype for v in (*node.inputs, *node.outputs) if v] == [ir.DataType.FLOAT16] * 3
    assert node.attributes["stash_type"].as_int() == 1


def test_topk_takes_the_first_of_equal_values() -> None:
    operand = model("B", "S", 6)
    ties = np.broadcast_to(np.array([1.0, 3.0, 3.0, 0.5, 3.0, 1.0]), (B, S, 6)).copy()
    found = compare("topk", (operand,), [ties], k=4)
    assert found.onnx[1][0, 0].tolist() == [1, 2, 4, 0]
    assert found.errors() == (0.0, 0.0)
