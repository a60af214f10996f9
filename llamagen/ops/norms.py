"""Norms, with and without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamagen.diagnostics import LlamagenError
from llamagen.ops.code import (
    Call,
    call,
    literal,
)
from llamagen.ops.lazy import np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    Op,
    Operands,
    Parameter,
    Precision,
    Role,
    TensorType,
    Tokens,
    Types,
    a_bool,
    a_float,
    a_int,
    a_str,
    cut_beside,
    int_attr,
    need_last,
    need_real,
    parameter,
    part_text,
    same_shape,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import ModuleSite
    from llamagen.ops.op import Array, Real, Values


def _norm_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of a norm")
    need_last(x, a_int(attrs, "features"), "the operand of this norm")
    return (x,)


def _layer_norm_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    shape = (a_int(attrs, "features"),)
    names: list[Parameter] = []
    if a_bool(attrs, "weight"):
        names.append(parameter("weight", shape, "norm"))
    if a_bool(attrs, "bias"):
        names.append(parameter("bias", shape, "bias"))
    return tuple(names)


def rms_normalize(x: Real, eps: float) -> Real:
    mean_square: Real = (x**2).mean(axis=-1, keepdims=True)
    result: Real = x / np.sqrt(mean_square + eps)
    return result


def _rms_norm_numpy(o: Operands) -> tuple[Array, ...]:
    gain = o.number("offset") + o.weight("weight")
    return (gain * rms_normalize(o.real(), o.number("eps")),)


def _layer_norm_numpy(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    centred = x - x.mean(axis=-1, keepdims=True)
    y = rms_normalize(centred, o.number("eps"))  # the variance is the mean square of what is left
    y = y * o.weight("weight") if a_bool(o.attrs, "weight") else y
    return (y + o.weight("bias") if a_bool(o.attrs, "bias") else y,)


def _layer_norm_module(at: ModuleSite) -> Call:
    weight, bias = a_bool(at.attrs, "weight"), a_bool(at.attrs, "bias")
    if bias and not weight:
        message = f"part `{at.name}`: torch has no layer norm with a bias and no weight"
        raise LlamagenError.of("LG741", message, at.span)
    extra = {} if bias else {"bias" if weight else "elementwise_affine": literal(False)}
    return call("nn.LayerNorm", at.number("features"), eps=at.number("eps"), **extra)


def _rms_normalize_onnx(b: Builder, site: Site, x: Values) -> Values:
    wide = b.op(
        "RMSNormalization",
        b.to(x[0], b.FLOAT),
        b.ones(
            site.dims()[-1].value
        ),  # not one for all: WebGPU wants as many as there are features
        axis=-1,
        epsilon=a_float(site.attrs, "eps"),
    )
    return (b.to(wide, b.element(site.results[0].dtype)),)


def _rms_norm_onnx(b: Builder, site: Site, x: Values) -> Values:
    """``before_weight`` is what RMSNormalization with stash_type 1 does: float32 inside, cast, then the gain."""
    dtype = b.element(site.results[0].dtype)
    eps, offset = a_float(site.attrs, "eps"), a_float(site.attrs, "offset")
    rounds_first = a_str(site.attrs, "cast") == "before_weight" and dtype is not b.FLOAT
    inside = dtype if rounds_first else b.FLOAT
    gain = b.to(site.parameters["weight"], inside)
    if offset:
        gain = b.with_number("Add", gain, offset)
    if rounds_first and b.dtype in b.profile.widened:
        ones = b.ones(site.dims()[-1].value)
        wide = b.op("RMSNormalization", b.to(x[0], b.FLOAT), ones, axis=-1, epsilon=eps)
        return (b.op("Mul", gain, b.to(wide, dtype)),)
    result = b.op("RMSNormalization", b.to(x[0], inside), gain, axis=-1, epsilon=eps, stash_type=1)
    return (b.to(result, dtype),)


def _layer_norm_onnx(b: Builder, site: Site, x: Values) -> Values:
    parameters = site.parameters
    weight = (
        b.to(parameters["weight"], b.FLOAT)
        if "weight" in parameters
        else b.ones(a_int(site.attrs, "features"))
    )
    bias = (b.to(parameters["bias"], b.FLOAT),) if "bias" in parameters else ()
    result = b.op(
        "LayerNormalization",
        b.to(x[0], b.FLOAT),
        weight,
        *bias,
        axis=-1,
        epsilon=a_float(site.attrs, "eps"),
    )
    return (b.to(result, b.element(site.results[0].dtype)),)


def _skip_norm_onnx(b: Builder, site: Site, x: Values) -> Values:
    left, right = x
    gain, offset = site.parameters["weight"], a_float(site.attrs, "offset")
    if offset:
        gain = b.with_number("Add", gain, offset)
    dtype = b.element(site.results[0].dtype)
    return b.ops(
        "SkipSimplifiedLayerNormalization",
        *(left, right, gain),
        dtypes=(dtype, None, None, dtype),
        epsilon=a_float(site.attrs, "eps"),
    )


_FEATURES = int_attr("features", "width")
_EPS = AttrSpec("eps", "float", "added to the mean of squares, inside the root", required=True)

NORM_OPS: tuple[Op, ...] = (
    Op(
        "rms_norm",
        "Root-mean-square norm. ``cast='before_weight'`` rounds to the model's dtype before the gain is applied "
        "(Llama), ``'after_weight'`` after it (Gemma, OLMo-2). ``offset=1.0`` stores the gain as weight - 1 (Gemma).",
        "y = (offset + weight) * x / sqrt(mean(x^2) + eps)",
        ("x",),
        _norm_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.ALONE,
        attrs=(
            _FEATURES,
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
        parameters=lambda attrs: (parameter("weight", (a_int(attrs, "features"),), "norm"),),
        is_part=True,
        cite="arXiv 1910.07467; facts 4.1",
        cut=cut_beside,
        role=Role.NORM,
        numpy=_rms_norm_numpy,
        torch=part_text,
        torch_module=lambda at: call(
            at.plan.norm_class(at.attrs), at.number("features"), eps=at.number("eps")
        ),
        onnx=_rms_norm_onnx,
    ),
    Op(
        "layer_norm",
        "Layer norm with optional gain and bias; the variance is the biased one.",
        "y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias",
        ("x",),
        _norm_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.ALONE,
        attrs=(
            _FEATURES,
            _EPS,
            AttrSpec("weight", "bool", "whether there is a gain", default=True),
            AttrSpec("bias", "bool", "whether there is a bias", default=True),
        ),
        parameters=_layer_norm_parameters,
        is_part=True,
        cite="arXiv 1607.06450",
        cut=cut_beside,
        role=Role.NORM,
        numpy=_layer_norm_numpy,
        torch=part_text,
        torch_module=_layer_norm_module,
        onnx=_layer_norm_onnx,
    ),
    Op(
        "rms_normalize",
        "Root-mean-square norm over the last dimension without a weight (Llama 4's QK norm).",
        "x / sqrt(mean(x^2) + eps)",
        ("x",),
        same_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.ALONE,
        attrs=(_EPS,),
        cite="facts 4.8",
        cut=cut_beside,
        role=Role.BARE_NORM,
        numpy=lambda o: (rms_normalize(o.real(), o.number("eps")),),
        torch=lambda at, x: call("rms_normalize", x[0], at.number("eps")),
        onnx=_rms_normalize_onnx,
    ),
    Op(
        "SkipSimplifiedLayerNormalization",
        "A sum and its rms norm in one kernel.",
        "rms_norm(a + b), a + b",
        ("a", "b"),
        lambda types, attrs: (types[0], types[0]),
        Precision.FLOAT32_INSIDE,
        Tokens.ALONE,
        fused=True,
        onnx=_skip_norm_onnx,
    ),
)
