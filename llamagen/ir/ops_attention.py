"""Rows of the op table for positions, masks, the key/value cache and attention."""

from __future__ import annotations

from llamagen.ir.dims import Dim, past_of
from llamagen.ir.graph import Attrs, DType, TensorType
from llamagen.ir.ops_basic import parse_dims
from llamagen.ir.optypes import (
    AttrSpec,
    Op,
    Precision,
    Types,
    a_int,
    elements,
    keep_of,
    need,
    need_rank,
    need_real,
)

MAX_TABLE = 2**16
"""Widest rotation and most heads with slopes: backends keep a number for each in the model itself."""

ROPE_SCALINGS = ("default", "linear", "llama3", "yarn")


def _rope_table_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (positions,) = types
    dim = a_int(attrs, "dim")
    need(dim > 0 and dim % 2 == 0, f"rope rotates pairs, so its width must be even, not {dim}")
    need(dim <= MAX_TABLE, f"rope rotates at most {MAX_TABLE} features, not {dim}")
    table = TensorType(DType.FLOAT32, (*positions.shape, Dim.of(dim // 2)))
    return (table, table)


def _rotate_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, cos, sin = types
    need_rank(x, 4, "the operand of rope")
    need_real(x, "the operand of rope")
    width = cos.shape[-1] * 2
    need(cos == sin, "the cosine and sine tables differ in shape")
    need(
        width.value <= x.shape[-1].value,
        f"rope rotates {width} of {x.shape[-1]} features: more than there are",
    )
    need(
        cos.shape[0] in (x.shape[0], Dim.of(1)) and x.shape[2] == cos.shape[1],
        f"rope needs [B, heads, S, head_dim] with the positions' B and S, it is {x}",
    )
    return (x,)


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
    return (TensorType(DType.BOOL, (b, Dim.of(1), s, keys)),)


def _cache_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    past = past_of(keep_of(attrs))
    results: list[TensorType] = []
    for t, what in zip(types, ("keys", "values"), strict=True):
        need_rank(t, 4, f"cached {what}")
        results.append(TensorType(t.dtype, (*t.shape[:2], t.shape[2] + past, t.shape[3])))
    need(types[0].shape[:3] == types[1].shape[:3], f"keys {types[0]} and values {types[1]} differ")
    return tuple(results)


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
        attrs.get("alibi") is not True or heads <= MAX_TABLE,
        f"alibi has slopes for at most {MAX_TABLE} heads, not {heads}",
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


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """m_h of arXiv 2108.12409: 2^(-8h/n), h = 1..n, for n heads, n a power of two; for other counts the slopes of
    the power below, then every other slope of the power above."""
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / below) for h in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * h / below) for h in range(1, 2 * below, 2)]
    return tuple(slopes[:heads])


def _attention_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    q, k, v = operands[:3]
    scores = elements(q.shape[:3]) * k.shape[2]
    return scores * q.shape[3] * 2 + scores * v.shape[3] * 2


def _temperature_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    b, s = types[0].shape
    return (TensorType(DType.FLOAT32, (b, Dim.of(1), s, Dim.of(1))),)


def _float(name: str, doc: str, default: float) -> AttrSpec:
    return AttrSpec(name, "float", doc, default=default)


ROPE_ATTRS: tuple[AttrSpec, ...] = (
    AttrSpec("theta", "float", "base of the frequencies", required=True),
    AttrSpec("scaling", "str", "kind of scaling", default="default", choices=ROPE_SCALINGS),
    _float("factor", "linear, llama3, yarn: by how much the context is extended", 1.0),
    _float("low_freq_factor", "llama3: below original/low the frequency is divided", 1.0),
    _float("high_freq_factor", "llama3: above original/high the frequency is kept", 4.0),
    AttrSpec(
        "original_max_positions", "int", "llama3, yarn: the context before extension", default=8192
    ),
    _float("beta_fast", "yarn: rotations above which a frequency is kept", 32.0),
    _float("beta_slow", "yarn: rotations below which it is divided", 1.0),
    _float("attention_factor", "yarn: multiplies both tables; default 1 for other kinds", 1.0),
)

ATTENTION_OPS: tuple[Op, ...] = (
    Op(
        "rope_table",
        "Cosines and sines of position times frequency; written ``rope(x, positions, rope)`` in a spec.",
        "cos, sin = cos(p f_i), sin(p f_i), f_i = theta^(-2i/dim) scaled as ``scaling`` says",
        ("positions",),
        _rope_table_shape,
        Precision.FLOAT32_RESULT,
        (AttrSpec("dim", "int", "rotated width, even", required=True), *ROPE_ATTRS),
        hoisted=True,
        internal=True,
        cite="arXiv 2104.09864; facts 4.2, 4.3; yarn: arXiv 2309.00071",
    ),
    Op(
        "rotate",
        "Rotate the leading pairs of the last dimension; the rest passes. ``half`` pairs i with i + dim/2 and works "
        "with tables rounded to the operand's dtype (Hugging Face Llama), ``interleaved`` pairs 2i with 2i + 1 in "
        "float32 and casts back (Meta, Llama 4).",
        "(a, b) -> (a cos - b sin, b cos + a sin)",
        ("x", "cos", "sin"),
        _rotate_shape,
        Precision.MODEL,
        (AttrSpec("layout", "str", "", default="half", choices=("half", "interleaved")),),
        internal=True,
        cite="facts 4.2",
    ),
    Op(
        "causal_mask",
        "True where a query may see a key: not later, not padding, inside the window or the chunk. ``window=w`` sees "
        "the last w keys, itself included; ``chunk=c`` sees keys whose true position (padding not counted) lies in "
        "the same block of c.",
        "j <= P + i and attention_mask[j] and (P + i) - j < window and pos(j) // chunk == pos(i) // chunk",
        ("positions", "attention_mask"),
        _mask_shape,
        Precision.EXACT,
        (
            AttrSpec("window", "int", "number of visible keys", optional=True),
            AttrSpec("chunk", "int", "size of a block of positions", optional=True),
            AttrSpec(
                "keep", "int", "only new keys and so many before", optional=True, derived=True
            ),
        ),
        hoisted=True,
        internal=True,
        cite="facts 4.4, 4.8",
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
        (AttrSpec("keep", "int", "tokens that stay for later calls", optional=True, derived=True),),
    ),
    Op(
        "cross_cache_write",
        "Hand keys and values of another sequence (an image, a source text) over to the graphs that attend to them: one "
        "slot a use, in execution order, so that they are computed once and not at every step.",
        "cross_key_values.n.key, cross_key_values.n.value = k, v",
        ("k", "v"),
        _cross_write_shape,
        Precision.EXACT,
    ),
    Op(
        "cross_cache_read",
        "Keys and values that another graph wrote: the n-th use reads what its n-th ``cross_cache_write`` wrote.",
        "k, v = cross_key_values.n.key, cross_key_values.n.value",
        (),
        _cross_read_shape,
        Precision.EXACT,
        (AttrSpec("shape", "dims", "of keys and of values, [B, heads, n, size]", required=True),),
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
        (
            AttrSpec("scale", "float", "factor on q k^T; none is 1/sqrt(head_dim)", optional=True),
            AttrSpec("softcap", "float", "scores become c tanh(scores / c)", optional=True),
            AttrSpec("alibi", "bool", "linear bias by distance", default=False),
        ),
        flops=_attention_flops,
        optional_operands=("mask", "sinks"),
        cite="arXiv 1706.03762, 2305.13245, 2108.12409 (alibi); facts 4.4",
    ),
    Op(
        "attention_temperature",
        "Scale of queries that grows with the true position, for layers without rope (Llama 4).",
        "1 + scale * log(1 + floor((p + 1) / floor_scale))",
        ("positions",),
        _temperature_shape,
        Precision.FLOAT32_RESULT,
        (
            AttrSpec("scale", "float", "attn_scale", required=True),
            AttrSpec("floor_scale", "int", "positions a step", required=True),
        ),
        hoisted=True,
        cite="facts 4.8",
    ),
)
