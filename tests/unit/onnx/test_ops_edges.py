"""Lowerings at the edges: extreme operands, masks that hide all, ties, and where a result is rounded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llamagen.emit.onnx.data import attach_arrays, serialize
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.onnx.profile import OnnxDType
from llamagen.emit.options import ExportOptions

from .op_cases import (
    CACHED,
    EXPERTS,
    HEADS,
    MASK,
    MAX,
    RMS,
    B,
    Case,
    S,
    X,
    operands_of,
)
from .single import (
    compare,
    feed,
    float32,
    int64,
    model,
    normal,
    one_op,
    random_weights,
    rounded,
)

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
def test_extreme_operands(op: str, attrs: Mapping[str, Any]) -> None:
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
        one_op("rms_norm", (X,), {"features": 12, "eps": 1e-5}),
        ExportOptions(dtype="float16"),
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", ["mul_scalar", "div_scalar", "add_scalar"])
def test_a_constant_is_not_rounded_before_it_is_used(op: str, dtype: OnnxDType) -> None:
    """0.1 fits neither dtype: the result is that of float32, rounded once."""
    wide = model("B", "S", 512)
    found = compare(op, (wide,), [normal(wide)], dtype, value=0.1)
    wanted = rounded(found.reference[0], dtype)
    assert (rounded(found.onnx[0], dtype) == wanted).mean() > 0.995


def test_interleaved_rotation_is_rounded_once() -> None:
    """float16: pairs are turned in float32, so nearly every value is the exact one rounded."""
    x, table = model("B", 4, "S", 512), float32("B", "S", 256)
    case = Case("rotate", (x, table, table), {"layout": "interleaved"})
    arrays = operands_of(case)
    found = compare("rotate", case.operands, arrays, "float16", layout="interleaved")
    wanted = rounded(found.reference[0], "float16")
    assert (found.onnx[0].astype(np.float64) == wanted).mean() > 0.995
