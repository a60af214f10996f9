"""One row for each text, of those of its tokens: padding is left out, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llamagen.ops.attention import LONGEST, new_mask, new_places
from llamagen.ops.code import call
from llamagen.ops.dims import B, P, S
from llamagen.ops.lazy import np
from llamagen.ops.op import (
    Attrs,
    DType,
    Op,
    Operands,
    Positive,
    Precision,
    Role,
    TensorType,
    Tokens,
    Types,
    need,
    need_rank,
    need_real,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.ops.op import Ints, Real, Values


def _shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, mask = types
    need_rank(x, 3, "what is pooled")
    need_real(x, "what is pooled")
    need(x.shape[:2] == (B, S), "what is pooled has a row for each token, [B, S, n], it is {}", x)
    marks = mask.dtype is DType.INT64 and mask.shape == (B, P + S)
    need(marks, "the second operand is `attention_mask`, it is {}", mask)
    return (TensorType(x.dtype, (B, x.shape[2])),)


def _real_tokens(o: Operands) -> Ints:
    """[B, S]: 1 for the real tokens of this call."""
    return (o.ints(1)[:, -o.real().shape[1] :] > 0).astype(np.int64)


def _chosen(
    name: str, doc: str, place: Callable[[Ints], Ints], places: Callable[[Builder], ir.Value]
) -> Op:
    """``place`` gives [B] of marks [B, S]; ``places`` int64[S] above 0, the largest of which is taken."""

    def numpy(o: Operands) -> tuple[Real]:
        x = o.real()
        return (x[np.arange(len(x)), place(_real_tokens(o))],)

    def lower(b: Builder, site: Site, x: Values) -> Values:
        rows, mask = x
        weights = b.op("Mul", new_mask(b, mask), places(b))
        # of whole numbers CUDA has no ArgMax, and its ReduceMax wants cuDNN
        _, at = b.ops("TopK", weights, b.ints([1]), dtypes=(b.INT64, b.INT64), axis=1)
        return (b.op("GatherND", rows, at, batch_dims=1),)

    return Op(
        name,
        doc,
        f"y[b] = x[b, {name.partition('_')[0]} s with attention_mask[b, P + s] = 1]",
        ("x", "attention_mask"),
        _shape,
        Precision.EXACT,
        Tokens.MIXED,
        role=Role.CHOSEN_ROWS,
        positive=Positive.KEPT,
        numpy=numpy,
        torch=lambda at, x: call(name, *x),
        onnx=lower,
    )


def _mean_numpy(o: Operands) -> tuple[Real]:
    real = _real_tokens(o)[:, :, None]
    return ((o.real() * real).sum(axis=1) / np.maximum(real.sum(axis=1), 1),)


def _mean_onnx(b: Builder, site: Site, x: Values) -> Values:
    rows, mask = x
    real = b.to(new_mask(b, mask), b.FLOAT)
    # a product with the mask would keep what is no number in the rows of padding
    kept = b.op(
        "Where",
        b.op("Unsqueeze", b.to(new_mask(b, mask), b.BOOL), b.ints([2])),
        b.to(rows, b.FLOAT),
        b.number(0.0, b.FLOAT),
        dtype=b.FLOAT,
    )
    total = b.op("ReduceSum", kept, b.ints([1]), keepdims=0)
    count = b.op("ReduceSum", real, b.ints([1]), keepdims=1)
    mean = b.op("Div", total, b.op("Max", count, b.number(1.0, b.FLOAT)))
    return (b.to(mean, b.element(site.results[0].dtype)),)


POOLING_OPS: tuple[Op, ...] = (
    _chosen(
        "first_token",
        "The row of the first real token of each text, [B, S, n] -> [B, n], by `attention_mask`.",
        lambda real: real.argmax(axis=1),
        lambda b: b.op("Sub", b.whole(LONGEST), new_places(b)),
    ),
    _chosen(
        "last_token",
        "The row of the last real token of each text, [B, S, n] -> [B, n], by `attention_mask`: what a classification "
        "head reads. In a call after others it is the last of that call.",
        lambda real: real.shape[1] - 1 - real[:, ::-1].argmax(axis=1),
        lambda b: b.op("Add", new_places(b), b.whole(1)),
    ),
    Op(
        "mean_tokens",
        "The mean of the rows of real tokens of each text, [B, S, n] -> [B, n], by `attention_mask`; 0 of none. In a "
        "call after others it is that of the call.",
        "sum_s m[b, s] x[b, s] / max(sum_s m[b, s], 1), m = attention_mask[:, P:]",
        ("x", "attention_mask"),
        _shape,
        Precision.FLOAT32_INSIDE,
        Tokens.MIXED,
        numpy=_mean_numpy,
        torch=lambda at, x: call("mean_tokens", *x),
        onnx=_mean_onnx,
    ),
)
