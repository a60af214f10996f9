"""Formulas of the op table in numpy float64: rotary tables, masks, attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llamagen.ir.optypes import a_bool, keep_of
from llamagen.ir.reference_ops import Array, Formula, Operands, Real, softmax


def frequencies(o: Operands) -> Real:
    """f_i = theta^(-2i/dim), scaled; radians a position, [dim / 2]."""
    dim, theta = o.whole("dim"), o.number("theta")
    f = np.array([theta ** (-2.0 * i / dim) for i in range(dim // 2)])
    match o.text("scaling"):
        case "default":
            return f
        case "linear":
            return f / o.number("factor")
        case "llama3":
            return np.array([_llama3(o, x) for x in f])
        case "yarn":
            return _yarn(o, f)
        case kind:
            raise AssertionError(kind)


def _llama3(o: Operands, f: float) -> float:
    """Wavelengths above L/low stretched by ``factor``, below L/high kept, else mixed: facts 4.3."""
    low, high, factor = (
        o.number("low_freq_factor"),
        o.number("high_freq_factor"),
        o.number("factor"),
    )
    rotations = o.whole("original_max_positions") * f / (2.0 * math.pi)
    if rotations > high:
        return f
    if rotations < low:
        return f / factor
    if low == high:  # exactly on the cut: neither side claims it; Llama 4 Scout has low == high
        return f
    s = (rotations - low) / (high - low)
    return (1.0 - s) * f / factor + s * f


def _yarn(o: Operands, f: Real) -> Real:
    """arXiv 2309.00071, section 3.2; bounds in units of the pair index, rounded outward."""
    dim, theta, length = o.whole("dim"), o.number("theta"), o.whole("original_max_positions")

    def pair_with(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low = max(math.floor(pair_with(o.number("beta_fast"))), 0)
    high: float = min(math.ceil(pair_with(o.number("beta_slow"))), dim - 1)
    high = high + 0.001 if high == low else high
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return f / o.number("factor") * ramp + f * (1.0 - ramp)


def _rope_table(o: Operands) -> tuple[Array, ...]:
    positions, f = o.ints()[..., None].astype(np.float64), frequencies(o)
    if o.float32_angles:
        angles = (positions.astype(np.float32) * f.astype(np.float32)).astype(np.float64)
    else:
        angles = positions * f
    amplitude = o.number("attention_factor")
    return (amplitude * np.cos(angles), amplitude * np.sin(angles))


def _grid_rope_table(o: Operands) -> tuple[Array, ...]:
    """Place by place as the definition says, one pair after the other."""
    pairs, columns = o.whole("dim") // 2, o.whole("columns")
    places = o.whole("rows") * columns
    angles = np.zeros((1, places + o.whole("extra"), pairs))
    for place in range(places):
        row, column = divmod(place, columns)
        for i in range(pairs // 2):
            f = o.number("theta") ** (-2.0 * i / pairs)
            angles[0, place, i] = (column + 1) * f
            angles[0, place, pairs // 2 + i] = (row + 1) * f
    return (np.cos(angles), np.sin(angles))


def _rotate(o: Operands) -> tuple[Array, ...]:
    x, cos, sin = o.real(0), o.real(1)[:, None], o.real(2)[:, None]
    half = cos.shape[-1]
    y = x.copy()
    if o.text("layout") == "half":
        first, second = slice(0, half), slice(half, 2 * half)
    else:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = x[..., first], x[..., second]
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return (y,)


def _causal_mask(o: Operands) -> tuple[Array, ...]:
    real_token = o.ints(1) > 0
    new, total = o.ints(0).shape[1], real_token.shape[1]
    i = np.arange(total - new, total)[:, None]  # the query's slot
    j = np.arange(total)[None, :]  # the key's slot
    visible = (j <= i) & real_token[:, None, :]
    if (window := o.number_or_none("window")) is not None:
        visible &= i - j < window
    if (chunk := o.number_or_none("chunk")) is not None:
        # Slots and true positions differ by the row's padding; a chunk counts true ones.
        block = np.maximum(np.cumsum(real_token, axis=1) - 1, 0) // int(chunk)
        visible &= block[:, total - new :, None] == block[:, None, :]
    keep = keep_of(o.attrs)
    first = 0 if keep is None else max(total - new - keep, 0)
    return (visible[:, None, :, first:],)


def _tile_mask(o: Operands) -> tuple[Array, ...]:
    """Pair by pair of places, from the sentence of facts 4.7."""
    used = o.ints().reshape(-1, o.ints().shape[-1]) != 0
    tokens, padded = o.whole("tokens"), o.whole("padded")
    tile, place = np.divmod(np.arange(used.shape[1] * padded), padded)
    padding = (place >= tokens) | ~used[:, tile]
    return (~(padding[:, None, :, None] & padding[:, None, None, :]),)


def _cross_mask(o: Operands) -> tuple[Array, ...]:
    tiles = o.ints()
    flat = tiles.reshape(*tiles.shape[:2], -1) != 0
    mask = np.repeat(flat, o.whole("tokens"), axis=2)[:, None]
    return (mask, flat.any(axis=2, keepdims=True).astype(np.float64))


def _attention(o: Operands) -> tuple[Array, ...]:
    q, k, v = o.real(0), o.real(1), o.real(2)
    scale, cap = o.number_or_none("scale"), o.number_or_none("softcap")
    group = q.shape[1] // k.shape[1]
    slopes = _slopes(q.shape[1]) if a_bool(o.attrs, "alibi") else None
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


def _slopes(heads: int) -> list[float]:
    """arXiv 2108.12409 and its footnote, written as the recursion the authors published."""

    def of_power(n: int) -> list[float]:
        start = 2.0 ** (-(2.0 ** -(math.log2(n) - 3)))
        return [start ** (h + 1) for h in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    if below == heads:
        return of_power(heads)
    return of_power(below) + _slopes(2 * below)[0::2][: heads - below]


def _attention_temperature(o: Operands) -> tuple[Array, ...]:
    steps = np.floor((o.ints() + 1) / o.whole("floor_scale"))
    return ((1.0 + o.number("scale") * np.log(1.0 + steps))[:, None, :, None],)


ATTENTION_FORMULAS: Mapping[str, Formula] = {
    "rope_table": _rope_table,
    "grid_rope_table": _grid_rope_table,
    "rotate": _rotate,
    "causal_mask": _causal_mask,
    "tile_mask": _tile_mask,
    "cross_mask": _cross_mask,
    "attention": _attention,
    "attention_temperature": _attention_temperature,
}
