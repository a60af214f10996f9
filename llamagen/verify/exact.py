"""The exported graph in exact arithmetic: what its nodes, attributes and constants mean, whatever dtype they run in.

Every number is float64, a cast between floating-point types does nothing, and a quantised product takes what the codes
stand for. What is then apart from the float64 reference is no rounding but another meaning: an epsilon of 1.1e-5 for
1e-5, a window or a scale that is off, in a folder of bfloat16 as clearly as in one of float32. Operators of ONNX are
evaluated by onnx's own reference implementation; those of ONNX Runtime by the functions below, which were written from
its description of them (ContribOperators.md), not from the lowerings that emit them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from llamagen.diagnostics import LlamagenError
from llamagen.emit.onnx.emit import INPUT_NAMES
from llamagen.emit.onnx.profile import CONTRIB_DOMAIN, MOVES
from llamagen.emit.onnx.session import as_past
from llamagen.ir.flatten import PAST, FlatGraph, FlatNode
from llamagen.ops.attention import slopes_of
from llamagen.ops.op import Operands, Role, a_float, a_str
from llamagen.ops.rope import ROPE_KINDS
from llamagen.ops.rope import frequencies as frequencies_of
from llamagen.verify.graph_copies import DEQUANTIZED, make_cache_float, make_exact
from llamagen.verify.limits import RunDType
from llamagen.verify.scenarios import NOTHING, Values
from llamagen.verify.stored import external_places, graph_of, numbers_of
from llamagen.verify.witnesses import OneGraph, OpenGraph, kept, kept_tokens

Array: TypeAlias = NDArray[Any]

_NARROW = frozenset(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def wide(value: Any) -> Any:
    """A floating-point array in float64; anything else as it is."""
    return value.astype(np.float64) if getattr(value, "dtype", None) in _NARROW else value


class Evaluator(ReferenceEvaluator):
    """Widens what an operator computes with, when it does; what only moves stays as it is stored."""

    def run(  # type: ignore[override]  # nothing here asks for the other arguments
        self, output_names: Any, feed_inputs: Any, attributes: Any = None, **_: Any
    ) -> list[Array]:
        results = {"": None, **self.rt_inits_, **feed_inputs}
        for node in self.rt_nodes_:
            inputs = [results[name] for name in node.input]
            if node.op_type not in MOVES and node.op_type not in _ROWS:
                inputs = [wide(value) for value in inputs]
            more = {"context": results} if node.need_context() else {}
            outputs = zip(node.output, node.run(*inputs, **more), strict=False)
            results.update((name, value) for name, value in outputs if name)
            for name in self.last_uses.get(id(node), ()):
                results.pop(name, None)
        return [wide(results[name]) for name in output_names or self.output_names]

    @property
    def last_uses(self) -> dict[int, list[str]]:
        """Node -> values that nothing reads after it; those that a subgraph may read stay."""
        if not hasattr(self, "_last_uses"):
            inside = {n for node in self.nodes_ for n in _captured(node)}
            last = {name: id(n) for n in self.rt_nodes_ for name in (*n.input, *n.output)}
            kept = {*inside, *self.output_names, ""}
            self._last_uses: dict[int, list[str]] = {}
            for name, node in last.items():
                if name not in kept:
                    self._last_uses.setdefault(node, []).append(name)
        return self._last_uses


def _captured(node: onnx.NodeProto) -> Sequence[str]:
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    below = [n for graph in graphs for n in graph.node]
    ends = [o.name for graph in graphs for o in graph.output]
    return [*ends, *(i for n in below for i in (*n.input, *_captured(n)))]


# Operators whose result has a dtype of its own, and those of ONNX Runtime


def _operator(name: str, run: Callable[..., Any], domain: str = "") -> type[OpRun]:
    return type(name, (OpRun,), {"op_domain": domain, "_run": lambda self, *a, **k: run(*a, **k)})


def _cast(x: Array, to: int, **_: Any) -> tuple[Array, ...]:
    if to not in _FLOATS:
        return (x.astype(onnx.helper.tensor_dtype_to_np_dtype(to)),)
    return (x if x.dtype in _NARROW else x.astype(np.float64),)


def _gather_elements(x: Array, places: Array, axis: int = 0, **_: Any) -> tuple[Array, ...]:
    """As ONNX has it: along other axes there may be fewer places than elements."""
    axis %= x.ndim
    cut = tuple(slice(n if i != axis else None) for i, n in enumerate(places.shape))
    return (np.take_along_axis(x[cut], places, axis),)


def _gelu(x: Array, approximate: str | bytes = "none", **_: Any) -> tuple[Array, ...]:
    if approximate in ("tanh", b"tanh"):
        return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
    return (0.5 * x * (1 + np.vectorize(math.erf, [np.float64])(x / math.sqrt(2))),)


def _quick_gelu(x: Array, alpha: float = 1.702, **_: Any) -> tuple[Array, ...]:
    return (x / (1 + np.exp(-alpha * x)),)


def _fused_matmul(
    a: Array,
    b: Array,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
    **_: Any,
) -> tuple[Array, ...]:
    if transBatchA or transBatchB:
        raise NotImplementedError("FusedMatMul of transposed batches")
    a, b = a.swapaxes(-1, -2) if transA else a, b.swapaxes(-1, -2) if transB else b
    return (alpha * (a @ b),)


def _skip_norm(
    x: Array, skip: Array, gain: Array, bias: Array | None = None, epsilon: float = 1e-5, **_: Any
) -> tuple[Array | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    normal = total / np.sqrt(np.mean(total**2, axis=-1, keepdims=True) + epsilon)
    none = np.zeros(0)
    return normal * gain, none, none, total


def _grouped_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array,
    past_value: Array,
    until: Array,
    total: Array,
    cos: Array | None = None,
    sin: Array | None = None,
    position_ids: Array | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    shared: Array | None = None,
    unused: Array | None = None,
    new: Array | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float | None = None,
    softcap: float | None = None,
    local_window_size: int | None = None,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    **_: Any,
) -> tuple[Array, ...]:
    """Row b has ``until[b] + 1`` tokens, of which the last ``new[b]`` (or all of the call) are new and come first.

    They are turned by the table's rows of their places, written behind the past, and see what is not after them.
    """
    if not all(value is None for value in (k_scale, v_scale, shared, unused)):
        raise NotImplementedError("GroupQueryAttention with scales of a coded cache")
    batch, length, _width = query.shape
    size = past_key.shape[3]

    def heads(x: Array, count: int) -> Array:
        return x.reshape(batch, length, count, size).transpose(0, 2, 1, 3)

    if key is None or value is None:
        cuts = np.cumsum([num_heads, kv_num_heads]) * size
        query, key, value = np.split(query, cuts, axis=2)
    q, k, v = heads(query, num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    room = max(past_key.shape[2], int(np.max(total)))
    keys, values = (np.zeros((batch, kv_num_heads, room, size)) for _ in range(2))
    y = np.zeros(q.shape)
    group = num_heads // kv_num_heads
    factor = scale or 1 / math.sqrt(size)
    for b in range(batch):
        count = length if new is None else int(new.reshape(-1)[b])
        end = int(until.reshape(-1)[b]) + 1
        start = end - count
        places = np.arange(start, end)
        qs, ks = q[b, :, :count], k[b, :, :count]
        if do_rotary and cos is not None and sin is not None:
            tables = cos[places], sin[places]
            qs, ks = (_rotated(x, *tables, bool(rotary_interleaved)) for x in (qs, ks))
        for cache, past, own in ((keys, past_key, ks), (values, past_value, v[b, :, :count])):
            cache[b, :, :start] = past[b, :, :start]
            cache[b, :, start:end] = own
        slots = np.arange(end)
        seen = slots <= places[:, None]
        if local_window_size is not None and local_window_size >= 0:
            seen &= places[:, None] - slots < local_window_size
        for h in range(num_heads):
            scores = factor * (qs[h] @ keys[b, h // group, :end].T)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if bias is not None:
                scores = scores + bias[b % len(bias), h % bias.shape[1], :count, :end]
            scores = np.where(seen, scores, -np.inf)
            top = scores.max(axis=1, keepdims=True)
            extra = 0.0
            if sinks is not None:
                top = np.maximum(top, sinks[h])
                extra = np.exp(sinks[h] - top)
            share = np.exp(scores - top)
            y[b, h, :count] = (share / (share.sum(axis=1, keepdims=True) + extra)) @ values[
                b, h // group, :end
            ]
    return y.transpose(0, 2, 1, 3).reshape(batch, length, num_heads * size), keys, values


def _rotated(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Heads [N, S, H] turned by tables [S, R / 2]; features from R on pass."""
    half = cos.shape[1]
    pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    first, second = pairs if interleaved else (slice(0, half), slice(half, 2 * half))
    y: Array = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def _decoded(codes: Array, scales: Array, points: Array | None, bits: int) -> Array:
    """[..., K] from codes [..., bytes of K] and a scale, and perhaps a zero point, of each block."""
    numbers = numbers_of(codes, bits).astype(np.float64)
    blocks = numbers.reshape(*scales.shape, -1)
    middle: Any = 2.0 ** (bits - 1)
    if points is not None:
        middle = numbers_of(points, bits).reshape(*scales.shape[:-1], -1)[..., : scales.shape[-1]]
        middle = middle.astype(np.float64)[..., None]
    (decoded,) = _dequantized(blocks - middle, scales[..., None])
    return decoded.reshape(*scales.shape[:-1], -1)


def _dequantized(numbers: Array, scales: Array) -> tuple[Array, ...]:
    """A weight is the product in float32, in every kernel and in what a folder's weights are read as."""
    return ((numbers * scales).astype(np.float32).astype(np.float64),)


class MatMulNBits(OpRun):
    op_domain = CONTRIB_DOMAIN
    N: int
    K: int
    keeps = False
    """Whether the decoded weight stays, in float32, for the next call with the same codes."""
    kept: tuple[Array, Array, Array | None, Array] | None = None

    def _run(
        self,
        x: Array,
        codes: Array,
        scales: Array,
        points: Array | None = None,
        order: Array | None = None,
        bias: Array | None = None,
        *,
        K: int,
        N: int,
        bits: int = 4,
        block_size: int,
        **_: Any,
    ) -> tuple[Array, ...]:
        if order is not None:
            raise NotImplementedError("MatMulNBits with an order of columns")
        known = self.kept
        if (
            known is not None
            and known[0] is codes
            and known[2] is points
            and np.array_equal(known[1], scales)
        ):
            weight = known[3]
        else:
            blocks = scales.reshape(N, -(-K // block_size))
            zero_points = None if points is None else points.reshape(N, -1)
            weight = _decoded(codes.reshape(N, -1), blocks, zero_points, bits)[:, :K]
            if self.keeps:
                self.kept = codes, scales, points, weight.astype(np.float32)
        product = x @ wide(weight).T
        return (product if bias is None else product + bias,)


def _gather_codes(
    rows: Array,
    ids: Array,
    scales: Array,
    points: Array | None = None,
    *,
    bits: int = 4,
    block_size: int,
    gather_axis: int = 0,
    quantize_axis: int = 1,
    **_: Any,
) -> tuple[Array, ...]:
    if (gather_axis, quantize_axis) != (0, 1):
        raise NotImplementedError(f"GatherBlockQuantized of the axes {gather_axis, quantize_axis}")
    of_points = None if points is None else points[ids]
    return (_decoded(rows[ids], wide(scales[ids]), of_points, bits),)


def _experts(
    x: Array, logits: Array, up: Array, down: Array, k: int, normalize: int, limits: Sequence[float]
) -> tuple[Array, ...]:
    """Of every token the k experts of the largest logits; rows of gate and linear half come in turns."""
    alpha, beta, limit = limits
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    weights = np.take_along_axis(shares, chosen, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True) if normalize else weights
    y = np.zeros(x.shape)
    for e in np.unique(chosen):
        tokens, places = np.nonzero(chosen == e)
        both = x[tokens] @ wide(up[e]).T
        gate = np.minimum(both[:, 0::2], limit)
        linear = np.clip(both[:, 1::2], -limit, limit) + beta
        result = (gate / (1 + np.exp(-alpha * gate)) * linear) @ wide(down[e]).T
        np.add.at(y, tokens, weights[tokens, places][:, None] * result)
    return (y,)


def _swiglu_of(attributes: Mapping[str, Any]) -> tuple[float, float, float]:
    kind = attributes.get("activation_type", "relu")
    if kind not in ("swiglu", b"swiglu") or attributes.get("swiglu_fusion") != 1:
        raise NotImplementedError(f"experts of {kind!r}, {attributes.get('swiglu_fusion')}")
    limit = attributes.get("swiglu_limit")
    alpha, beta = attributes.get("activation_alpha"), attributes.get("activation_beta")
    return (
        1.0 if alpha is None else alpha,
        0.0 if beta is None else beta,
        math.inf if limit is None else limit,
    )


def _moe(
    x: Array, logits: Array, up: Array, up_bias: Any, down: Array, *rest: Any, **a: Any
) -> Any:
    if up_bias is not None or any(value is not None for value in rest):
        raise NotImplementedError("MoE with biases or a third product")
    normalize = a.get("normalize_routing_weights") or 0
    return _experts(wide(x), wide(logits), up, down, a["k"], normalize, _swiglu_of(a))


def _qmoe(x: Array, logits: Array, *rest: Any, **a: Any) -> Any:
    inputs = (*rest, *(None,) * 11)[:11]
    up, up_scales, up_bias, down, down_scales, down_bias, *third = inputs
    if any(value is not None for value in (up_bias, down_bias, *third[:3])):
        raise NotImplementedError("QMoE with biases or a third product")
    bits = a["expert_weight_bits"]
    ups = _decoded(up, wide(up_scales), third[3], bits)
    downs = _decoded(down, wide(down_scales), third[4], bits)
    normalize = a.get("normalize_routing_weights") or 0
    return _experts(wide(x), wide(logits), ups, downs, a["k"], normalize, _swiglu_of(a))


_ROWS = frozenset({"MoE", "QMoE", "GatherBlockQuantized"})
"""Operators that widen themselves, and no more than the rows that they read."""

_MOST_KEPT = 1 << 28
"""Numbers of weights that a graph keeps decoded."""

_DEQUANTIZED = "Dequantized"
"""An operator of this evaluator: Mul whose result is rounded."""

_OPERATORS: Sequence[type[OpRun]] = (
    _operator("Cast", _cast),
    _operator("Gelu", _gelu),
    _operator("GatherElements", _gather_elements),
    MatMulNBits,
    *(
        _operator(name, run, CONTRIB_DOMAIN)
        for name, run in (
            ("QuickGelu", _quick_gelu),
            ("FusedMatMul", _fused_matmul),
            ("SkipSimplifiedLayerNormalization", _skip_norm),
            ("GroupQueryAttention", _grouped_attention),
            ("GatherBlockQuantized", _gather_codes),
            ("MoE", _moe),
            ("QMoE", _qmoe),
            (_DEQUANTIZED, _dequantized),
        )
    ),
)


# Constants read back: tables of rope, and numbers that were rounded to be stored

_LAST_BITS = 10
"""By how many last digits of float32 a frequency may differ: steps of float32 are off by up to 6.3 in the released
specs, a theta of 500,001 for 500,000 by 17."""
_DIGITS: Mapping[RunDType, float] = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Of numbers near 1."""
_LEAST: Mapping[RunDType, int] = {"float32": -126, "float16": -14, "bfloat16": -126}
"""Exponent below which all numbers have the same last digit."""
_HALF = 0.501
"""Of a last digit, where a number was rounded once."""
_ROWS_AT_ONCE = 4096
_TRIED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Constants:
    """Numbers of a table in the graph, and how far the farthest is from the spec's and may be, both relative."""

    name: str
    count: int
    farthest: float
    allowed: float


class _Table:
    """Rows of a table that are computed in float64 when they are read."""

    def __init__(self, frequencies: Array, factor: float, function: Callable[[Array], Array]):
        self.frequencies, self.factor, self.function = frequencies, factor, function

    def __getitem__(self, places: Array) -> Array:
        angles = places[:, None] * self.frequencies
        return np.asarray(self.factor * self.function(angles))


def read_back(graph: ExactGraph, flat: FlatGraph, dtype: RunDType) -> tuple[Constants, ...]:
    """Compare every table of rope, row by row, with the spec in float64; those that fit get all their digits.

    So do attributes and scalars that are a number of the spec as float32 stores it: what is left apart is no rounding.
    """
    evaluator = graph.evaluator
    constants: dict[str, Any] = evaluator.rt_inits_
    ropes = [
        n
        for n in flat.nodes
        if n.row.role is Role.ROPE_TABLE and ROPE_KINDS[a_str(n.attrs, "scaling")].of_call is None
    ]
    spec = [(_frequencies(n), a_float(n.attrs, "attention_factor")) for n in ropes]
    found: list[Constants] = []
    for cosine, sine in sorted({pair for n in _nodes(evaluator) for pair in _tables_of(n)}):
        if cosine not in constants or sine not in constants:
            continue  # computed by nodes, which are evaluated
        tables = [constants[cosine], constants[sine]]
        fits = [
            (_farthest(tables, frequencies, factor, dtype), frequencies, factor)
            for frequencies, factor in spec
            if len(frequencies) == tables[0].shape[1]
        ]
        best = min(fits, key=lambda fit: fit[0], default=None)
        count = sum(t.size for t in tables)
        allowed = _HALF * _DIGITS[_rounded_to(tables, dtype)]
        found.append(Constants(f"{cosine}, {sine}", count, best[0] if best else math.inf, allowed))
        if best is not None and best[0] <= allowed:
            for name, function in ((cosine, np.cos), (sine, np.sin)):
                constants[name] = _Table(best[1], best[2], function)
    for name in sorted(_frequency_names(evaluator)):
        stored = evaluator.rt_inits_[name]
        away = [
            (float((np.abs(wide(stored) - f) / f).max()), f)
            for f, _ in spec
            if f.shape == stored.shape
        ]
        least, frequencies = min(away, key=lambda one: one[0], default=(math.inf, stored))
        allowed = _LAST_BITS * _DIGITS["float32"]
        found.append(Constants(name, stored.size, least, allowed))
        if least <= allowed:
            evaluator.rt_inits_[name] = frequencies
    for name, table in tuple(_fixed(evaluator, flat)):
        stored = evaluator.rt_inits_[name]
        farthest = float(np.abs(wide(stored) - table).max())
        digit = _DIGITS["float32"] / 2
        found.append(Constants(name, stored.size, farthest, digit))
        if farthest <= digit:
            evaluator.rt_inits_[name] = table
    _restore_digits(evaluator, _numbers(flat), graph.weights)
    here, right = sorted(_bounds(evaluator)), sorted(_bounds_of(flat))
    if here or right:
        apart = [0.0 if a == b else abs(a - b) for a, b in zip(here, right, strict=False)]
        farthest = max(apart, default=0.0) if len(here) == len(right) else math.inf
        found.append(Constants("of bounds", len(right), farthest, _DIGITS["float32"] / 2))
    return tuple(found)


def _bounds(evaluator: Evaluator) -> Iterator[float]:
    """Lower and upper ones of all that clips numbers: no logit shows a bound that no value reaches."""
    for node in _nodes(evaluator):
        if node.op_type == "Clip":
            given = [*node.onnx_node.input, "", ""][1:3]
            known = [evaluator.rt_inits_.get(name) for name in given]
            if all(not name or value is not None for name, value in zip(given, known, strict=True)):
                for value, absent in zip(known, (-math.inf, math.inf), strict=True):
                    if value is None or value.dtype == np.float64:
                        yield absent if value is None else float(value.reshape(-1)[0])


def _bounds_of(flat: FlatGraph) -> Iterator[float]:
    for node in flat.nodes:
        if node.row.role is Role.BOUND:
            for name, absent in (("low", -math.inf), ("high", math.inf)):
                yield absent if node.attrs[name] is None else a_float(node.attrs, name)


def _fixed(evaluator: Evaluator, flat: FlatGraph) -> Iterator[tuple[str, Array]]:
    """Constants that are tables of no operand: places of a grid, slopes of heads. Each with the nearest of the spec."""
    weights = {path for node in flat.nodes for path in node.parameters.values()}
    tables: list[Array] = []
    for node in flat.nodes:
        if node.row.role is Role.ATTENTION and node.attrs.get("alibi") is True:
            heads = flat.types[node.operands[0]].shape[1].value
            tables.append(-np.array(slopes_of(heads)))
        elif node.row.numpy is not None and not node.operands and not node.parameters:
            operands = Operands([], node.attrs, {}, lambda name: np.zeros(0))
            tables += [t for t in node.row.numpy(operands) if t.dtype == np.float64]
    for name, stored in evaluator.rt_inits_.items():
        if name in weights:
            continue
        if getattr(stored, "dtype", None) in _NARROW and stored.size > 1 and np.any(stored):
            shaped = [t.reshape(stored.shape) for t in tables if t.size == stored.size]
            if shaped:
                yield name, min(shaped, key=lambda t: float(np.abs(wide(stored) - t).max()))


def _frequencies(node: FlatNode) -> Array:
    return frequencies_of(Operands([], node.attrs, {}, lambda name: np.zeros(0)))


def _nodes(evaluator: Evaluator) -> Sequence[OpRun]:
    """Those of subgraphs too."""
    bodies = [
        getattr(n, a.name)
        for n in evaluator.rt_nodes_
        for a in n.onnx_node.attribute
        if a.type == onnx.AttributeProto.GRAPH
    ]
    return [*evaluator.rt_nodes_, *(n for body in bodies for n in _nodes(body))]


def _tables_of(node: OpRun) -> Sequence[tuple[str, str]]:
    names = (*node.input, *("",) * 9)[7:9]
    return [(names[0], names[1])] if node.op_type == "GroupQueryAttention" and all(names) else []


def _frequency_names(evaluator: Evaluator) -> set[str]:
    """Constants by which positions are multiplied to get the angles of a cosine or a sine."""
    makers = {name: n for n in evaluator.rt_nodes_ for name in n.output}
    angles = [makers.get(n.input[0]) for n in evaluator.rt_nodes_ if n.op_type in ("Cos", "Sin")]
    return {
        name
        for node in angles
        if node is not None and node.op_type == "Mul"
        for name in node.input
        if name in evaluator.rt_inits_ and evaluator.rt_inits_[name].ndim == 1
    }


def _rounded_to(tables: Sequence[Array], dtype: RunDType) -> RunDType:
    """``dtype`` where all numbers are of that, float32 otherwise."""
    narrow = np.dtype(getattr(ml_dtypes, dtype, dtype))
    exact = all(np.array_equal(t.astype(narrow).astype(t.dtype), t) for t in tables)
    return dtype if exact else "float32"


def _farthest(tables: Sequence[Array], frequencies: Array, factor: float, dtype: RunDType) -> float:
    """From ``factor`` times cosines and sines of angles that are rounded to float32, as models are trained and served;
    the frequency of each pair is one float32 number near the spec's. Relative to each number, by the size of its last
    digit."""
    dtype = _rounded_to(tables, dtype)
    near = frequencies.astype(np.float32)
    steps = np.arange(-_LAST_BITS, _LAST_BITS + 1)[:, None]
    tried = (near.astype(np.float64) + steps * np.spacing(near)).astype(np.float32)
    length, pairs = len(tables[0]), np.broadcast_to(np.arange(len(near)), tried.shape)

    def away(rows: Array, pairs: Array, frequencies: Array) -> Array:
        """[C] of the worst of ``rows``, for pairs [C] with float32 frequencies [C]."""
        angles = (rows.astype(np.float32)[:, None] * frequencies).astype(np.float64)
        worst = np.zeros(len(pairs))
        for table, function in zip(tables, (np.cos, np.sin), strict=True):
            right = factor * function(angles)
            exponents = np.maximum(np.frexp(right)[1] - 1, _LEAST[dtype])
            error = np.ldexp(np.abs(wide(table[rows][:, pairs]) - right), -exponents)
            worst = np.maximum(worst, error.max(axis=0))
        return worst

    some = np.unique(np.linspace(0, length - 1, _TRIED_ROWS).astype(np.int64))
    worst = away(some, pairs.ravel(), tried.ravel()).reshape(tried.shape)
    fit = worst <= np.maximum(worst.min(axis=0), _HALF * _DIGITS[dtype])
    pairs, tried = pairs[fit], tried[fit]
    best = np.zeros(len(tried))
    for start in range(0, length, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, length))
        best = np.maximum(best, away(rows, pairs, tried))
    return max(float(best[pairs == pair].min()) for pair in range(len(near)))


def _numbers(flat: FlatGraph) -> Array:
    """Every number that an op of the spec has, and the scale that attention takes without one."""
    numbers = {float(v) for n in flat.nodes for v in n.attrs.values() if isinstance(v, float)}
    for node in flat.nodes:
        if node.row.role is Role.ATTENTION:
            numbers.add(float(flat.types[node.operands[0]].shape[-1].value) ** -0.5)
    return np.array(sorted(numbers))


def _restore_digits(evaluator: Evaluator, numbers: Array, weights: Collection[str]) -> None:
    def exact(value: float, dtype: Any) -> float:
        """The number of the spec that is ``value`` in ``dtype``, or ``value``."""
        same = numbers[numbers.astype(dtype).astype(np.float64) == value]
        return float(same[0]) if len(same) else value

    for node in _nodes(evaluator):
        for attribute in node.onnx_node.attribute:
            if attribute.type == onnx.AttributeProto.FLOAT:
                setattr(node, attribute.name, exact(attribute.f, np.float32))
    for name, value in evaluator.rt_inits_.items():
        if name not in weights and getattr(value, "size", 0) == 1 and value.dtype in _NARROW:
            number = exact(float(value.reshape(-1)[0]), value.dtype)
            evaluator.rt_inits_[name] = np.full(value.shape, number)


# A graph of a folder


@dataclass(frozen=True)
class ExactGraph(OneGraph):
    """One graph of a folder; its weights are read where they lie."""

    evaluator: Evaluator
    weights: frozenset[str]
    """What is stored in data files, large tables too."""
    pasts: Mapping[str, tuple[int | str, ...]]
    """Sizes of what each past is for one text: a number, or the name of one that is 0 at first."""
    name: str = "graph"
    file: str = "the model"

    @staticmethod
    def of_model(model: onnx.ModelProto, weights: Values, file: str) -> ExactGraph:
        """``model`` without the initializers that ``weights`` has; raises LG713 for operators nobody here knows."""
        pasts = {
            i.name: tuple(d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim[1:])
            for i in model.graph.input
            if i.name.startswith(f"{PAST}.")
        }
        try:
            evaluator = Evaluator(model, new_ops=list(_OPERATORS))
            room = _MOST_KEPT
            for node in evaluator.rt_nodes_:
                if isinstance(node, MatMulNBits):
                    room -= node.N * node.K
                    node.keeps = room >= 0
        except Exception as error:  # onnx raises whatever it meets
            message = f"{file} has nodes that cannot be evaluated exactly: {error}"
            raise LlamagenError.of("LG713", message) from error
        evaluator.rt_inits_.update(weights)
        return ExactGraph(evaluator, frozenset(weights), pasts, file=file)

    def open(self, past: Values = NOTHING) -> OpenGraph:
        found = {n: kept(past[n], kept_tokens(d[1])) for n, d in self.pasts.items() if n in past}
        return _OpenExact(self, found)


def _mark_dequantized(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.name.endswith(DEQUANTIZED):
            node.op_type, node.domain = _DEQUANTIZED, CONTRIB_DOMAIN
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _mark_dequantized(attribute.g)


def exact_model(file: Path) -> tuple[onnx.ModelProto, Values]:
    """The graph in ``file`` with products and caches as numbers, without its weights, and these, mapped."""
    model = graph_of(file)
    make_cache_float(model.graph)
    if make_exact(model.graph):
        _mark_dequantized(model.graph)
    for node in model.graph.node:
        precisions = [a for a in node.attribute if a.name == "softmax_precision"]
        for attribute in precisions:
            node.attribute.remove(attribute)
    places = external_places(file.parent, model)
    kept = [t for t in model.graph.initializer if t.name not in places]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model, {name: place.read() for name, place in places.items()}


@dataclass
class _OpenExact:
    graph: ExactGraph
    past: dict[str, Array] = field(default_factory=dict)

    def run(self, values: Values) -> Values:
        graph = self.graph
        named = {INPUT_NAMES.get(name, name): np.asarray(value) for name, value in values.items()}
        batch = len(next(iter(named.values())))
        if not self.past:
            shapes = {
                n: [d if isinstance(d, int) else 0 for d in p] for n, p in graph.pasts.items()
            }
            self.past = {name: np.zeros((batch, *shape)) for name, shape in shapes.items()}
        wanted = graph.evaluator.input_names
        feeds = {n: v for n, v in {**named, **self.past}.items() if n in wanted}
        names = graph.evaluator.output_names
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # of padding
                results = graph.evaluator.run(None, feeds)
        except Exception as error:  # a graph that somebody edited can be wrong in any way
            message = f"{graph.file} cannot be evaluated exactly: {type(error).__name__}: {error}"
            raise LlamagenError.of("LG714", message[:400]) from error
        outputs = dict(zip(names, results, strict=True))
        self.past = as_past(outputs)
        return {n: v for n, v in outputs.items() if not n.startswith("present.")}
