"""Lowerings of positions, masks, the key/value cache and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.frequencies import inverse_frequencies
from llamagen.emit.onnx.lower_basic import with_number
from llamagen.emit.onnx.site import Lowering, Site, Values
from llamagen.ir.dims import Dim
from llamagen.ir.graph import DType
from llamagen.ir.ops_attention import alibi_slopes
from llamagen.ir.optypes import a_bool, a_float, a_int, a_str

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def _rope_table(b: Builder, site: Site, x: Values) -> Values:
    """Tables of the positions at hand, not of all positions: nothing is baked, no context length is a limit."""
    frequencies = b.constant(f"{b.scope}/inv_freq", inverse_frequencies(site.attrs))
    positions = b.op("Unsqueeze", b.to(x[0], FLOAT), b.ints([-1]))
    angles = b.op("Mul", positions, frequencies)
    factor = a_float(site.attrs, "attention_factor")
    tables = (b.op("Cos", angles), b.op("Sin", angles))
    return tables if factor == 1 else tuple(with_number(b, "Mul", t, factor) for t in tables)


def _grid_rope_table(b: Builder, site: Site, x: Values) -> Values:
    """Sizes are known, so the table is: a constant of a few hundred rows."""
    rows, columns, extra = (a_int(site.attrs, n) for n in ("rows", "columns", "extra"))
    pairs = a_int(site.attrs, "dim") // 2
    theta = a_float(site.attrs, "theta")
    frequencies = theta ** (-2.0 * np.arange(pairs // 2, dtype=np.float64) / pairs)
    row, column = np.divmod(np.arange(rows * columns), columns)
    turned = np.concatenate([np.outer(column + 1, frequencies), np.outer(row + 1, frequencies)], 1)
    angles = np.concatenate([turned, np.zeros((extra, pairs))])[None]
    tables = (("cos", np.cos(angles)), ("sin", np.sin(angles)))
    return tuple(b.constant(f"{b.scope}/{name}", t.astype(np.float32)) for name, t in tables)


def _rotate(b: Builder, site: Site, x: Values) -> Values:
    head_dim, width = site.dims()[-1].value, 2 * site.dims(1)[-1].value
    interleaved = a_str(site.attrs, "layout") == "interleaved"
    dtype = b.element(site.results[0].dtype)
    inside = FLOAT if interleaved else dtype
    operands = [b.to(t, inside) for t in x]
    if site.dims(1)[0] != site.dims()[0]:  # one table for all rows
        shape = b.shape((site.dims()[0], *site.dims(1)[1:]))
        operands[1:] = [_repeated(b, t, shape) for t in operands[1:]]
    partial = width if width != head_dim else None
    rotated = b.op(
        "RotaryEmbedding", *operands, interleaved=int(interleaved), rotary_embedding_dim=partial
    )
    return (b.to(rotated, dtype),)


def _repeated(b: Builder, table: ir.Value, shape: ir.Value) -> ir.Value:
    key = f"repeated {id(table)} {id(shape)}"
    if key not in b.shared:
        with b.within(str(table.name)):
            b.shared[key] = b.op("Expand", table, shape)
    return b.shared[key]


def _slots(b: Builder, new: Dim, total: Dim) -> tuple[ir.Value, ir.Value, ir.Value]:
    """int64: S as [1], the slots of new tokens as [S, 1], those of all tokens as [T]."""
    sizes = b.size(new), b.size(total)
    count, end = (b.op("Squeeze", size, b.ints([0])) for size in sizes)
    keys = b.op("Range", b.whole(0), end, b.whole(1))
    queries = b.op("Range", b.op("Sub", end, count), end, b.whole(1))
    return sizes[0], b.op("Unsqueeze", queries, b.ints([1])), keys


def _causal_mask(b: Builder, site: Site, x: Values) -> Values:
    """bool[B, 1, S, keys]: all tokens, or new ones and the past that a bounded slot keeps.

    ONNX Runtime gives zeros, not NaN, for a query that sees nothing.
    """
    attention_mask, total = x[1], site.dims(1)[1]
    width = site.results[0].shape[3]
    new_size, queries, keys = _slots(b, site.dims()[1], width)
    visible = b.op("LessOrEqual", keys, queries, dtype=BOOL)
    if site.attrs["window"] is not None:
        distance = b.op("Sub", queries, keys)
        near = b.op("Less", distance, b.whole(a_int(site.attrs, "window")), dtype=BOOL)
        visible = b.op("And", visible, near)
    real = _last(b, attention_mask, total, width)
    real = b.op("Unsqueeze", b.to(real, BOOL), b.ints([1, 2]))
    visible = b.op("And", visible, real)
    if site.attrs["chunk"] is not None:
        chunk = b.whole(a_int(site.attrs, "chunk"))
        # Counted over the mask, not the slots: a chunk begins at a true position.
        counted = b.op("Sub", b.op("CumSum", attention_mask, b.whole(1)), b.whole(1))
        block = b.op("Div", counted, chunk)
        of_new = b.op("Slice", block, b.op("Neg", new_size), b.size(total), b.ints([1]))
        of_keys, of_queries = (
            b.op("Unsqueeze", _last(b, block, total, width), b.ints([1, 2])),
            b.op("Unsqueeze", of_new, b.ints([1, 3])),
        )
        visible = b.op("And", visible, b.op("Equal", of_keys, of_queries, dtype=BOOL))
    return (visible,)


def _last(b: Builder, x: ir.Value, total: Dim, width: Dim) -> ir.Value:
    """The last ``width`` columns of x [B, total]."""
    if width == total:
        return x
    start = b.op("Sub", b.size(total), b.size(width))
    return b.op("Slice", x, start, b.size(total), b.ints([1]))


def _attention(b: Builder, site: Site, x: Values) -> Values:
    """Keys and values come whole: past inputs of Attention are three times slower than Concat before it."""
    if a_bool(site.attrs, "alibi") or len(x) > 4:
        return _attention_with_scores_added(b, site, x)
    return (_plain_attention(b, site, x),)


def _plain_attention(b: Builder, site: Site, x: Values) -> ir.Value:
    scale = site.attrs["scale"]
    return b.op(
        "Attention",
        *x,
        scale=site.dims()[-1].value ** -0.5 if scale is None else a_float(site.attrs, "scale"),
        softmax_precision=int(FLOAT),
        softcap=None if site.attrs["softcap"] is None else a_float(site.attrs, "softcap"),
    )


def _attention_with_scores_added(b: Builder, site: Site, x: Values) -> Values:
    """Alibi and sinks as an additive mask [B, N, S, T], in float32: distances and -inf do not fit float16.

    A sink is one more key, of zeros, whose score comes from the mask; its value is zero.
    """
    q, k, v = (b.to(t, FLOAT) for t in x[:3])
    added = _added_scores(b, site, x[3] if len(x) > 3 else None)
    if len(x) > 4:
        heads = site.dims()[1].value
        batch, tokens = site.dims()[0], site.dims()[2]
        column = b.op("Reshape", b.to(x[4], FLOAT), b.ints([1, heads, 1, 1]))
        column = b.op("Expand", column, b.shape((batch, Dim.of(heads), tokens, Dim.of(1))))
        added = b.op("Concat", added, column, axis=3)
        one_more = b.ints([0, 0, 0, 0, 0, 0, 1, 0])
        k, v = b.op("Pad", k, one_more), b.op("Pad", v, one_more)
    result = _plain_attention(b, site, (q, k, v, added))
    return (b.to(result, b.element(site.results[0].dtype)),)


def _added_scores(b: Builder, site: Site, mask: ir.Value | None) -> ir.Value:
    """float32[B, N, S, T] (or broadcastable to it): the bias by distance where a key is seen, -inf elsewhere."""
    heads = site.dims()[1].value
    alibi = a_bool(site.attrs, "alibi")
    key = f"added scores {id(mask)} {heads} {alibi}"
    if key not in b.shared:
        with b.within("/attention/added_scores"):
            b.shared[key] = _bias(b, site, heads, alibi, mask)
    return b.shared[key]


def _bias(b: Builder, site: Site, heads: int, alibi: bool, mask: ir.Value | None) -> ir.Value:
    if alibi:
        _, queries, keys = _slots(b, site.dims()[2], site.dims(1)[2])
        slopes = -np.array(alibi_slopes(heads), dtype=np.float32).reshape(heads, 1, 1)
        slope = b.constant(f"/constants/alibi[{heads}]", slopes)
        bias = b.op("Mul", b.to(b.op("Sub", queries, keys), FLOAT), slope)
    else:
        zeros = np.zeros((heads, 1, 1), dtype=np.float32)
        bias = b.constant(f"/constants/zeros[{heads},1,1]", zeros)
    if mask is None:
        return bias
    return b.op("Where", mask, bias, b.number(-math.inf, FLOAT), dtype=FLOAT)


def _attention_temperature(b: Builder, site: Site, x: Values) -> Values:
    steps = b.op("Div", b.op("Add", x[0], b.whole(1)), b.whole(a_int(site.attrs, "floor_scale")))
    grown = b.op("Log", b.op("Add", b.to(steps, FLOAT), b.number(1.0, FLOAT)))
    scaled = b.op("Mul", grown, b.number(a_float(site.attrs, "scale"), FLOAT))
    return (b.op("Unsqueeze", b.op("Add", scaled, b.number(1.0, FLOAT)), b.ints([1, 3])),)


def append_to_cache(
    b: Builder, new: ir.Value, past: ir.Value, keep: int | None
) -> tuple[ir.Value, ir.Value]:
    """``past`` and ``new`` joined along tokens: what is kept, in the dtype outside, and all of it in the model's."""
    joined = b.op("Concat", past, b.to(new, b.io), axis=2)
    inside = b.inside(joined, DType.MODEL)
    if keep is None:
        return joined, inside
    end = b.ints(
        [np.iinfo(np.int64).max]
    )  # a start beyond the first token, or an end, is cut to what is there
    start = b.ints([-keep]) if keep else end
    return b.op("Slice", joined, start, end, b.ints([2])), inside


ATTENTION_LOWERINGS: Mapping[str, Lowering] = {
    "rope_table": _rope_table,
    "grid_rope_table": _grid_rope_table,
    "rotate": _rotate,
    "causal_mask": _causal_mask,
    "attention": _attention,
    "attention_temperature": _attention_temperature,
}
