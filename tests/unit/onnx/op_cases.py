"""A case for each lowering: op, operand types and attributes, and operands that fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamagen.emit.onnx.profile import OnnxDType
from llamagen.ops.op import AttrValue, DType, TensorType

from .single import (
    SIZES,
    Array,
    boolean,
    concrete,
    float32,
    int64,
    model,
    normal,
)

MAX, RMS = 1e-5, 1.5e-6
"""docs/proof.md: float32, over the standard deviation."""

ROUNDOFF: Mapping[OnnxDType, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoffs; an op rounds its result and at most its inner tables or a product, so rms stays below two."""

B, S, P = SIZES["B"], SIZES["S"], SIZES["P"]
T = P + S
X = model("B", "S", 12)
HEADS = model("B", 4, "S", 6)
TABLE = float32("B", "S", 3)
ONE_TABLE = float32(1, "S", 3)
TEXT = int64("B", "P + S")
QUERIES, VALUES, ONE = model("B", 8, "S", 6), model("B", 4, "S", 5), float32("B", 4, "S", 1)
CACHED4 = model("B", 4, "P + S", 6)
CACHED = model("B", 2, "P + S", 6)
MASK = boolean("B", 1, "S", "P + S")


@dataclass(frozen=True)
class Case:
    op: str
    operands: tuple[TensorType, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = " ".join(str(t.shape) for t in self.operands)
        return f"{self.op}({shapes} {dict(self.attrs)})"


def unary(op: str, **attrs: AttrValue) -> Case:
    return Case(op, (X,), attrs)


EXPERTS = {"num_experts": 5, "features": 12, "intermediate": 7}
CONV = {"in_channels": 3, "out_channels": 5}
ROPE: dict[str, AttrValue] = {"theta": 10000.0, "dim": 6}
LLAMA3: dict[str, AttrValue] = {
    "scaling": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
PAIRS = (1.0, 1.25, 4.0)

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
    *map(unary, ("log", "log2", "abs", "sin", "cos", "reciprocal", "floor", "ceil", "round")),
    unary("pow_scalar", value=1.5),
    *(
        unary(f"{op}_scalar", value=0.25)
        for op in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
    ),
    *(
        Case(op, operands)
        for op in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
        for operands in ((X, model("B", "S", 1)), (int64("B", "S"), int64("B", "S")))
    ),
    Case("equal_scalar", (int64("B", "S"),), {"value": 9.0}),
    Case("not_equal_scalar", (int64("B", "S"),), {"value": 9.0}),
    Case("logical_and", (MASK, boolean("B", 1, "S", 1))),
    Case("logical_or", (MASK, boolean("B", 1, "S", 1))),
    Case("logical_not", (MASK,)),
    Case("where", (MASK, model("B", 3, "S", 1), model("P + S"))),
    Case("where", (MASK, float32("B", 3, "S", "P + S"), model(1))),
    Case("where", (MASK, model("P + S")), {"then": -0.75}),
    Case("where", (MASK, model("P + S")), {"otherwise": 2.5}),
    Case("where", (MASK,), {"then": 1.5, "otherwise": 0.0}),
    Case("one_hot", (int64("B", "S"),), {"size": 11}),
    Case("maximum", (X, model("B", "S", 1))),
    Case("minimum", (X, model("B", "S", 1))),
    unary("max"),
    unary("max", axis=1),
    unary("min"),
    Case("pow", (X, X)),
    Case("matmul", (HEADS, model("B", 1, 6, 5))),
    Case("matmul", (X, float32("B", 12, "S"))),
    Case("einsum", (HEADS, CACHED4), {"equation": "B N S H, B N T H -> B N S T"}),
    Case("einsum", (HEADS, HEADS), {"equation": "B N S H, B M S H -> M B S N"}),
    Case("einsum", (X, model(3, 12, 5)), {"equation": "B S D, E D F -> B S E F"}),
    Case("einsum", (model("B", "S"), model(4)), {"equation": "B S, N -> B N S"}),
    Case("einsum", (HEADS, model(4, 6)), {"equation": "B N S H, N H -> B S"}),
    Case("limit_groups", (X,), {"groups": 4, "kept": 2}),
    Case("limit_groups", (X,), {"groups": 3, "kept": 1, "best": 1, "fill": 0.0}),
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
    Case("cache", (HEADS, HEADS)),
    Case("conv1d", (X, TEXT), {"channels": 12, "kernel": 3}),
    Case("conv1d", (X, TEXT), {"channels": 12, "kernel": 2, "bias": True}),
    Case("conv1d", (X, TEXT), {"channels": 12, "kernel": 6, "bias": True}),
    Case("linear_attention", (QUERIES, HEADS, VALUES, TEXT), {"rule": "linear"}),
    Case("linear_attention", (QUERIES, HEADS, VALUES, TEXT, ONE), {"rule": "gated", "scale": 0.3}),
    Case("linear_attention", (QUERIES, HEADS, VALUES, TEXT, ONE), {"rule": "delta"}),
    Case("linear_attention", (QUERIES, HEADS, VALUES, TEXT, HEADS, ONE), {"rule": "gated_delta"}),
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
        ROPE
        | {"dim": 16, "scaling": "yarn", "factor": 4.0, "attention_factor": 1.14}
        | {"original_max_positions": 64, "truncate": False},
    ),
    *(
        Case("rope_table", (int64("B", "S"),), {**ROPE, **kind, "original_max_positions": original})
        for original in (1, 4096)
        for kind in (
            {"scaling": "dynamic", "factor": 4.0},
            {"scaling": "longrope", "short_factor": PAIRS, "long_factor": PAIRS[::-1]},
        )
    ),
    Case("expand", (model("B", "S", 1),), {"shape": "B, S, 12"}),
    Case("expand", (model("S", 1),), {"shape": "4, S, 12"}),
    Case("replace_rows", (X, model(3, 12), int64("B", "S")), {"id": 1}),
    Case("replace_rows", (X, model(1, 3, 12), int64("B", "S")), {"id": 1}),
    Case("grid_rope_table", (), {"rows": 3, "columns": 4, "dim": 16, "theta": 100.0, "extra": 2}),
    Case("grid_rope_table", (), {"rows": 2, "columns": 5, "dim": 4, "theta": 1e4}),
    unary("pad", after=3),
    unary("pad", before=2, after=1, axis=1),
    unary("pad"),
    Case("conv2d", (model("B", 3, 7, 9),), CONV | {"kernel": 3, "stride": 2, "bias": True}),
    Case("conv2d", (model("12*S", 3, 8, 8),), CONV | {"kernel": 4, "stride": 4}),
    Case("tile_mask", (int64("B", 3),), {"tokens": 5, "padded": 8}),
    Case("tile_mask", (int64("B", "S", 2),), {"tokens": 3, "padded": 3}),
    Case("cross_mask", (int64("B", "S", 2, 3),), {"tokens": 4}),
    Case("cross_mask", (int64("B", "S", 4),), {"tokens": 1}),
    Case("rotate", (HEADS, ONE_TABLE, ONE_TABLE), {"layout": "interleaved"}),
    Case("rotate", (HEADS, TABLE, TABLE)),
    Case("rotate", (HEADS, TABLE, TABLE), {"layout": "interleaved"}),
    Case("rotate", (model("B", 2, "S", 10), TABLE, TABLE)),
    Case("rotate", (model("B", 2, "S", 10), TABLE, TABLE), {"layout": "interleaved"}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S"))),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"window": 3}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"chunk": 3}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"window": 2, "chunk": 4}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"window": 2, "keep": 1}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"chunk": 3, "keep": 2}),
    Case("causal_mask", (int64("B", "S"), int64("B", "P + S")), {"chunk": 9, "keep": 8}),
    Case("attention", (HEADS, CACHED, CACHED, MASK)),
    Case("attention", (HEADS, CACHED, CACHED)),
    Case("attention", (HEADS, CACHED, model("B", 2, "P + S", 5), MASK), {"scale": 0.3}),
    Case("attention", (HEADS, CACHED, CACHED, MASK), {"softcap": 1.5}),
    Case("attention", (HEADS, CACHED, CACHED, MASK), {"alibi": True}),
    Case("attention", (HEADS, CACHED, CACHED), {"alibi": True}),
    Case("attention", (HEADS, CACHED, CACHED, MASK, model(4)), {"softcap": 2.5}),
    Case("attention", (HEADS, CACHED, CACHED, MASK, model(4)), {"alibi": True, "scale": 0.2}),
    *(Case(op, (X, int64("B", "P + S"))) for op in ("first_token", "last_token", "mean_tokens")),
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
            case "tile_mask" | "cross_mask", _:
                marks = rng.integers(0, 2, shape)
                marks[1, 0] = 0  # text that sees no tile, or an image without one
                arrays.append(marks)
            case "embedding", _:
                arrays.append(rng.integers(0, 9, shape))
            case "causal_mask", _ if i == 1:
                mask = np.ones(shape, np.int64)
                mask[1, : P + 1] = 0  # the first new token of row 1 is padding: it sees nothing
                arrays.append(mask)
            case (
                "first_token" | "last_token" | "mean_tokens" | "conv1d" | "linear_attention",
                DType.INT64,
            ):
                mask = np.ones(shape, np.int64)
                mask[0, -1] = mask[1, P] = 0  # the last token of this call is padding, or the first
                arrays.append(mask)
            case "less" | "less_equal" | "greater" | "greater_equal" | "equal", DType.INT64 if i:
                arrays.append(np.full(shape, P + 1))
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
            case "linear_attention", DType.FLOAT32:
                arrays.append(-np.abs(normal(t)))
            case "linear_attention", DType.MODEL if i in (1, 4):
                arrays.append(0.4 * normal(t, 3 + i) - 0.5 * (i == 4))
            case "sqrt" | "log" | "log2" | "pow_scalar", _:
                arrays.append(np.abs(normal(t)))
            case "pow", _ if i == 0:
                arrays.append(0.1 + np.abs(normal(t)))
            case "reciprocal", _:
                arrays.append(np.sign(normal(t, 5)) * (0.5 + np.abs(normal(t, 5))))
            case "div", _ if i == 1:
                arrays.append(np.sign(normal(t, 5)) * (0.5 + np.abs(normal(t, 5))))
            case _:
                arrays.append(normal(t, 3 + i))
    return [a if a.dtype != np.float64 else a.astype(np.float32).astype(np.float64) for a in arrays]
