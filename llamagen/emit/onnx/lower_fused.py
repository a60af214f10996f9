"""Lowerings of what rewrites put in: operators of ONNX Runtime, and the order of the rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from llamagen.emit.onnx import lower_mixture, lower_quantized
from llamagen.emit.onnx.builder import Builder
from llamagen.emit.onnx.elements import numpy_type
from llamagen.emit.onnx.frequencies import inverse_frequencies
from llamagen.emit.onnx.lower_basic import with_number
from llamagen.emit.onnx.site import Given, Site, Values
from llamagen.emit.onnx.versions import has_input
from llamagen.ir.dims import S, T
from llamagen.ir.optypes import a_bool, a_float, a_int, a_str

INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT

FusedLowering: TypeAlias = Callable[[Builder, Site, Given], Values]


def _attention(b: Builder, site: Site, x: Given) -> Values:
    """Rows are packed: real tokens first. The operator counts them, appends them to the cache and sees no other.

    ``query_seqlens`` is what makes a batch of several tokens after the first call possible; without it the kernel
    refuses such a call, and appends the padding behind the real tokens too. None of them sees it, and the next call
    writes over it.
    """
    query, key, value, past_key, past_value, mask, sinks = (*x, None)[:7]
    assert mask is not None
    window, scale, softcap = (site.attrs[n] for n in ("window", "scale", "softcap"))
    rotary = a_bool(site.attrs, "rotary")
    tables: tuple[ir.Value | None, ...] = _tables(b, site) if rotary else (None, None)
    lengths = _chunk_lengths(b, mask) if has_input(b.runtime, *CHUNKS) else _row_lengths(b, mask)
    until, total, new = lengths
    return b.ops(
        "GroupQueryAttention",
        *(query, key, value, past_key, past_value, until, total, *tables),
        *(None, None, sinks, None, None, None, None, new),
        dtypes=(b.model, b.io, b.io),
        num_heads=a_int(site.attrs, "heads"),
        kv_num_heads=a_int(site.attrs, "kv_heads"),
        scale=None if scale is None else a_float(site.attrs, "scale"),
        softcap=None if softcap is None else a_float(site.attrs, "softcap"),
        local_window_size=None if window is None else a_int(site.attrs, "window"),
        do_rotary=int(rotary),
        rotary_interleaved=int(rotary and a_str(site.attrs, "layout") == "interleaved") or None,
    )


CHUNKS = "GroupQueryAttention", "query_seqlens"
"""The input that says how many tokens of a call each row has."""


def _tables(b: Builder, site: Site) -> Values:
    """Cosines and sines of every position below the context, [max_context, dim / 2], each set of frequencies once.

    The angle is rounded to float32, as models are trained and served; the rest is exact.
    """
    key = f"rope cache {sorted((k, v) for k, v in site.attrs.items() if k in _ROPE)}"
    if key not in b.shared:
        frequencies = inverse_frequencies(site.attrs)
        angles = np.arange(b.max_context, dtype=np.float32)[:, None] * frequencies
        factor = a_float(site.attrs, "attention_factor")
        kind = numpy_type(ir.DataType.FLOAT if b.dtype in b.profile.widened else b.model)
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            table = (function(angles.astype(np.float64)) * factor).astype(np.float32)
            if b.dtype in b.profile.widened:  # the values are those of the dtype all the same
                table = table.astype(numpy_type(b.model)).astype(np.float32)
            b.shared[f"{key} {name}"] = b.constant(f"/rope/{name}_cache", table.astype(kind))
        b.shared[key] = b.shared[f"{key} cos"]
    return b.shared[f"{key} cos"], b.shared[f"{key} sin"]


_ROPE = frozenset(
    {
        *("dim", "theta", "scaling", "factor", "low_freq_factor", "high_freq_factor"),
        *("original_max_positions", "beta_fast", "beta_slow", "attention_factor"),
    }
)


def _new_mask(b: Builder, mask: ir.Value) -> ir.Value:
    """int64[B, S]: 1 for the real tokens of this call."""
    if "new mask" not in b.shared:
        with b.within("/rows"):
            start = b.op("Neg", b.size(S))
            b.shared["new mask"] = b.op("Slice", mask, start, b.size(T), b.ints([1]))
    return b.shared["new mask"]


def _row_lengths(b: Builder, mask: ir.Value) -> tuple[ir.Value, ir.Value, None]:
    """int32: the position of each row's last slot behind its past tokens, [B], and the longest row with padding, []."""
    if "row lengths" not in b.shared:
        with b.within("/rows"):
            along = b.ints([1])
            new = b.op("ReduceSum", _new_mask(b, mask), along, keepdims=0)
            past = b.op("Sub", b.op("ReduceSum", mask, along, keepdims=0), new)
            last = b.op("Sub", b.op("Add", past, b.size(S)), b.ints([1]))
            b.shared["row lengths"] = b.to(last, INT32)
            b.shared["total length"] = b.to(b.op("Squeeze", b.size(T), b.ints([0])), INT32)
    return b.shared["row lengths"], b.shared["total length"], None


def _chunk_lengths(b: Builder, mask: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """int32: each row's last real position, [B], the longest row with padding, [], and each row's new tokens, [B].

    A row that has only padding so far counts one token: the kernel needs one, and the first real token takes its place.
    """
    if "row lengths" not in b.shared:
        with b.within("/rows"):
            along = b.ints([1])
            real = b.op("ReduceSum", mask, along, keepdims=0)
            new = b.op("ReduceSum", _new_mask(b, mask), along, keepdims=0)
            last = b.op("Sub", b.op("Max", real, b.whole(1)), b.whole(1))
            added = b.op("Sub", b.op("Add", last, b.whole(1)), b.op("Sub", real, new))
            total = b.op("Squeeze", b.size(T), b.ints([0]))
            b.shared["row lengths"] = b.to(last, INT32)
            b.shared["total length"] = b.to(total, INT32)
            b.shared["new lengths"] = b.to(added, INT32)
    return b.shared["row lengths"], b.shared["total length"], b.shared["new lengths"]


def _pack_rows(b: Builder, site: Site, x: Given) -> Values:
    """Real tokens first, each part in its order: a sort by (padding, place)."""
    rows, mask = x
    assert rows is not None and mask is not None
    if "packed order" not in b.shared:
        with b.within("/rows"):
            size = b.size(S)
            count = b.op("Squeeze", size, b.ints([0]))
            places = b.op("Range", b.whole(0), count, b.whole(1))
            padding = b.op("Sub", b.whole(1), _new_mask(b, mask))
            key = b.op("Add", b.op("Mul", padding, count), places)
            _, order = b.ops("TopK", key, size, dtypes=(INT64, INT64), axis=1, largest=0)
            b.shared["packed order"] = order
    order = b.shared["packed order"]
    if len(site.dims()) == 2:
        return (b.op("GatherElements", rows, order, axis=1),)
    return (b.op("GatherND", rows, b.op("Unsqueeze", order, b.ints([2])), batch_dims=1),)


def _unpack_rows(b: Builder, site: Site, x: Given) -> Values:
    """Each token's row where the caller had it. Padding gets the row of the real token before it, or the first."""
    rows, mask = x
    assert rows is not None and mask is not None
    if "places" not in b.shared:
        with b.within("/rows"):
            before = b.op("Sub", b.op("CumSum", _new_mask(b, mask), b.whole(1)), b.whole(1))
            b.shared["places"] = b.op("Unsqueeze", b.op("Max", before, b.whole(0)), b.ints([2]))
    return (b.op("GatherND", rows, b.shared["places"], batch_dims=1),)


def _last_row(b: Builder, site: Site, x: Given) -> Values:
    """The row of the last real token of this call, [B, 1, D]; of a row that has none, any."""
    rows, mask = x
    assert rows is not None and mask is not None
    new = _new_mask(b, mask)
    if a_bool(site.attrs, "packed"):
        count = b.op("ReduceSum", new, b.ints([1]), keepdims=1)
        place = b.op("Max", b.op("Sub", count, b.whole(1)), b.whole(0))
    else:
        place = b.op("ArgMax", new, axis=1, keepdims=1, select_last_index=1)
    return (b.op("GatherND", rows, b.op("Unsqueeze", place, b.ints([2])), batch_dims=1),)


def _skip_norm(b: Builder, site: Site, x: Given) -> Values:
    left, right = x
    gain, offset = site.parameters["weight"], a_float(site.attrs, "offset")
    if offset:
        gain = with_number(b, "Add", gain, offset)
    dtype = b.element(site.results[0].dtype)
    return b.ops(
        "SkipSimplifiedLayerNormalization",
        *(left, right, gain),
        dtypes=(dtype, None, None, dtype),
        epsilon=a_float(site.attrs, "eps"),
    )


def _quick_gelu(b: Builder, site: Site, x: Given) -> Values:
    return (b.op("QuickGelu", *x, alpha=a_float(site.attrs, "alpha")),)


def _fused_matmul(b: Builder, site: Site, x: Given) -> Values:
    assert x[0] is not None
    parts = b.parts(site.parameters["weight"])
    if parts is not None:
        return (lower_quantized.linear(b, parts, x[0], None),)
    return (b.op("FusedMatMul", b.to(x[0], b.model), site.parameters["weight"], transB=1),)


FUSED_LOWERINGS: Mapping[str, FusedLowering] = {
    "GroupQueryAttention": _attention,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "MoE": lower_mixture.mixture,
    "QMoE": lower_mixture.quantized_mixture,
    "pack_rows": _pack_rows,
    "unpack_rows": _unpack_rows,
    "last_row": _last_row,
}
