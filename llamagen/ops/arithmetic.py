"""Ops that an author writes as operators, casts, and those along an axis: softmax, sums, choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from llamagen.ops.code import (
    Binary,
    Code,
    Negative,
    call,
    literal,
    method,
)
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import ir, np
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


Given = TypeVar("Given")


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


def _compared(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Truth values of one operand and a number, or of two operands."""
    value = attrs.get("value", 0.0)
    for t in types:
        numbers = t.dtype is not DType.BOOL
        need(numbers, "only numbers are compared, not {}: write `and`, `or` and `not` of truth", t)
        whole = t.dtype is not DType.INT64 or float(value).is_integer()  # type: ignore[arg-type]
        need(whole, "{} is compared with {}, which is no whole number", t, value)
    kinds = {t.dtype is DType.INT64 for t in types}
    need(len(kinds) == 1, "whole numbers and others are not compared: {} and {}", *types[:2])
    shape = types[0].shape if len(types) == 1 else broadcast(*types)
    return (TensorType(DType.BOOL, shape),)


def _comparison(
    name: str,
    symbol: str,
    numpy: Callable[[Array, Array | float], Array],
    kind: str,
    negated: bool = False,
) -> tuple[Op, Op]:
    """Two rows: of two tensors, and of a tensor and a number. ``negated``: the result is what ``kind`` denies."""

    def denied(b: Builder, x: ir.Value) -> ir.Value:
        return b.op("Not", x) if negated else x

    def of_two(b: Builder, site: Site, x: Values) -> Values:
        wide = DType.FLOAT32 in {t.dtype for t in site.operands}
        both = [b.to(v, b.FLOAT) for v in x] if wide else x
        return (denied(b, b.op(kind, *both, dtype=b.BOOL)),)

    def of_number(b: Builder, site: Site, x: Values) -> Values:
        value = a_float(site.attrs, "value")
        if site.operands[0].dtype is DType.INT64:
            return (denied(b, b.op(kind, x[0], b.whole(int(value)), dtype=b.BOOL)),)
        # a number that the dtype lacks would be another one
        wide = b.to(x[0], b.FLOAT)
        return (denied(b, b.op(kind, wide, b.number(value, b.FLOAT), dtype=b.BOOL)),)

    pair = Op(
        name,
        "Truth values by place, with broadcasting; written as an operator in equations.",
        f"a {symbol} b",
        ("a", "b"),
        _compared,
        Precision.EXACT,
        Tokens.ALONE,
        internal=True,
        elementwise=True,
        symbol=symbol,
        numpy=lambda o: (numpy(o.tensors[0], o.tensors[1]),),
        torch=lambda at, x: Binary(symbol, x[0], x[1]),
        onnx=of_two,
    )
    return pair, replace(
        pair,
        name=f"{name}_scalar",
        doc="Truth values by place of a comparison with a number; written as an operator in equations.",
        formula=f"x {symbol} c",
        operands=("x",),
        attrs=(AttrSpec("value", "float", "the number", required=True),),
        numpy=lambda o: (numpy(o.tensors[0], o.number("value")),),
        torch=lambda at, x: Binary(symbol, x[0], at.number("value")),
        onnx=of_number,
    )


def _truths(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    for t in types:
        need(t.dtype is DType.BOOL, "needs truth values, such as `x > 0`, it is {}", t)
    shape = types[0].shape if len(types) == 1 else broadcast(*types)
    return (TensorType(DType.BOOL, shape),)


def _logical(name: str, symbol: str, written: str, numpy: Callable[..., Array], kind: str) -> Op:
    return Op(
        name,
        "Of truth values, with broadcasting; written as an operator in equations.",
        f"a {symbol} b",
        ("a", "b"),
        _truths,
        Precision.EXACT,
        Tokens.ALONE,
        internal=True,
        elementwise=True,
        symbol=symbol,
        numpy=lambda o: (numpy(o.tensors[0], o.tensors[1]),),
        torch=lambda at, x: Binary(written, x[0], x[1]),
        onnx=lambda b, site, x: (b.op(kind, *x),),
    )


def _either(attrs: Attrs, tensors: Sequence[Given]) -> list[Given | float]:
    """What ``where`` picks from: numbers in the attributes, the operands in the places that are left."""
    rest = iter(tensors)
    numbers = (attrs.get("then"), attrs.get("otherwise"))
    return [next(rest) if n is None else a_float({"n": n}, "n") for n in numbers]


def _where_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    condition, *given = types
    need(condition.dtype is DType.BOOL, "the first operand is truth values, not {}", condition)
    numbers = sum(attrs.get(name) is not None for name in ("then", "otherwise"))
    need(len(given) + numbers == 2, "where(condition, a, b) picks from two values")
    shape = TensorType(DType.MODEL, condition.shape)
    for t in given:
        shape = TensorType(DType.MODEL, broadcast(shape, t))
    dtype = result_dtype(*given) if given else DType.MODEL
    return (TensorType(dtype, shape.shape),)


def _where_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    a, b = (literal(v) if isinstance(v, float) else v for v in _either(at.attrs, x[1:]))
    chosen = call("torch.where", x[0], a, b)
    return chosen if len(x) > 1 else method(chosen, "to", at.model_dtype())


def _where_onnx(b: Builder, site: Site, x: Values) -> Values:
    dtype = b.element(site.results[0].dtype)
    values = _either(site.attrs, x[1:])
    both = [b.number(v, dtype) if isinstance(v, float) else b.to(v, dtype) for v in values]
    return (b.op("Where", x[0], *both, dtype=dtype),)


def _where_numpy(o: Operands) -> tuple[Array, ...]:
    a, b = _either(o.attrs, o.tensors[1:])
    wide = np.float32 if o.single else np.float64
    picked: Real = np.where(o.tensors[0], a, b).astype(wide)
    return (picked,)


def _one_hot_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (index,) = types
    need(index.dtype is DType.INT64, "one_hot is of whole numbers, not of {}", index)
    size = a_int(attrs, "size")
    need(size > 0, f"one_hot needs one place or more, not {size}")
    return (TensorType(DType.MODEL, (*index.shape, Dim.of(size))),)


def _one_hot_numpy(o: Operands) -> tuple[Array, ...]:
    hits = o.ints()[..., None] == np.arange(o.whole("size"))
    return (hits.astype(np.float32 if o.single else np.float64),)


def _one_hot_onnx(b: Builder, site: Site, x: Values) -> Values:
    places = b.ints(range(a_int(site.attrs, "size")))
    hits = b.op("Equal", b.op("Unsqueeze", x[0], b.ints([-1])), places, dtype=b.BOOL)
    return (b.to(hits, b.model),)


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
    name: str,
    doc: str,
    numpy: Callable[[Real, int], Real],
    kind: str,
    positive: Positive | None,
    torch: str = "",
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
            x[0], torch or name, literal(a_int(at.attrs, "axis")), keepdim=literal(True)
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
    _pair("pow", "**", lambda a, b: a**b, "Pow", positive=Positive.KEPT),
    _scalar("pow_scalar", "**", lambda x, c: x**c, "Pow", positive=Positive.KEPT),
    replace(
        _pair("maximum", "max", lambda a, b: np.maximum(a, b), "Max"),
        doc="The larger of two values by place; written ``max(a, b)``.",
        formula="max(a, b)",
        symbol="",
        torch=lambda at, x: call("torch.maximum", *x),
    ),
    replace(
        _pair("minimum", "min", lambda a, b: np.minimum(a, b), "Min"),
        doc="The smaller of two values by place; written ``min(a, b)``.",
        formula="min(a, b)",
        symbol="",
        torch=lambda at, x: call("torch.minimum", *x),
    ),
    *_comparison("less", "<", lambda a, b: a < b, "Less"),
    *_comparison("less_equal", "<=", lambda a, b: a <= b, "LessOrEqual"),
    *_comparison("greater", ">", lambda a, b: a > b, "Greater"),
    *_comparison("greater_equal", ">=", lambda a, b: a >= b, "GreaterOrEqual"),
    *_comparison("equal", "==", lambda a, b: a == b, "Equal"),
    *_comparison("not_equal", "!=", lambda a, b: a != b, "Equal", negated=True),
    _logical("logical_and", "and", "&", lambda a, b: a & b, "And"),
    _logical("logical_or", "or", "|", lambda a, b: a | b, "Or"),
    Op(
        "logical_not",
        "What is not true; written ``not x``.",
        "not x",
        ("x",),
        _truths,
        Precision.EXACT,
        Tokens.ALONE,
        internal=True,
        elementwise=True,
        symbol="not",
        numpy=lambda o: (np.logical_not(o.tensors[0]),),
        torch=lambda at, x: method(x[0], "logical_not"),
        onnx=lambda b, site, x: (b.op("Not", x[0]),),
    ),
    Op(
        "where",
        "The first value where the condition holds, the second where it does not; either may be a number.",
        "a if condition else b, by place",
        ("condition",),
        _where_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(
            AttrSpec("then", "float", "the first value, if it is a number", optional=True),
            AttrSpec("otherwise", "float", "the second value, if it is a number", optional=True),
        ),
        optional_operands=("a", "b"),
        elementwise=True,
        numpy=_where_numpy,
        torch=_where_torch,
        onnx=_where_onnx,
    ),
    Op(
        "one_hot",
        "1 at the place that a whole number names, 0 at the other ones: [...] -> [..., size].",
        "y[..., j] = 1 if index[...] == j else 0",
        ("index",),
        _one_hot_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(int_attr("size", "how many places"),),
        numpy=_one_hot_numpy,
        torch=lambda at, x: method(
            call("F.one_hot", x[0], at.number("size")), "to", at.model_dtype()
        ),
        onnx=_one_hot_onnx,
    ),
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
    _reduced(
        "max",
        "The largest value along an axis, which stays with size 1; of two tensors, or a tensor and a number, the "
        "larger one by place.",
        lambda x, axis: x.max(axis=axis, keepdims=True),
        "ReduceMax",
        Positive.KEPT,
        "amax",
    ),
    _reduced(
        "min",
        "The smallest value along an axis, which stays with size 1; of two tensors, or a tensor and a number, the "
        "smaller one by place.",
        lambda x, axis: x.min(axis=axis, keepdims=True),
        "ReduceMin",
        Positive.KEPT,
        "amin",
    ),
)
