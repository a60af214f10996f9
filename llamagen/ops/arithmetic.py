"""Ops that an author writes as operators, casts, and those along an axis: softmax, sums, choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llamagen.ops.code import (
    Binary,
    Code,
    Negative,
    call,
    literal,
    method,
)
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    DType,
    Op,
    Operands,
    Positive,
    Precision,
    Role,
    TensorType,
    Tokens,
    TorchText,
    Types,
    a_float,
    a_int,
    axis_attr,
    axis_of,
    broadcast,
    cut_beside,
    int_attr,
    need,
    need_real,
    result_dtype,
    same_shape,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import TorchSite
    from llamagen.ops.op import Array, Real, Values


def _pair(
    name: str,
    symbol: str,
    numpy: Callable[[Real, Real], Real],
    kind: str,
    positive: Positive | None = Positive.OF_ALL,
) -> Op:
    def lower(b: Builder, site: Site, x: Values) -> Values:
        dtype = b.element(site.results[0].dtype)
        return (b.op(kind, b.to(x[0], dtype), b.to(x[1], dtype)),)

    return Op(
        name,
        "Elementwise, with broadcasting; written as an operator in equations.",
        f"a {symbol} b",
        ("a", "b"),
        lambda types, attrs: (TensorType(result_dtype(*types), broadcast(*types)),),
        Precision.MODEL,
        Tokens.ALONE,
        internal=True,
        elementwise=True,
        positive=positive,
        symbol=symbol,
        numpy=lambda o: (numpy(o.real(0), o.real(1)),),
        torch=lambda at, x: Binary(symbol, x[0], x[1]),
        onnx=lower,
    )


def _scalar(
    name: str,
    symbol: str,
    numpy: Callable[[Real, float], Real],
    kind: str,
    positive: Positive | None = Positive.BY_NUMBER,
) -> Op:
    def text(at: TorchSite, x: Sequence[Code]) -> Code:
        value = a_float(at.attrs, "value")
        if symbol == "+" and isinstance(x[0], Negative):
            return Binary("-", at.number("value"), x[0].operand)
        if symbol == "+" and value < 0:
            return Binary("-", x[0], literal(-value))
        return Binary(symbol, x[0], at.number("value"))

    return Op(
        name,
        "Elementwise with a number, in the operand's dtype; written as an operator in equations.",
        f"x {symbol} c",
        ("x",),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(AttrSpec("value", "float", "the number", required=True),),
        internal=True,
        elementwise=True,
        positive=positive,
        symbol=symbol,
        numpy=lambda o: (numpy(o.real(), o.number("value")),),
        torch=text,
        onnx=lambda b, site, x: (b.with_number(kind, x[0], a_float(site.attrs, "value")),),
    )


def _cast(
    name: str, doc: str, formula: str, dtype: DType, precision: Precision, torch: TorchText
) -> Op:
    def shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        need_real(types[0], "the operand of a cast")
        return (TensorType(dtype, types[0].shape),)

    return Op(
        name,
        doc,
        formula,
        ("x",),
        shape,
        precision,
        Tokens.ALONE,
        elementwise=True,
        positive=Positive.KEPT,
        numpy=lambda o: (o.real(),),
        torch=torch,
        onnx=lambda b, site, x: (b.to(x[0], b.element(dtype)),),
    )


def _reduced_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand")
    axis = axis_of(attrs, len(x.shape))
    return (TensorType(x.dtype, (*x.shape[:axis], Dim.of(1), *x.shape[axis + 1 :])),)


def _reduced(
    name: str, doc: str, numpy: Callable[[Real, int], Real], kind: str, positive: Positive | None
) -> Op:
    return Op(
        name,
        doc,
        f"{name} x",
        ("x",),
        _reduced_shape,
        Precision.MODEL,
        Tokens.ALONG,
        attrs=(axis_attr(),),
        cut=cut_beside,
        positive=positive,
        numpy=lambda o: (numpy(o.real(), o.whole("axis")),),
        torch=lambda at, x: method(
            x[0], name, literal(a_int(at.attrs, "axis")), keepdim=literal(True)
        ),
        onnx=lambda b, site, x: (b.op(kind, x[0], b.ints([site.axis()]), keepdims=1),),
    )


def _softmax_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    need_real(types[0], "the operand of softmax")
    axis_of(attrs, len(types[0].shape))
    return (types[0],)


def softmax(x: Real, axis: int) -> Real:
    """exp(x - max x) / sum exp(x - max x); -inf counts nothing, a slice of -inf gives zeros."""
    top = x.max(axis=axis, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(top), top, 0.0))
    total = e.sum(axis=axis, keepdims=True)
    return e / np.where(total > 0, total, 1.0)


def _softmax_onnx(b: Builder, site: Site, x: Values) -> Values:
    wide = b.op("Softmax", b.to(x[0], b.FLOAT), axis=site.axis())
    return (b.to(wide, b.element(site.results[0].dtype)),)


def _topk_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    need_real(x, "the operand of topk")
    k = a_int(attrs, "k")
    need(0 < k <= x.shape[-1].value, f"topk of {k} from a last dimension of {x.shape[-1]}")
    shape = (*x.shape[:-1], Dim.of(k))
    return (TensorType(x.dtype, shape), TensorType(DType.INT64, shape))


def _topk_numpy(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    # Stable on the negated values: of equal values the first one wins.
    order = np.argsort(-x, axis=-1, kind="stable")[..., : o.whole("k")].astype(np.int64)
    return (np.take_along_axis(x, order, axis=-1), order)


def _topk_onnx(b: Builder, site: Site, x: Values) -> Values:
    dtype = b.element(site.operands[0].dtype)
    k = b.ints([a_int(site.attrs, "k")])
    return b.ops("TopK", x[0], k, dtypes=(dtype, b.INT64), axis=-1)


def _gather_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices = types
    need(indices.dtype is DType.INT64, f"indices must be integers, they are {indices}")
    need(x.shape[:-1] == indices.shape[:-1], f"{x} and its indices {indices} differ before the end")
    return (TensorType(x.dtype, indices.shape),)


ARITHMETIC_OPS: tuple[Op, ...] = (
    _pair("add", "+", lambda a, b: a + b, "Add"),
    _pair("sub", "-", lambda a, b: a - b, "Sub", positive=None),
    _pair("mul", "*", lambda a, b: a * b, "Mul"),
    _pair("div", "/", lambda a, b: a / b, "Div"),
    _scalar("add_scalar", "+", lambda x, c: x + c, "Add", positive=None),
    _scalar("mul_scalar", "*", lambda x, c: x * c, "Mul"),
    _scalar("div_scalar", "/", lambda x, c: x / c, "Div"),
    Op(
        "neg",
        "Negation; written ``-x``.",
        "-x",
        ("x",),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        elementwise=True,
        symbol="-",
        numpy=lambda o: (-o.real(),),
        torch=lambda at, x: Negative(x[0]),
        onnx=lambda b, site, x: (b.op("Neg", x[0]),),
    ),
    _cast(
        "float32",
        "Cast to float32, for parts of a model that compute in it.",
        "float32(x)",
        DType.FLOAT32,
        Precision.FLOAT32_RESULT,
        torch=lambda at, x: method(x[0], "float"),
    ),
    _cast(
        "model_dtype",
        "Cast back to the dtype the model is run in.",
        "x",
        DType.MODEL,
        Precision.MODEL,
        torch=lambda at, x: method(x[0], "to", at.model_dtype()),
    ),
    Op(
        "softmax",
        "Normalised exponentials along an axis.",
        "exp(x - max x) / sum exp(x - max x)",
        ("x",),
        _softmax_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.ALONG,
        attrs=(axis_attr(),),
        cut=cut_beside,
        positive=Positive.ALWAYS,
        numpy=lambda o: (softmax(o.real(), o.whole("axis")),),
        torch=lambda at, x: call("F.softmax", x[0], dim=literal(a_int(at.attrs, "axis"))),
        onnx=_softmax_onnx,
    ),
    Op(
        "topk",
        "The k largest values of the last dimension, largest first, and their indices; of equal values the first.",
        "values, indices",
        ("x",),
        _topk_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(int_attr("k", "how many"),),
        cut=cut_beside,
        role=Role.CHOICE,
        positive=Positive.KEPT,
        numpy=_topk_numpy,
        torch=lambda at, x: method(x[0], "topk", at.number("k")),
        onnx=_topk_onnx,
    ),
    Op(
        "gather",
        "Pick values of the last dimension by index.",
        "y[..., j] = x[..., indices[..., j]]",
        ("x", "indices"),
        _gather_shape,
        Precision.EXACT,
        Tokens.ALONE,
        positive=Positive.KEPT,
        numpy=lambda o: (np.take_along_axis(o.real(), o.ints(1), axis=-1),),
        torch=lambda at, x: method(x[0], "gather", literal(-1), x[1]),
        onnx=lambda b, site, x: (b.op("GatherElements", x[0], x[1], axis=-1),),
    ),
    _reduced(
        "sum",
        "Sum along an axis, which stays with size 1.",
        lambda x, axis: x.sum(axis=axis, keepdims=True),
        "ReduceSum",
        Positive.KEPT,
    ),
    _reduced(
        "mean",
        "Mean along an axis, which stays with size 1.",
        lambda x, axis: x.mean(axis=axis, keepdims=True),
        "ReduceMean",
        None,
    ),
)
