"""Attention, its masks and its cache; fused, and then the order of the rows of tokens that the kernel wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamagen.diagnostics import LlamagenError
from llamagen.ops.arithmetic import softmax
from llamagen.ops.code import (
    Binary,
    Code,
    Keyword,
    Shared,
    Text,
    call,
    literal,
)
from llamagen.ops.dims import Dim, S, T, past_of
from llamagen.ops.lazy import ir, np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    Carried,
    Cuts,
    DType,
    NeedsCut,
    NeedsWhole,
    Op,
    Operands,
    Precision,
    Role,
    State,
    TensorType,
    Tokens,
    Types,
    a_bool,
    a_float,
    a_int,
    a_str,
    elements,
    int_attr,
    keep_of,
    need,
    need_rank,
    need_real,
    parse_dims,
)
from llamagen.ops.rope import ROPE_KINDS, inverse_frequencies, rope_attrs

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import PreludeSite, TorchSite
    from llamagen.ops.op import Array, Values


MAX_HEADS = 2**16
"""Most heads with slopes: backends keep a number for each in the model itself."""


def _mask_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    positions, attention_mask = types
    for name in ("window", "chunk"):
        size = attrs[name]
        need(
            size is None or (isinstance(size, int) and size > 0),
            f"{name} must be above 0, not {size}",
        )
    b, s = positions.shape
    keep = keep_of(attrs)
    keys = attention_mask.shape[1] if keep is None else past_of(keep) + s
    if attrs.get("padding") == "new":
        keys = s
    return (TensorType(DType.BOOL, (b, Dim.of(1), s, keys)),)


def _causal_mask_numpy(o: Operands) -> tuple[Array, ...]:
    real_token = o.ints(1) > 0
    new, total = o.ints(0).shape[1], real_token.shape[1]
    i = np.arange(total - new, total)[:, None]  # the query's slot
    j = np.arange(total)[None, :]  # the key's slot
    visible = (j <= i) & real_token[:, None, :]
    if o.attrs.get("padding") is not None:
        visible = np.broadcast_to(real_token[:, None, :], visible.shape)
    if (window := o.number_or_none("window")) is not None:
        visible &= i - j < window
    if (chunk := o.number_or_none("chunk")) is not None:
        # Slots and true positions differ by the row's padding; a chunk counts true ones.
        block = np.maximum(np.cumsum(real_token, axis=1) - 1, 0) // int(chunk)
        visible &= block[:, total - new :, None] == block[:, None, :]
    keep = 0 if o.attrs.get("padding") == "new" else keep_of(o.attrs)
    first = 0 if keep is None else max(total - new - keep, 0)
    return (visible[:, None, :, first:],)


def _causal_mask_prelude(at: PreludeSite) -> Shared:
    window, chunk = at.attrs["window"], at.attrs["chunk"]
    if isinstance(window, int) and isinstance(chunk, int):
        message = "a mask has a window or a chunk, not both"
        raise LlamagenError.of("LG741", message, at.span)
    arguments = ["S", "P", "attention_mask", "device"]
    function, type_ = "causal_mask", "Tensor" if at.special else "Tensor | None"
    if isinstance(window, int):
        function, type_ = "sliding_causal_mask", "Tensor"
        arguments.append(at.like(window, "sliding_window"))
    elif isinstance(chunk, int):
        function, type_ = "chunked_causal_mask", "Tensor"
        arguments.append(at.like(chunk, "attention_chunk_size"))
    elif (padding := at.attrs.get("padding")) is not None:
        function, type_ = "padding_mask", "Tensor"
        if padding == "new":
            arguments[1] = "0"
    causal = window is None and chunk is None and function == "causal_mask"
    if (
        at.bounded and function != "padding_mask" and not causal
    ):  # then each takes how many past keys there are at most
        arguments.append(at.kept() or "P")
    return at.mask(function, arguments, type_, causal)


def _slots(b: Builder, new: Dim, total: Dim) -> tuple[ir.Value, ir.Value, ir.Value]:
    """int64: S as [1], the slots of new tokens as [S, 1], those of all tokens as [T]."""
    sizes = b.size(new), b.size(total)
    count, end = (b.op("Squeeze", size, b.ints([0])) for size in sizes)
    keys = b.op("Range", b.whole(0), end, b.whole(1))
    queries = b.op("Range", b.op("Sub", end, count), end, b.whole(1))
    return sizes[0], b.op("Unsqueeze", queries, b.ints([1])), keys


def _causal_mask_onnx(b: Builder, site: Site, x: Values) -> Values:
    """bool[B, 1, S, keys]: all tokens, or new ones and the past that a bounded slot keeps.

    ONNX Runtime gives zeros, not NaN, for a query that sees nothing.
    """
    attention_mask, total = x[1], site.dims(1)[1]
    width = site.results[0].shape[3]
    new_size, queries, keys = _slots(b, site.dims()[1], width)
    if site.attrs.get("padding") is not None:
        queries = b.op("Max", queries, b.size(width))  # as if each were behind all keys
    visible = b.op("LessOrEqual", keys, queries, dtype=b.BOOL)
    if site.attrs["window"] is not None:
        distance = b.op("Sub", queries, keys)
        near = b.op("Less", distance, b.whole(a_int(site.attrs, "window")), dtype=b.BOOL)
        visible = b.op("And", visible, near)
    real = _last(b, attention_mask, total, width)
    real = b.op("Unsqueeze", b.to(real, b.BOOL), b.ints([1, 2]))
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
        visible = b.op("And", visible, b.op("Equal", of_keys, of_queries, dtype=b.BOOL))
    return (visible,)


def _last(b: Builder, x: ir.Value, total: Dim, width: Dim) -> ir.Value:
    """The last ``width`` columns of x [B, total]."""
    if width == total:
        return x
    start = b.op("Sub", b.size(total), b.size(width))
    return b.op("Slice", x, start, b.size(total), b.ints([1]))


def _cache_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    past = past_of(keep_of(attrs))
    results: list[TensorType] = []
    for t, what in zip(types, ("keys", "values"), strict=True):
        need_rank(t, 4, f"cached {what}")
        results.append(TensorType(t.dtype, (*t.shape[:2], t.shape[2] + past, t.shape[3])))
    need(types[0].shape[:3] == types[1].shape[:3], f"keys {types[0]} and values {types[1]} differ")
    return tuple(results)


def _cache_states(types: Types, attrs: Attrs) -> tuple[Carried, ...]:
    past = past_of(keep_of(attrs))
    found = (TensorType(t.dtype, (*t.shape[:2], past, t.shape[3])) for t in types)
    return tuple(map(Carried, ("key", "value"), found, _cache_shape(types, attrs)))


def _cache_numpy(o: Operands) -> tuple[Array, ...]:
    whole = [np.concatenate([o.states[i], o.real(i)], axis=2) for i in range(2)]
    total = whole[0].shape[2]
    keep = total if (limit := keep_of(o.attrs)) is None else min(limit, total)
    return (*whole, *(x[:, :, total - keep :] for x in whole))


def _cache_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Joined along tokens in the dtype outside; all of it is read in the model's."""
    whole: list[ir.Value] = []
    kept: list[ir.Value] = []
    keep = keep_of(site.attrs)
    for past, new in zip(site.states, x, strict=True):
        joined = b.op("Concat", past, b.to(new, b.io), axis=2)
        whole.append(b.inside(joined, DType.MODEL))
        if keep is not None:
            # a start beyond the first token, or an end, is cut to what is there
            end = b.ints([np.iinfo(np.int64).max])
            start = b.ints([-keep]) if keep else end
            joined = b.op("Slice", joined, start, end, b.ints([2]))
        kept.append(joined)
    return (*whole, *kept)


def _cross_write_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    for t, what in zip(types, ("keys", "values"), strict=True):
        need_rank(t, 4, f"cross-attention {what}")
        need_real(t, f"cross-attention {what}")
    need(types[0].shape[:3] == types[1].shape[:3], f"keys {types[0]} and values {types[1]} differ")
    return tuple(types)


def _cross_read_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    keys = TensorType(DType.MODEL, parse_dims(attrs))
    need_rank(keys, 4, "cross-attention keys")
    return (keys, keys)


def _attention_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    q, k, v = types[:3]
    for t, what in ((q, "queries"), (k, "keys"), (v, "values")):
        need_rank(t, 4, what)
        need_real(t, what)
    need(q.shape[-1] == k.shape[-1], "queries {} and keys {} differ in head_dim", q, k)
    same = k.shape[:3] == v.shape[:3]
    need(same, "keys {} and values {} differ in heads or length", k, v)
    heads, kv_heads = q.shape[1].value, k.shape[1].value
    need(
        heads % kv_heads == 0,
        f"{heads} query heads cannot share {kv_heads} key/value heads: not a multiple",
    )
    need(
        attrs.get("alibi") is not True or heads <= MAX_HEADS,
        f"alibi has slopes for at most {MAX_HEADS} heads, not {heads}",
    )
    if len(types) > 3:
        want = (q.shape[0], Dim.of(1), q.shape[2], k.shape[2])
        need(
            types[3].shape == want,
            "the mask {} does not fit queries {} and keys {}; are keys cached?",
            *(types[3], q, k),
        )
    if len(types) > 4:
        need_real(types[4], "sinks")
        need(
            types[4].shape == (q.shape[1],),
            f"sinks must be one number a head, [{heads}], not {types[4]}",
        )
    return (TensorType(q.dtype, (*q.shape[:3], v.shape[3])),)


def _attention_cut(cuts: Cuts, operands: Types, results: Types, attrs: Attrs) -> Cuts:
    """Every rank has some of the query heads, and the key/value heads that they read: its own, or the only one."""
    q, k, v = cuts[:3]
    if q is None or q.units == 0:
        if any(cut is not None and cut.units for cut in (k, v)):
            raise NeedsWhole("has whole queries of cut keys")
        return (None,)
    if q.axis != 1 or any(cut is not None and cut.axis != 1 for cut in (k, v)):
        raise NeedsWhole("needs whole heads")
    if operands[1].shape[1] != Dim.of(1) and (k is None or v is None):
        raise NeedsWhole("has cut queries of whole keys")
    if len(cuts) > 4 and cuts[4] is None:
        raise NeedsCut(4, 0)
    return (q,)


def _attention_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    q, k, v = operands[:3]
    scores = elements(q.shape[:3]) * k.shape[2]
    return scores * q.shape[3] * 2 + scores * v.shape[3] * 2


def _attention_numpy(o: Operands) -> tuple[Array, ...]:
    q, k, v = o.real(0), o.real(1), o.real(2)
    scale, cap = o.number_or_none("scale"), o.number_or_none("softcap")
    group = q.shape[1] // k.shape[1]
    slopes = slopes_of(q.shape[1]) if a_bool(o.attrs, "alibi") else None
    total = k.shape[2]
    distance = np.arange(total - q.shape[2], total)[:, None] - np.arange(total)[None, :]
    y = np.empty((*q.shape[:3], v.shape[3]))
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h // group].swapaxes(1, 2)
        scores = scores * (1.0 / math.sqrt(q.shape[3]) if scale is None else scale)
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        scores = scores if slopes is None else scores - slopes[h] * distance
        if len(o.tensors) > 3:
            scores = np.where(o.tensors[3][:, 0], scores, -np.inf)
        if len(o.tensors) > 4:
            sink = np.broadcast_to(o.real(4)[h], (*scores.shape[:2], 1))
            share = softmax(np.concatenate([scores, sink], axis=-1), axis=-1)[..., :-1]
        else:
            share = softmax(scores, axis=-1)
        y[:, h] = share @ v[:, h // group]
    return (y,)


def slopes_of(heads: int) -> list[float]:
    """arXiv 2108.12409 and its footnote, written as the recursion the authors published."""

    def of_power(n: int) -> list[float]:
        start = 2.0 ** (-(2.0 ** -(math.log2(n) - 3)))
        return [start ** (h + 1) for h in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    if below == heads:
        return of_power(heads)
    return of_power(below) + slopes_of(2 * below)[0::2][: heads - below]


def _attention_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    return at.attention(x[:4], [Keyword(name, _extra(name, at, x)) for name in at.extras])


def _extra(name: str, at: TorchSite, x: Sequence[Code]) -> Code:
    match name:
        case "scale" if at.attrs["scale"] is None:
            return Binary("**", at.size(at.operand_types[0].shape[-1]), literal(-0.5))
        case "scale":
            return at.number("scale")
        case "cap":
            return at.number("softcap")
        case "sinks":
            return x[4] if len(x) > 4 else literal(None)
        case _:
            if at.attrs.get("alibi") is not True:
                return literal(None)
            return Text("self.slopes")


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """m_h of arXiv 2108.12409: 2^(-8h/n), h = 1..n, for n heads, n a power of two; for other counts the slopes of
    the power below, then every other slope of the power above."""
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / below) for h in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * h / below) for h in range(1, 2 * below, 2)]
    return tuple(slopes[:heads])


_UNSEEN = -3.4028234663852886e38
"""The lowest float32, added to a score.

With -inf ONNX Runtime 1.27 gives NaN to padding, which sees nothing, and so to all behind it.
"""


def _attention_onnx(b: Builder, site: Site, x: Values) -> Values:
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
        softmax_precision=int(b.FLOAT),
        softcap=None if site.attrs["softcap"] is None else a_float(site.attrs, "softcap"),
    )


def _attention_with_scores_added(b: Builder, site: Site, x: Values) -> Values:
    """Alibi and sinks as an additive mask [B, N, S, T], in float32: distances and ``_UNSEEN`` do not fit float16.

    A sink is one more key, of zeros, whose score comes from the mask; its value is zero.
    """
    q, k, v = (b.to(t, b.FLOAT) for t in x[:3])
    added = _added_scores(b, site, x[3] if len(x) > 3 else None)
    if len(x) > 4:
        heads = site.dims()[1].value
        batch, tokens = site.dims()[0], site.dims()[2]
        column = b.op("Reshape", b.to(x[4], b.FLOAT), b.ints([1, heads, 1, 1]))
        column = b.op("Expand", column, b.shape((batch, Dim.of(heads), tokens, Dim.of(1))))
        added = b.op("Concat", added, column, axis=3)
        one_more = b.ints([0, 0, 0, 0, 0, 0, 1, 0])
        k, v = b.op("Pad", k, one_more), b.op("Pad", v, one_more)
    result = _plain_attention(b, site, (q, k, v, added))
    return (b.to(result, b.element(site.results[0].dtype)),)


def _added_scores(b: Builder, site: Site, mask: ir.Value | None) -> ir.Value:
    """float32[B, N, S, T] (or broadcastable to it): the bias by distance where a key is seen, ``_UNSEEN`` elsewhere."""
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
        bias = b.op("Mul", b.to(b.op("Sub", queries, keys), b.FLOAT), slope)
    else:
        zeros = np.zeros((heads, 1, 1), dtype=np.float32)
        bias = b.constant(f"/constants/zeros[{heads},1,1]", zeros)
    if mask is None:
        return bias
    return b.op("Where", mask, bias, b.number(_UNSEEN, b.FLOAT), dtype=b.FLOAT)


def _temperature_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    b, s = types[0].shape
    return (TensorType(DType.FLOAT32, (b, Dim.of(1), s, Dim.of(1))),)


def _temperature_numpy(o: Operands) -> tuple[Array, ...]:
    steps = np.floor((o.ints() + 1) / o.whole("floor_scale"))
    return ((1.0 + o.number("scale") * np.log(1.0 + steps))[:, None, :, None],)


def _temperature_prelude(at: PreludeSite) -> Shared:
    variable = at.results[0].replace("attention_temperature", "temperature")
    scale = at.like(a_float(at.attrs, "scale"), "attention_temperature_scale")
    floor_scale = at.like(a_int(at.attrs, "floor_scale"), "attention_temperature_floor")
    call = f"temperature_table(position_ids, {scale}, {floor_scale})"
    return Shared("temperature", (variable,), "Tensor", call)


def _temperature_onnx(b: Builder, site: Site, x: Values) -> Values:
    steps = b.op("Div", b.op("Add", x[0], b.whole(1)), b.whole(a_int(site.attrs, "floor_scale")))
    grown = b.op("Log", b.op("Add", b.to(steps, b.FLOAT), b.number(1.0, b.FLOAT)))
    scaled = b.op("Mul", grown, b.number(a_float(site.attrs, "scale"), b.FLOAT))
    return (b.op("Unsqueeze", b.op("Add", scaled, b.number(1.0, b.FLOAT)), b.ints([1, 3])),)


def _fused_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Of the operands only the pasts have a dimension of heads."""
    query, pasts = types[0], [t for t in types if len(t.shape) == 4]
    batch, tokens = query.shape[:2]
    presents = [TensorType(t.dtype, (*t.shape[:2], t.shape[2] + tokens, t.shape[3])) for t in pasts]
    width = Dim.of(a_int(attrs, "heads")) * pasts[0].shape[3]
    return (TensorType(query.dtype, (batch, tokens, width)), *presents)


CHUNKS = "GroupQueryAttention", "query_seqlens"
"""The input that says how many tokens of a call each row has."""
CODES = "GroupQueryAttention", "k_scale"
"""The input that a cache of 8 bits comes with."""


def _fused_onnx(b: Builder, site: Site, x: Values) -> Values:
    """Rows are packed: real tokens first. The operator counts them, appends them to the cache and sees no other.

    ``query_seqlens`` is what makes a batch of several tokens after the first call possible; without it the kernel
    refuses such a call, and appends the padding behind the real tokens too. None of them sees it, and the next call
    writes over it. A cache in codes is code * scale, of each feature of each head its own scale; it codes new keys and
    values before it reads them.
    """
    query, key, value, past_key, past_value, mask, sinks = (*site.given, None)[:7]
    assert past_key is not None and past_value is not None and mask is not None
    window, scale, softcap = (site.attrs[n] for n in ("window", "scale", "softcap"))
    rotary = a_bool(site.attrs, "rotary")
    tables: tuple[ir.Value | None, ...] = _tables(b, site) if rotary else (None, None)
    lengths = _chunk_lengths(b, mask) if b.has_input(*CHUNKS) else _row_lengths(b, mask)
    until, total, new = lengths
    scales = b.cache_scales.get(past_key.name), b.cache_scales.get(past_value.name)
    codes = None if scales[0] is None else "PER_CHANNEL"
    return b.ops(
        "GroupQueryAttention",
        *(query, key, value, past_key, past_value, until, total, *tables),
        *(None, None, sinks, *scales, None, None, new),
        dtypes=(b.model, past_key.dtype, past_value.dtype),
        num_heads=a_int(site.attrs, "heads"),
        kv_num_heads=a_int(site.attrs, "kv_heads"),
        scale=None if scale is None else a_float(site.attrs, "scale"),
        softcap=None if softcap is None else a_float(site.attrs, "softcap"),
        local_window_size=None if window is None else a_int(site.attrs, "window"),
        kv_cache_bit_width=None if codes is None else 8,
        k_quant_type=codes,
        v_quant_type=codes,
        do_rotary=int(rotary),
        rotary_interleaved=int(rotary and a_str(site.attrs, "layout") == "interleaved") or None,
    )


def _tables(b: Builder, site: Site) -> Values:
    """Cosines and sines of every position below the context, [max_context, dim / 2], each set of frequencies once.

    The angle is rounded to float32, as models are trained and served; the rest is exact.
    """
    key = f"rope cache {sorted((k, v) for k, v in site.attrs.items() if k in _ROPE)}"
    if key not in b.shared:
        frequencies = inverse_frequencies(site.attrs)
        angles = np.arange(b.max_context, dtype=np.float32)[:, None] * frequencies
        factor = a_float(site.attrs, "attention_factor")
        kind = (b.FLOAT if b.dtype in b.profile.widened else b.model).numpy()
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            table = (function(angles.astype(np.float64)) * factor).astype(np.float32)
            if b.dtype in b.profile.widened:  # the values are those of the dtype all the same
                table = table.astype(b.model.numpy()).astype(np.float32)
            b.shared[f"{key} {name}"] = b.constant(f"/rope/{name}_cache", table.astype(kind))
        b.shared[key] = b.shared[f"{key} cos"]
    return b.shared[f"{key} cos"], b.shared[f"{key} sin"]


_ROPE = frozenset(a.name for a in rope_attrs(ROPE_KINDS)) | {"dim"}


def new_mask(b: Builder, mask: ir.Value) -> ir.Value:
    """int64[B, S]: 1 for the real tokens of this call."""
    if "new mask" not in b.shared:
        with b.within("/rows"):
            start = b.op("Neg", b.size(S))
            b.shared["new mask"] = b.op("Slice", mask, start, b.size(T), b.ints([1]))
    return b.shared["new mask"]


def _padding(b: Builder, mask: ir.Value) -> ir.Value:
    """int64[B, S]: 1 for what is no token of this call."""
    if "padding" not in b.shared:
        with b.within("/rows"):
            b.shared["padding"] = b.op("Sub", b.whole(1), new_mask(b, mask))
    return b.shared["padding"]


def _row_lengths(b: Builder, mask: ir.Value) -> tuple[ir.Value, ir.Value, None]:
    """int32: the position of each row's last slot behind its past tokens, [B], and the longest row with padding, []."""
    if "row lengths" not in b.shared:
        with b.within("/rows"):
            along = b.ints([1])
            # past + S - 1, but S lies on the host and would be copied to a GPU in every call
            real = b.op("ReduceSum", mask, along, keepdims=0)
            padding = b.op("ReduceSum", _padding(b, mask), along, keepdims=0)
            last = b.op("Sub", b.op("Add", real, padding), b.ints([1]))
            b.shared["row lengths"] = b.to(last, b.INT32)
            b.shared["total length"] = b.to(b.op("Squeeze", b.size(T), b.ints([0])), b.INT32)
    return b.shared["row lengths"], b.shared["total length"], None


def _chunk_lengths(b: Builder, mask: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """int32: each row's last real position, [B], the longest row with padding, [], and each row's new tokens, [B].

    A row that has only padding so far counts one token: the kernel needs one, and the first real token takes its place.
    """
    if "row lengths" not in b.shared:
        with b.within("/rows"):
            along = b.ints([1])
            real = b.op("ReduceSum", mask, along, keepdims=0)
            new = b.op("ReduceSum", new_mask(b, mask), along, keepdims=0)
            last = b.op("Sub", b.op("Max", real, b.whole(1)), b.whole(1))
            added = b.op("Sub", b.op("Add", last, b.whole(1)), b.op("Sub", real, new))
            total = b.op("Squeeze", b.size(T), b.ints([0]))
            b.shared["row lengths"] = b.to(last, b.INT32)
            b.shared["total length"] = b.to(total, b.INT32)
            b.shared["new lengths"] = b.to(added, b.INT32)
    return b.shared["row lengths"], b.shared["total length"], b.shared["new lengths"]


LONGEST = 1 << 32
"""More tokens than a call has; a constant, as a size lies on the host and would be copied to a GPU in every call."""


def new_places(b: Builder) -> ir.Value:
    """int64[S]: 0, 1, ..."""
    if "new places" not in b.shared:
        with b.within("/rows"):
            count = b.op("Squeeze", b.size(S), b.ints([0]))
            b.shared["new places"] = b.op("Range", b.whole(0), count, b.whole(1))
    return b.shared["new places"]


def pack_rows(b: Builder, rows: ir.Value, mask: ir.Value, rank: int = 3) -> ir.Value:
    """Real tokens first, each part in its order: a sort by (padding, place)."""
    if "packed order" not in b.shared:
        with b.within("/rows"):
            behind = b.op("Mul", _padding(b, mask), b.whole(LONGEST))
            key = b.op("Add", behind, new_places(b))
            _, order = b.ops("TopK", key, b.size(S), dtypes=(b.INT64, b.INT64), axis=1, largest=0)
            b.shared["packed order"] = order
    order = b.shared["packed order"]
    if rank == 2:
        return b.op("GatherElements", rows, order, axis=1)
    return b.op("GatherND", rows, b.op("Unsqueeze", order, b.ints([2])), batch_dims=1)


def unpack_rows(b: Builder, rows: ir.Value, mask: ir.Value) -> ir.Value:
    """Each token's row where the caller had it; zeros for padding.

    The kernel writes no row of a call that has no real token: it may be NaN, and a layer with a cache of its own would
    keep it, from where even a weight of 0 brings it back.
    """
    dtype = rows.dtype
    assert dtype is not None
    if "places" not in b.shared:
        with b.within("/rows"):
            before = b.op("Sub", b.op("CumSum", new_mask(b, mask), b.whole(1)), b.whole(1))
            b.shared["places"] = b.op("Unsqueeze", b.op("Max", before, b.whole(0)), b.ints([2]))
            real = b.to(new_mask(b, mask), b.BOOL)
            b.shared["real tokens"] = b.op("Unsqueeze", real, b.ints([2]))
    unpacked = b.op("GatherND", rows, b.shared["places"], batch_dims=1)
    zero = b.number(0.0, dtype)
    return b.op("Where", b.shared["real tokens"], unpacked, zero, dtype=dtype)


def _last_row_onnx(b: Builder, site: Site, x: Values) -> Values:
    """The row of the last real token of this call, [B, 1, D]; of a row that has none, any."""
    rows, mask = x
    new = new_mask(b, mask)
    if a_bool(site.attrs, "packed"):
        count = b.op("ReduceSum", new, b.ints([1]), keepdims=1)
        place = b.op("Max", b.op("Sub", count, b.whole(1)), b.whole(0))
    else:
        # of whole numbers CUDA has no ArgMax, and its ReduceMax wants cuDNN
        places = b.op("Mul", new, new_places(b))
        place, _ = b.ops("TopK", places, b.ints([1]), dtypes=(b.INT64, b.INT64), axis=1)
    return (b.op("GatherND", rows, b.op("Unsqueeze", place, b.ints([2])), batch_dims=1),)


def _last_row_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    return (TensorType(x.dtype, (x.shape[0], Dim.of(1), *x.shape[2:])),)


ATTENTION_OPS: tuple[Op, ...] = (
    Op(
        "causal_mask",
        "True where a query may see a key: not later, not padding, inside the window or the chunk. ``window=w`` sees "
        "the last w keys, itself included; ``chunk=c`` sees keys whose true position (padding not counted) lies in "
        "the same block of c. ``mask='none'`` hides padding alone.",
        "j <= P + i and attention_mask[j] and (P + i) - j < window and pos(j) // chunk == pos(i) // chunk",
        ("positions", "attention_mask"),
        _mask_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(
            AttrSpec("window", "int", "number of visible keys", optional=True),
            AttrSpec("chunk", "int", "size of a block of positions", optional=True),
            AttrSpec(
                "padding", "str", "hide it alone, of all tokens or the `new` ones", derived=True
            ),
            AttrSpec(
                "keep", "int", "only new keys and so many before", optional=True, derived=True
            ),
        ),
        hoisted=True,
        internal=True,
        cite="facts 4.4, 4.8",
        role=Role.MASK,
        numpy=_causal_mask_numpy,
        torch_prelude=_causal_mask_prelude,
        onnx=_causal_mask_onnx,
    ),
    Op(
        "cache",
        "Append new keys and values to those of earlier tokens: one slot of the key/value cache a use, in execution "
        "order. A slot read only under masks with a window or a chunk can be bounded: then it hands at most ``keep`` "
        "tokens to the next call, those that a later query can still see (ir/bounded.py).",
        "k_all, v_all = concat(past_k, k), concat(past_v, v) along tokens; the last ``keep`` are the next past",
        ("k", "v"),
        _cache_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(
            AttrSpec(
                "keep", "int", "tokens that stay for later calls", optional=True, derived=True
            ),
        ),
        cut=lambda cuts, operands, results, attrs: cuts,
        state=State.SLOT,
        carries=_cache_states,
        numpy=_cache_numpy,
        onnx=_cache_onnx,
    ),
    Op(
        "cross_cache_write",
        "Hand keys and values of another sequence (an image, a source text) over to the graphs that attend to them: "
        "one slot a use, in execution order, so that they are computed once and not at every step.",
        "cross_key_values.n.key, cross_key_values.n.value = k, v",
        ("k", "v"),
        _cross_write_shape,
        Precision.EXACT,
        Tokens.MIXED,
        state=State.WRITTEN,
    ),
    Op(
        "cross_cache_read",
        "Keys and values that another graph wrote: the n-th use reads what its n-th ``cross_cache_write`` wrote.",
        "k, v = cross_key_values.n.key, cross_key_values.n.value",
        (),
        _cross_read_shape,
        Precision.EXACT,
        Tokens.MIXED,
        attrs=(
            AttrSpec("shape", "dims", "of keys and of values, [B, heads, n, size]", required=True),
        ),
        state=State.READ,
        torch=lambda at, x: call("next", Text("cross")),
    ),
    Op(
        "attention",
        "Scaled dot-product attention; query head h reads key/value head h // (N / K). Softmax in float32, cast back "
        "before the product with values. A query that sees nothing gives a finite result of no meaning. ``sinks`` [N] "
        "are one more score a head that takes its share of the softmax and has no value (gpt-oss). ``alibi`` adds "
        "-m_h (i - j) to the score of query i and key j, after the cap (MPT, BLOOM); see ``alibi_slopes``.",
        "softmax([softcap(scale q k^T) - m_h (i - j), masked; sink_h]) [v; 0];  scale defaults to 1/sqrt(head_dim)",
        ("q", "k", "v"),
        _attention_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.MIXED,
        attrs=(
            AttrSpec("scale", "float", "factor on q k^T; none is 1/sqrt(head_dim)", optional=True),
            AttrSpec("softcap", "float", "scores become c tanh(scores / c)", optional=True),
            AttrSpec("alibi", "bool", "linear bias by distance", default=False),
        ),
        flops=_attention_flops,
        optional_operands=("mask", "sinks"),
        cut=_attention_cut,
        cite="arXiv 1706.03762, 2305.13245, 2108.12409 (alibi); facts 4.4",
        role=Role.ATTENTION,
        numpy=_attention_numpy,
        torch=_attention_torch,
        onnx=_attention_onnx,
    ),
    Op(
        "attention_temperature",
        "Scale of queries that grows with the true position, for layers without rope (Llama 4).",
        "1 + scale * log(1 + floor((p + 1) / floor_scale))",
        ("positions",),
        _temperature_shape,
        Precision.FLOAT32_RESULT,
        Tokens.ALONE,
        attrs=(
            AttrSpec("scale", "float", "attn_scale", required=True),
            int_attr("floor_scale", "positions a step"),
        ),
        hoisted=True,
        cite="facts 4.8",
        role=Role.TEMPERATURE,
        numpy=_temperature_numpy,
        torch_prelude=_temperature_prelude,
        onnx=_temperature_onnx,
    ),
    Op(
        "GroupQueryAttention",
        "Rotation, cache and attention in one kernel. It sorts its rows itself: keys and values may be in the queries.",
        "as `attention`",
        ("q", "k", "v", "past_key", "past_value", "attention_mask"),
        _fused_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.ALONE,
        optional_operands=("sinks",),
        fused=True,
        state=State.OWN_SLOT,
        onnx=_fused_onnx,
    ),
    Op(
        "pack_rows",
        "Real tokens of each row first, each part in its order.",
        "y[b] = x[b, real], x[b, padding]",
        ("x", "attention_mask"),
        lambda types, attrs: (types[0],),
        Precision.EXACT,
        Tokens.MIXED,
        fused=True,
        role=Role.PACKING,
        onnx=lambda b, site, x: (pack_rows(b, x[0], x[1], len(site.dims())),),
    ),
    Op(
        "unpack_rows",
        "The tokens of packed rows where the caller had them, and zeros for padding.",
        "y[b, s] = x[b, rank of s among real tokens] or 0",
        ("x", "attention_mask"),
        lambda types, attrs: (types[0],),
        Precision.EXACT,
        Tokens.MIXED,
        fused=True,
        role=Role.CHOSEN_ROWS,
        onnx=lambda b, site, x: (unpack_rows(b, x[0], x[1]),),
    ),
    Op(
        "last_row",
        "The row of the last real token.",
        "y[b, 0] = x[b, last]",
        ("x", "attention_mask"),
        _last_row_shape,
        Precision.EXACT,
        Tokens.MIXED,
        fused=True,
        role=Role.CHOSEN_ROWS,
        onnx=_last_row_onnx,
    ),
)
