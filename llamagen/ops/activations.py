"""Ops on each value by itself. An activation is one row of `ACTIVATIONS`; everything else follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llamagen.ops.code import (
    Code,
    call,
    literal,
    method,
)
from llamagen.ops.lazy import ir, np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    Op,
    Operands,
    Positive,
    Precision,
    Role,
    Tokens,
    a_float,
    same_shape,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray  # noqa

    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import TorchSite
    from llamagen.ops.op import Array, Real, Values


def sigmoid(x: Real) -> Real:
    """1 / (1 + exp(-x)), with an exponent that is never positive."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def gelu(x: Real) -> Real:
    """x Phi(x), Phi the distribution function of the standard normal (arXiv 1606.08415)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    result: Real = 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
    return result


def gelu_tanh(x: Real) -> Real:
    """The approximation of arXiv 1606.08415, section 2."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of one number. ``activation(x, hidden_act)`` and experts call it by ``name``."""

    name: str
    formula: str
    doc: str
    numpy: Callable[[Real], Real]
    torch: Callable[[Code], Code]
    onnx: Callable[[Builder, ir.Value], ir.Value]
    positive: Positive | None = None
    op: str = ""
    """The op that it is a variant of, by its attributes; none for an op of its own."""
    attrs: Attrs = field(default_factory=dict)


def _squared_relu(b: Builder, x: ir.Value) -> ir.Value:
    positive = b.op("Relu", x)
    return b.op("Mul", positive, positive)


_ACTIVATIONS = (
    Activation(
        "silu",
        "x sigmoid(x)",
        "Also called swish.",
        numpy=lambda x: x * sigmoid(x),
        torch=lambda x: call("F.silu", x),
        # Swish (opset 24) has no CPU kernel; ONNX Runtime fuses the pair.
        onnx=lambda b, x: b.op("Mul", x, b.op("Sigmoid", x)),
    ),
    Activation(
        "gelu",
        "x Phi(x)",
        "With ``approximate='tanh'`` the usual approximation.",
        numpy=gelu,
        torch=lambda x: call("F.gelu", x),
        onnx=lambda b, x: b.op("Gelu", x),
        op="gelu",
        attrs={"approximate": "none"},
    ),
    Activation(
        "gelu_tanh",
        "x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2",
        "The usual approximation of ``gelu``.",
        numpy=gelu_tanh,
        torch=lambda x: call("F.gelu", x, approximate=literal("tanh")),
        onnx=lambda b, x: b.op("Gelu", x, approximate="tanh"),
        op="gelu",
        attrs={"approximate": "tanh"},
    ),
    Activation(
        "relu",
        "max(x, 0)",
        "Rectifier.",
        numpy=lambda x: np.maximum(x, 0.0),
        torch=lambda x: call("F.relu", x),
        onnx=lambda b, x: b.op("Relu", x),
    ),
    Activation(
        "relu2",
        "max(x, 0)^2",
        "Squared rectifier.",
        numpy=lambda x: np.maximum(x, 0.0) ** 2,
        torch=lambda x: method(call("F.relu", x), "square"),
        onnx=_squared_relu,
    ),
    Activation(
        "sigmoid",
        "1 / (1 + exp(-x))",
        "Logistic function.",
        numpy=sigmoid,
        torch=lambda x: call("torch.sigmoid", x),
        onnx=lambda b, x: b.op("Sigmoid", x),
        positive=Positive.ALWAYS,
    ),
    Activation(
        "tanh",
        "tanh(x)",
        "Hyperbolic tangent.",
        numpy=lambda x: np.tanh(x),
        torch=lambda x: call("torch.tanh", x),
        onnx=lambda b, x: b.op("Tanh", x),
    ),
)
ACTIVATIONS: Mapping[str, Activation] = {a.name: a for a in _ACTIVATIONS}

_OTHERS = (
    Activation(
        "softplus",
        "log(1 + exp(x))",
        "Smooth rectifier.",
        numpy=lambda x: np.logaddexp(0.0, x),
        torch=lambda x: call("F.softplus", x),
        onnx=lambda b, x: b.op("Softplus", x),
        positive=Positive.ALWAYS,
    ),
    Activation(
        "exp",
        "exp(x)",
        "Exponential.",
        numpy=lambda x: np.exp(x),
        torch=lambda x: call("torch.exp", x),
        onnx=lambda b, x: b.op("Exp", x),
        positive=Positive.ALWAYS,
    ),
    Activation(
        "square",
        "x^2",
        "Square.",
        numpy=lambda x: x**2,
        torch=lambda x: call("torch.square", x),
        onnx=lambda b, x: b.op("Mul", x, x),
    ),
    Activation(
        "sqrt",
        "sqrt(x)",
        "Square root.",
        numpy=lambda x: np.sqrt(x),
        torch=lambda x: call("torch.sqrt", x),
        onnx=lambda b, x: b.op("Sqrt", x),
        positive=Positive.KEPT,
    ),
    Activation(
        "log",
        "ln(x)",
        "Natural logarithm.",
        numpy=lambda x: np.log(x),
        torch=lambda x: call("torch.log", x),
        onnx=lambda b, x: b.op("Log", x),
    ),
    Activation(
        "log2",
        "ln(x) / ln(2)",
        "Logarithm to the base 2.",
        numpy=lambda x: np.log2(x),
        torch=lambda x: call("torch.log2", x),
        onnx=lambda b, x: b.with_number("Mul", b.op("Log", x), 1 / math.log(2)),
    ),
    Activation(
        "abs",
        "|x|",
        "Absolute value.",
        numpy=lambda x: np.abs(x),
        torch=lambda x: call("torch.abs", x),
        onnx=lambda b, x: b.op("Abs", x),
        positive=Positive.KEPT,
    ),
    Activation(
        "sin",
        "sin(x)",
        "Sine of radians.",
        numpy=lambda x: np.sin(x),
        torch=lambda x: call("torch.sin", x),
        onnx=lambda b, x: b.op("Sin", x),
    ),
    Activation(
        "cos",
        "cos(x)",
        "Cosine of radians.",
        numpy=lambda x: np.cos(x),
        torch=lambda x: call("torch.cos", x),
        onnx=lambda b, x: b.op("Cos", x),
    ),
    Activation(
        "reciprocal",
        "1 / x",
        "One divided by each value; written ``1 / x``.",
        numpy=lambda x: 1.0 / x,
        torch=lambda x: call("torch.reciprocal", x),
        onnx=lambda b, x: b.op("Reciprocal", x),
        positive=Positive.KEPT,
    ),
    Activation(
        "floor",
        "the largest whole number not above x",
        "Rounded down.",
        numpy=lambda x: np.floor(x),
        torch=lambda x: call("torch.floor", x),
        onnx=lambda b, x: b.op("Floor", x),
    ),
    Activation(
        "ceil",
        "the smallest whole number not below x",
        "Rounded up.",
        numpy=lambda x: np.ceil(x),
        torch=lambda x: call("torch.ceil", x),
        onnx=lambda b, x: b.op("Ceil", x),
    ),
    Activation(
        "round",
        "the nearest whole number, of two the even one",
        "Rounded to a whole number.",
        numpy=lambda x: np.rint(x),
        torch=lambda x: call("torch.round", x),
        onnx=lambda b, x: b.op("Round", x),
    ),
)
"""Functions of one number that no hyperparameter names."""


def row(activation: Activation) -> Op:
    """The row of the op table for a function of one number."""
    return Op(
        activation.name,
        activation.doc,
        activation.formula,
        ("x",),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        elementwise=True,
        positive=activation.positive,
        numpy=lambda o: (activation.numpy(o.real()),),
        torch=lambda at, x: activation.torch(x[0]),
        onnx=lambda b, site, x: (activation.onnx(b, x[0]),),
    )


_GELUS = {a.attrs["approximate"]: a for a in _ACTIVATIONS if a.op == "gelu"}


def _softcap_numpy(o: Operands) -> tuple[Array, ...]:
    cap = o.number("cap")
    return (cap * np.tanh(o.real() / cap),)


def _clamp_numpy(o: Operands) -> tuple[Array, ...]:
    low, high = o.number_or_none("low"), o.number_or_none("high")
    x = o.real()
    x = x if low is None else np.maximum(x, low)
    return (x if high is None else np.minimum(x, high),)


def _clamp_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    bounds = (("min", "low"), ("max", "high"))
    bounded = {key: at.number(name) for key, name in bounds if at.attrs[name] is not None}
    return method(x[0], "clamp", **bounded) if bounded else x[0]


def _softcap_onnx(b: Builder, site: Site, x: Values) -> Values:
    cap = a_float(site.attrs, "cap")
    bounded = b.op("Tanh", b.with_number("Div", x[0], cap))
    return (b.with_number("Mul", bounded, cap),)


def _clamp_onnx(b: Builder, site: Site, x: Values) -> Values:
    dtype = x[0].dtype
    assert dtype is not None
    low, high = site.attrs["low"], site.attrs["high"]
    bounds = [
        b.number(float(v), dtype) if isinstance(v, int | float) else None for v in (low, high)
    ]
    return (b.op("Clip", x[0], *bounds),)


ACTIVATION_OPS: tuple[Op, ...] = (
    *(row(a) for a in (*_ACTIVATIONS, *_OTHERS) if not a.op),
    replace(
        row(_GELUS["none"]),
        attrs=(
            AttrSpec("approximate", "str", "", default="none", choices=tuple(map(str, _GELUS))),
        ),
        numpy=lambda o: (_GELUS[o.text("approximate")].numpy(o.real()),),
        torch=lambda at, x: _GELUS[at.attrs["approximate"]].torch(x[0]),
        onnx=lambda b, site, x: (_GELUS[site.attrs["approximate"]].onnx(b, x[0]),),
    ),
    Op(
        "softcap",
        "Bounds values to (-c, c), for logits and scores (Gemma 2).",
        "c tanh(x / c)",
        ("x",),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(AttrSpec("cap", "float", "the bound c", required=True),),
        elementwise=True,
        numpy=_softcap_numpy,
        torch=lambda at, x: call("softcap", x[0], at.number("cap")),
        onnx=_softcap_onnx,
    ),
    Op(
        "clamp",
        "Bounds values; ``none`` leaves a side open.",
        "min(max(x, low), high)",
        ("x",),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(
            AttrSpec("low", "float", "lower bound", optional=True),
            AttrSpec("high", "float", "upper bound", optional=True),
        ),
        elementwise=True,
        role=Role.BOUND,
        numpy=_clamp_numpy,
        torch=_clamp_torch,
        onnx=_clamp_onnx,
    ),
    Op(
        "QuickGelu",
        "One kernel for x sigmoid(alpha x).",
        "x sigmoid(alpha x)",
        ("x",),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(AttrSpec("alpha", "float", "", required=True),),
        fused=True,
        elementwise=True,
        onnx=lambda b, site, x: (b.op("QuickGelu", *x, alpha=a_float(site.attrs, "alpha")),),
    ),
)
