"""Lowerings of the ops without parameters: arithmetic, activations, selection, layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.elements import numpy_type
from llamagen.emit.onnx.site import Lowering, Site, Values
from llamagen.ir.graph import DType
from llamagen.ir.optypes import a_float, a_int, a_ints, a_str

Activation: TypeAlias = Callable[[Builder, ir.Value], ir.Value]


def silu(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Mul", x, b.op("Sigmoid", x))


def relu2(b: Builder, x: ir.Value) -> ir.Value:
    positive = b.op("Relu", x)
    return b.op("Mul", positive, positive)


def gelu(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Gelu", x)


def gelu_tanh(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Gelu", x, approximate="tanh")


def relu(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Relu", x)


def sigmoid(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Sigmoid", x)


def tanh(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Tanh", x)


ACTIVATIONS: Mapping[str, Activation] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu2,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


def _unary(activation: Activation) -> Lowering:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        return (activation(b, x[0]),)

    return lower


def _single(kind: str) -> Lowering:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        return (b.op(kind, x[0]),)

    return lower


def _pair(kind: str) -> Lowering:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        dtype = b.element(site.results[0].dtype)
        return (b.op(kind, b.to(x[0], dtype), b.to(x[1], dtype)),)

    return lower


def _scalar(kind: str) -> Lowering:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        return (with_number(b, kind, x[0], a_float(site.attrs, "value")),)

    return lower


def with_number(b: Builder, kind: str, x: ir.Value, number: float) -> ir.Value:
    """``x`` op ``number`` in the dtype of ``x``; in float32 when that dtype cannot hold the number."""
    dtype = x.dtype
    assert dtype is not None
    if dtype is not ir.DataType.FLOAT and float(np.array(number, numpy_type(dtype))) != number:
        wide = b.op(kind, b.to(x, ir.DataType.FLOAT), b.number(number, ir.DataType.FLOAT))
        return b.to(wide, dtype)
    return b.op(kind, x, b.number(number, dtype))


def _gelu(b: Builder, site: Site, x: Values) -> Values:
    exact = a_str(site.attrs, "approximate") == "none"
    return (gelu(b, x[0]) if exact else gelu_tanh(b, x[0]),)


def _square(b: Builder, site: Site, x: Values) -> Values:
    return (b.op("Mul", x[0], x[0]),)


def _softcap(b: Builder, site: Site, x: Values) -> Values:
    cap = a_float(site.attrs, "cap")
    bounded = b.op("Tanh", with_number(b, "Div", x[0], cap))
    return (with_number(b, "Mul", bounded, cap),)


def _clamp(b: Builder, site: Site, x: Values) -> Values:
    dtype = x[0].dtype
    assert dtype is not None
    low, high = site.attrs["low"], site.attrs["high"]
    bounds = [
        b.number(float(v), dtype) if isinstance(v, int | float) else None for v in (low, high)
    ]
    return (b.op("Clip", x[0], *bounds),)


def _cast(dtype: DType) -> Lowering:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        return (b.to(x[0], b.element(dtype)),)

    return lower


def _softmax(b: Builder, site: Site, x: Values) -> Values:
    wide = b.op("Softmax", b.to(x[0], ir.DataType.FLOAT), axis=site.axis())
    return (b.to(wide, b.element(site.results[0].dtype)),)


def _rms_normalize(b: Builder, site: Site, x: Values) -> Values:
    wide = b.op(
        "RMSNormalization",
        b.to(x[0], ir.DataType.FLOAT),
        b.ones(1),
        axis=-1,
        epsilon=a_float(site.attrs, "eps"),
    )
    return (b.to(wide, b.element(site.results[0].dtype)),)


def _topk(b: Builder, site: Site, x: Values) -> Values:
    dtype = b.element(site.operands[0].dtype)
    k = b.ints([a_int(site.attrs, "k")])
    return b.ops("TopK", x[0], k, dtypes=(dtype, ir.DataType.INT64), axis=-1)


def _gather(b: Builder, site: Site, x: Values) -> Values:
    return (b.op("GatherElements", x[0], x[1], axis=-1),)


def _reduce(kind: str) -> Lowering:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        return (b.op(kind, x[0], b.ints([site.axis()]), keepdims=1),)

    return lower


def _split_heads(b: Builder, site: Site, x: Values) -> Values:
    batch, tokens, _ = site.dims()
    _, heads, _, size = site.results[0].shape
    apart = b.reshape(x[0], site.dims(), (batch, tokens, heads, size))
    return (b.op("Transpose", apart, perm=(0, 2, 1, 3)),)


def _merge_heads(b: Builder, site: Site, x: Values) -> Values:
    batch, heads, tokens, size = site.dims()
    beside = b.op("Transpose", x[0], perm=(0, 2, 1, 3))
    return (b.reshape(beside, (batch, tokens, heads, size), site.results[0].shape),)


def _repeat_heads(b: Builder, site: Site, x: Values) -> Values:
    return (b.op("Expand", x[0], b.ints([1, a_int(site.attrs, "heads"), 1, 1])),)


def _split(b: Builder, site: Site, x: Values) -> Values:
    sizes = a_ints(site.attrs, "sizes")
    if len(sizes) == 1:
        return x
    dtypes = [b.element(t.dtype) for t in site.results]
    return b.ops("Split", x[0], b.ints(sizes), dtypes=dtypes, axis=site.axis())


def _concat(b: Builder, site: Site, x: Values) -> Values:
    return (b.op("Concat", *x, axis=site.axis()),)


def _reshape(b: Builder, site: Site, x: Values) -> Values:
    return (b.reshape(x[0], site.dims(), site.results[0].shape),)


def _expand(b: Builder, site: Site, x: Values) -> Values:
    return (b.op("Expand", x[0], b.shape(site.results[0].shape)),)


def _replace_rows(b: Builder, site: Site, x: Values) -> Values:
    """ScatterND refuses more or fewer rows than places."""
    here = b.op("Equal", x[2], b.whole(a_int(site.attrs, "id")), dtype=ir.DataType.BOOL)
    places = b.op("Transpose", b.op("NonZero", here, dtype=ir.DataType.INT64), perm=(1, 0))
    rows = b.flat(x[1], site.dims(1))
    return (b.op("ScatterND", x[0], places, rows),)


def _permute(b: Builder, site: Site, x: Values) -> Values:
    return (b.op("Transpose", x[0], perm=a_ints(site.attrs, "axes")),)


def _slice(b: Builder, site: Site, x: Values) -> Values:
    start, stop = a_int(site.attrs, "start"), a_int(site.attrs, "stop")
    return (b.op("Slice", x[0], b.ints([start]), b.ints([stop]), b.ints([site.axis()])),)


def _pad(b: Builder, site: Site, x: Values) -> Values:
    widths = b.ints([a_int(site.attrs, "before"), a_int(site.attrs, "after")])
    return (b.op("Pad", x[0], widths, None, b.ints([site.axis()])),)


BASIC_LOWERINGS: Mapping[str, Lowering] = {
    "add": _pair("Add"),
    "sub": _pair("Sub"),
    "mul": _pair("Mul"),
    "div": _pair("Div"),
    "add_scalar": _scalar("Add"),
    "mul_scalar": _scalar("Mul"),
    "div_scalar": _scalar("Div"),
    "neg": _single("Neg"),
    # Swish (opset 24) has no CPU kernel; ONNX Runtime fuses the pair.
    "silu": _unary(silu),
    "gelu": _gelu,
    "relu": _unary(relu),
    "relu2": _unary(relu2),
    "sigmoid": _unary(sigmoid),
    "tanh": _unary(tanh),
    "softplus": _single("Softplus"),
    "exp": _single("Exp"),
    "square": _square,
    "sqrt": _single("Sqrt"),
    "softcap": _softcap,
    "clamp": _clamp,
    "rms_normalize": _rms_normalize,
    "float32": _cast(DType.FLOAT32),
    "model_dtype": _cast(DType.MODEL),
    "softmax": _softmax,
    "topk": _topk,
    "gather": _gather,
    "sum": _reduce("ReduceSum"),
    "mean": _reduce("ReduceMean"),
    "split_heads": _split_heads,
    "merge_heads": _merge_heads,
    "repeat_heads": _repeat_heads,
    "split": _split,
    "concat": _concat,
    "reshape": _reshape,
    "expand": _expand,
    "replace_rows": _replace_rows,
    "permute": _permute,
    "slice": _slice,
    "pad": _pad,
}
