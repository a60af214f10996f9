"""Rows of the op table that own parameters; a spec declares them under ``parts``."""

from __future__ import annotations

from llamagen.ir.dims import Dim
from llamagen.ir.graph import INIT_KINDS, Attrs, DType, Parameter, TensorType
from llamagen.ir.optypes import (
    AttrSpec,
    Op,
    Precision,
    Types,
    a_bool,
    a_int,
    a_ints,
    a_str,
    elements,
    need,
    need_last,
    need_real,
    parameter,
)

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh")


def _embedding_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (ids,) = types
    need(ids.dtype is DType.INT64, f"an embedding is looked up by integer ids, not by {ids}")
    return (TensorType(DType.MODEL, (*ids.shape, Dim.of(a_int(attrs, "features")))),)


def _embedding_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    return (parameter("weight", (a_int(attrs, "rows"), a_int(attrs, "features")), "embedding"),)


def _linear_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of a linear part")
    need_last(x, a_int(attrs, "in_features"), "the operand of this linear part")
    return (TensorType(DType.MODEL, (*x.shape[:-1], Dim.of(a_int(attrs, "out_features")))),)


def _linear_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    inputs, outputs = a_int(attrs, "in_features"), a_int(attrs, "out_features")
    weight = parameter("weight", (outputs, inputs), "matrix")
    return (weight, parameter("bias", (outputs,), "bias")) if a_bool(attrs, "bias") else (weight,)


def _linear_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    return elements(results[0].shape) * (2 * a_int(attrs, "in_features"))


def _norm_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of a norm")
    need_last(x, a_int(attrs, "features"), "the operand of this norm")
    return (x,)


def _rms_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    return (parameter("weight", (a_int(attrs, "features"),), "norm"),)


def _layer_norm_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    shape = (a_int(attrs, "features"),)
    names: list[Parameter] = []
    if a_bool(attrs, "weight"):
        names.append(parameter("weight", shape, "norm"))
    if a_bool(attrs, "bias"):
        names.append(parameter("bias", shape, "bias"))
    return tuple(names)


def _parameter_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(DType.MODEL, tuple(map(Dim.of, a_ints(attrs, "shape")))),)


def _parameter_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    return (parameter("", a_ints(attrs, "shape"), INIT_KINDS[a_str(attrs, "kind")]),)


def _experts_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, weights = types
    need_real(x, "the first operand of experts")
    need_last(x, a_int(attrs, "features"), "the first operand of these experts")
    need(indices.dtype is DType.INT64, f"expert indices must be integers, they are {indices}")
    need(
        indices.shape == weights.shape and indices.shape[:-1] == x.shape[:-1],
        f"experts need one weight an index and token: x {x}, indices {indices}, weights {weights}",
    )
    return (x,)


def _experts_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    e, d, f = (a_int(attrs, n) for n in ("num_experts", "features", "intermediate"))
    if a_str(attrs, "layout") == "in_out":
        shapes = ((e, d, 2 * f), (e, f, d))
    else:
        shapes = ((e, 2 * f, d), (e, d, f))
    return (
        parameter("gate_up_proj", shapes[0], "matrix"),
        parameter("down_proj", shapes[1], "matrix"),
    )


def _experts_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    chosen = elements(operands[1].shape)
    return chosen * (6 * a_int(attrs, "features") * a_int(attrs, "intermediate"))


def _int(name: str, doc: str) -> AttrSpec:
    return AttrSpec(name, "int", doc, required=True)


_EPS = AttrSpec("eps", "float", "added to the mean of squares, inside the root", required=True)

PART_OPS: tuple[Op, ...] = (
    Op(
        "embedding",
        "Row lookup: one row of ``features`` for each id.",
        "y[..., :] = weight[ids[...], :]",
        ("ids",),
        _embedding_shape,
        Precision.EXACT,
        (_int("rows", "number of ids"), _int("features", "width of a row")),
        _embedding_parameters,
        is_part=True,
    ),
    Op(
        "linear",
        "Matrix product with a weight stored [out, in], as checkpoints store it.",
        "y = x @ weight.T + bias",
        ("x",),
        _linear_shape,
        Precision.MODEL,
        (
            _int("in_features", "width of the operand"),
            _int("out_features", "width of the result"),
            AttrSpec("bias", "bool", "whether a bias is added", default=False),
            AttrSpec("tied_to", "str", "role path of the weight to share", optional=True),
        ),
        _linear_parameters,
        _linear_flops,
        is_part=True,
    ),
    Op(
        "rms_norm",
        "Root-mean-square norm. ``cast='before_weight'`` rounds to the model's dtype before the gain is applied "
        "(Llama), ``'after_weight'`` after it (Gemma, OLMo-2). ``offset=1.0`` stores the gain as weight - 1 (Gemma).",
        "y = (offset + weight) * x / sqrt(mean(x^2) + eps)",
        ("x",),
        _norm_shape,
        Precision.FLOAT32_INSIDE,
        (
            _int("features", "width"),
            _EPS,
            AttrSpec("offset", "float", "added to the weight", default=0.0),
            AttrSpec(
                "cast",
                "str",
                "where the result is rounded to the model's dtype",
                default="before_weight",
                choices=("before_weight", "after_weight"),
            ),
        ),
        _rms_parameters,
        is_part=True,
        cite="arXiv 1910.07467; facts 4.1",
    ),
    Op(
        "layer_norm",
        "Layer norm with optional gain and bias; the variance is the biased one.",
        "y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias",
        ("x",),
        _norm_shape,
        Precision.FLOAT32_INSIDE,
        (
            _int("features", "width"),
            _EPS,
            AttrSpec("weight", "bool", "whether there is a gain", default=True),
            AttrSpec("bias", "bool", "whether there is a bias", default=True),
        ),
        _layer_norm_parameters,
        is_part=True,
        cite="arXiv 1607.06450",
    ),
    Op(
        "parameter",
        "A tensor of its own (a gate, a class embedding); used by its part name, without a call.",
        "y = parameter",
        (),
        _parameter_shape,
        Precision.EXACT,
        (
            AttrSpec("shape", "ints", "its shape", required=True),
            AttrSpec(
                "kind",
                "str",
                "what it is for; decides random test values only",
                default="gate",
                choices=tuple(INIT_KINDS),
            ),
        ),
        _parameter_parameters,
        is_part=True,
    ),
    Op(
        "experts",
        "Gated feed-forward experts of one layer in two tensors; only the chosen experts of a token are evaluated. "
        "``layout='out_in'`` stores [E, 2F, D] and [E, D, F] (Mixtral), ``'in_out'`` [E, D, 2F] and [E, F, D] "
        "(Llama 4); the gate is the first half. ``scale='output'`` weights the expert's result, ``'input'`` its "
        "operand (Llama 4: not the same, the gate is not linear).",
        "y = sum_j w_j * down_e(act(gate_e(x)) * up_e(x)), e = indices_j;  input: down_e(act(gate_e(w_j x)) * up_e(w_j x))",
        ("x", "indices", "weights"),
        _experts_shape,
        Precision.MODEL,
        (
            _int("num_experts", "number of experts E"),
            _int("features", "width D of a token"),
            _int("intermediate", "width F of an expert"),
            AttrSpec("act", "str", "activation of the gate", default="silu", choices=ACTIVATIONS),
            AttrSpec("layout", "str", "", default="out_in", choices=("out_in", "in_out")),
            AttrSpec("scale", "str", "", default="output", choices=("output", "input")),
        ),
        _experts_parameters,
        _experts_flops,
        is_part=True,
        cite="facts 4.8",
    ),
)
