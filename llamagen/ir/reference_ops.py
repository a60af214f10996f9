"""Formulas of the op table in numpy float64: arithmetic, selection, layout, parts with parameters.

Each function is written from the formula of its row, not from a backend. Reals are float64 whatever
the row's compute precision says: rounding is what the backends are measured for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamagen.ir.graph import Attrs
from llamagen.ir.ops_basic import parse_dims
from llamagen.ir.optypes import a_bool, a_float, a_int, a_ints, a_str

Real: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Array: TypeAlias = NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Operands:
    """What one application of an op is computed from.

    ``sizes`` are the values of ``B``, ``S`` and ``P``. ``stored`` gives a parameter by its local
    name, in the dtype it is kept in. ``float32_angles`` rounds what a rotation is computed from.
    """

    tensors: Sequence[Array]
    attrs: Attrs
    sizes: Mapping[str, int]
    stored: Callable[[str], NDArray[np.generic]]
    float32_angles: bool = False

    def real(self, i: int = 0) -> Real:
        array = self.tensors[i]
        assert array.dtype == np.float64, array.dtype
        return array.astype(np.float64, copy=False)

    def ints(self, i: int = 0) -> Ints:
        array = self.tensors[i]
        assert array.dtype == np.int64, array.dtype
        return array.astype(np.int64, copy=False)

    def weight(self, name: str) -> Real:
        return widened(self.stored(name))

    def number(self, name: str) -> float:
        return a_float(self.attrs, name)

    def whole(self, name: str) -> int:
        return a_int(self.attrs, name)

    def text(self, name: str) -> str:
        return a_str(self.attrs, name)

    def number_or_none(self, name: str) -> float | None:
        return None if self.attrs[name] is None else a_float(self.attrs, name)


MAX_WIDENED = 2**23
"""Elements of a large weight that are float64 at one time."""


def widened(stored: NDArray[np.generic]) -> Real:
    return np.asarray(stored, dtype=np.float64)


Formula: TypeAlias = Callable[[Operands], tuple[Array, ...]]


def sigmoid(x: Real) -> Real:
    """1 / (1 + exp(-x)), with an exponent that is never positive."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Real) -> Real:
    """x Phi(x), Phi the distribution function of the standard normal (arXiv 1606.08415)."""
    result: Real = 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))
    return result


def gelu_tanh(x: Real) -> Real:
    """The approximation of arXiv 1606.08415, section 2."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATION: Mapping[str, Callable[[Real], Real]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
}


def softmax(x: Real, axis: int) -> Real:
    """exp(x - max x) / sum exp(x - max x); -inf counts nothing, a slice of -inf gives zeros."""
    top = x.max(axis=axis, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(top), top, 0.0))
    total = e.sum(axis=axis, keepdims=True)
    return e / np.where(total > 0, total, 1.0)


def rms_normalize(x: Real, eps: float) -> Real:
    mean_square: Real = (x**2).mean(axis=-1, keepdims=True)
    result: Real = x / np.sqrt(mean_square + eps)
    return result


def _activation(name: str) -> Formula:
    return lambda o: (ACTIVATION[name](o.real()),)


def _gelu(o: Operands) -> tuple[Array, ...]:
    return (gelu_tanh(o.real()) if o.text("approximate") == "tanh" else gelu(o.real()),)


def _softcap(o: Operands) -> tuple[Array, ...]:
    cap = o.number("cap")
    return (cap * np.tanh(o.real() / cap),)


def _clamp(o: Operands) -> tuple[Array, ...]:
    low, high = o.number_or_none("low"), o.number_or_none("high")
    x = o.real()
    x = x if low is None else np.maximum(x, low)
    return (x if high is None else np.minimum(x, high),)


def _topk(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    # Stable on the negated values: of equal values the first one wins.
    order = np.argsort(-x, axis=-1, kind="stable")[..., : o.whole("k")].astype(np.int64)
    return (np.take_along_axis(x, order, axis=-1), order)


def _gather(o: Operands) -> tuple[Array, ...]:
    return (np.take_along_axis(o.real(), o.ints(1), axis=-1),)


def _split_heads(o: Operands) -> tuple[Array, ...]:
    x, heads = o.real(), o.whole("heads")
    b, s, width = x.shape
    return (x.reshape(b, s, heads, width // heads).transpose(0, 2, 1, 3),)


def _repeat_heads(o: Operands) -> tuple[Array, ...]:
    return (np.repeat(o.real(), o.whole("heads"), axis=1),)


def _merge_heads(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    b, heads, s, size = x.shape
    return (x.transpose(0, 2, 1, 3).reshape(b, s, heads * size),)


def _split(o: Operands) -> tuple[Array, ...]:
    ends = np.cumsum(a_ints(o.attrs, "sizes"))[:-1]
    return tuple(np.split(o.real(), ends, axis=o.whole("axis")))


def _concat(o: Operands) -> tuple[Array, ...]:
    return (np.concatenate([o.real(i) for i in range(len(o.tensors))], axis=o.whole("axis")),)


def _reshape(o: Operands) -> tuple[Array, ...]:
    return (o.tensors[0].reshape([d.evaluate(o.sizes) for d in parse_dims(o.attrs)]),)


def _replace_rows(o: Operands) -> tuple[Array, ...]:
    x, rows = o.real(0).copy(), o.real(1)
    places = np.argwhere(o.ints(2) == o.whole("id"))
    rows = rows.reshape(-1, rows.shape[-1])
    if len(places) != len(rows):
        raise ValueError(f"{len(places)} tokens stand for {len(rows)} rows of features")
    for (b, s), row in zip(places, rows, strict=True):
        x[b, s] = row
    return (x,)


def _expand(o: Operands) -> tuple[Array, ...]:
    shape = [d.evaluate(o.sizes) for d in parse_dims(o.attrs)]
    return (np.broadcast_to(o.real(), shape).copy(),)


def _slice(o: Operands) -> tuple[Array, ...]:
    wanted = np.arange(o.whole("start"), o.whole("stop"))
    return (np.take(o.real(), wanted, axis=o.whole("axis")),)


def _pad(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    widths = [(0, 0)] * x.ndim
    widths[o.whole("axis")] = (o.whole("before"), o.whole("after"))
    return (np.pad(x, widths),)


def _conv2d(o: Operands) -> tuple[Array, ...]:
    """Place by place: the kernel against the patch below it."""
    x, weight = o.real(), o.weight("weight")
    kernel, stride = o.whole("kernel"), o.whole("stride")
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[2:])
    y = np.empty((len(x), len(weight), rows, columns))
    for i, j in np.ndindex(rows, columns):
        top, left = i * stride, j * stride
        patch = x[:, :, top : top + kernel, left : left + kernel]
        y[:, :, i, j] = np.einsum("ncuv,ocuv->no", patch, weight)
    return (y + o.weight("bias")[:, None, None] if a_bool(o.attrs, "bias") else y,)


def _embedding(o: Operands) -> tuple[Array, ...]:
    return (widened(o.stored("weight")[o.ints()]),)


def _linear(o: Operands) -> tuple[Array, ...]:
    x, weight = o.real(), o.stored("weight")
    rows = max(1, MAX_WIDENED // weight.shape[1])
    blocks = (widened(weight[i : i + rows]) for i in range(0, len(weight), rows))
    y = np.concatenate([x @ block.T for block in blocks], axis=-1)
    return (y + o.weight("bias") if a_bool(o.attrs, "bias") else y,)


def _rms_norm(o: Operands) -> tuple[Array, ...]:
    gain = o.number("offset") + o.weight("weight")
    return (gain * rms_normalize(o.real(), o.number("eps")),)


def _layer_norm(o: Operands) -> tuple[Array, ...]:
    x = o.real()
    centred = x - x.mean(axis=-1, keepdims=True)
    y = rms_normalize(centred, o.number("eps"))  # the variance is the mean square of what is left
    y = y * o.weight("weight") if a_bool(o.attrs, "weight") else y
    return (y + o.weight("bias") if a_bool(o.attrs, "bias") else y,)


def _experts(o: Operands) -> tuple[Array, ...]:
    """Sum over a token's experts: w_j down(act(gate(x)) up(x)), or with w_j on x."""
    x, chosen, weights = o.real(0), o.ints(1), o.real(2)
    act, width = ACTIVATION[o.text("act")], o.whole("intermediate")
    y = np.zeros_like(x)
    for e in np.unique(chosen):
        gate_up, down = (widened(o.stored(n)[e]) for n in ("gate_up_proj", "down_proj"))
        if o.text("layout") == "out_in":
            gate_up, down = gate_up.T, down.T
        for *token, j in np.argwhere(chosen == e):
            at, w = tuple(token), weights[*token, j]
            inside, outside = (w, 1.0) if o.text("scale") == "input" else (1.0, w)
            both = (inside * x[at]) @ gate_up
            y[at] += outside * ((act(both[:width]) * both[width:]) @ down)
    return (y,)


OP_FORMULAS: Mapping[str, Formula] = {
    "add": lambda o: (o.real(0) + o.real(1),),
    "sub": lambda o: (o.real(0) - o.real(1),),
    "mul": lambda o: (o.real(0) * o.real(1),),
    "div": lambda o: (o.real(0) / o.real(1),),
    "add_scalar": lambda o: (o.real() + o.number("value"),),
    "mul_scalar": lambda o: (o.real() * o.number("value"),),
    "div_scalar": lambda o: (o.real() / o.number("value"),),
    "neg": lambda o: (-o.real(),),
    "silu": _activation("silu"),
    "gelu": _gelu,
    "relu": _activation("relu"),
    "relu2": _activation("relu2"),
    "sigmoid": _activation("sigmoid"),
    "tanh": _activation("tanh"),
    "softplus": lambda o: (np.logaddexp(0.0, o.real()),),
    "exp": lambda o: (np.exp(o.real()),),
    "square": lambda o: (o.real() ** 2,),
    "sqrt": lambda o: (np.sqrt(o.real()),),
    "softcap": _softcap,
    "clamp": _clamp,
    "rms_normalize": lambda o: (rms_normalize(o.real(), o.number("eps")),),
    "float32": lambda o: (o.real(),),
    "model_dtype": lambda o: (o.real(),),
    "softmax": lambda o: (softmax(o.real(), o.whole("axis")),),
    "topk": _topk,
    "gather": _gather,
    "sum": lambda o: (o.real().sum(axis=o.whole("axis"), keepdims=True),),
    "mean": lambda o: (o.real().mean(axis=o.whole("axis"), keepdims=True),),
    "split_heads": _split_heads,
    "repeat_heads": _repeat_heads,
    "merge_heads": _merge_heads,
    "split": _split,
    "concat": _concat,
    "reshape": _reshape,
    "expand": _expand,
    "replace_rows": _replace_rows,
    "permute": lambda o: (o.tensors[0].transpose(a_ints(o.attrs, "axes")),),
    "slice": _slice,
    "pad": _pad,
    "conv2d": _conv2d,
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "parameter": lambda o: (o.weight(""),),
    "experts": _experts,
}
