"""Chosen experts: a Scan over all of them in ONNX, or one operator of ONNX Runtime where it fits.

The stacked weights are scan inputs, so each step sees a view of one expert and nothing is copied. Measured with 16
experts, top 2, one token: 0.23 ms; gathering the chosen weights 0.54 ms, evaluating all experts 4.3 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamagen.ops.activations import ACTIVATIONS
from llamagen.ops.code import (
    Call,
    Code,
    call,
)
from llamagen.ops.dims import Dim
from llamagen.ops.lazy import ir, np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    DType,
    Op,
    Operands,
    Parameter,
    Precision,
    Role,
    TensorType,
    Tokens,
    Types,
    a_float,
    a_int,
    a_str,
    elements,
    int_attr,
    need,
    need_last,
    need_real,
    parameter,
    same_shape,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Quantized, Site
    from llamagen.emit.onnx.initializers import Encoding
    from llamagen.emit.torch.site import ModuleSite, TorchSite
    from llamagen.ops.op import Array, Values


def _limit_groups_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (scores,) = types
    need_real(scores, "the scores of experts")
    groups, kept, best = (a_int(attrs, name) for name in ("groups", "kept", "best"))
    last = scores.shape[-1]
    need(last.is_static, "scores end in the experts, they are {}", scores)
    need(groups > 0 and last.value % groups == 0, f"{last} experts are not {groups} equal groups")
    need(0 < kept <= groups, f"{kept} of {groups} groups cannot be kept")
    need(0 < best <= last.value // groups, f"a group of {last.value // groups} has no {best} best")
    return (scores,)


def _limit_groups_numpy(o: Operands) -> tuple[Array, ...]:
    scores, fill = o.real(), o.number_or_none("fill")
    grouped = scores.reshape(*scores.shape[:-1], o.whole("groups"), -1)
    of_groups = np.sort(grouped, axis=-1)[..., -o.whole("best") :].sum(axis=-1)
    order = np.argsort(-of_groups, axis=-1, kind="stable")
    allowed = np.argsort(order, axis=-1)[..., None] < o.whole("kept")
    kept = np.where(allowed, grouped, -np.inf if fill is None else fill)
    return (kept.reshape(scores.shape).astype(scores.dtype),)


def _limit_groups_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    numbers = [at.number(name) for name in ("groups", "kept", "best")]
    fill = {} if at.attrs["fill"] is None else {"fill": at.number("fill")}
    return call("limit_groups", x[0], *numbers, **fill)


def _limit_groups_onnx(b: Builder, site: Site, x: Values) -> Values:
    groups, kept, best = (a_int(site.attrs, name) for name in ("groups", "kept", "best"))
    dims, fill = site.dims(), site.attrs["fill"]
    apart = (*dims[:-1], Dim.of(groups), Dim.of(dims[-1].value // groups))
    dtype = b.element(site.operands[0].dtype)
    grouped = b.reshape(x[0], dims, apart)
    largest, _ = b.ops("TopK", grouped, b.ints([best]), dtypes=(dtype, b.INT64), axis=-1)
    of_groups = b.op("ReduceSum", largest, b.ints([-1]), keepdims=0)
    _, chosen = b.ops("TopK", of_groups, b.ints([kept]), dtypes=(dtype, b.INT64), axis=-1)
    places = b.op("Unsqueeze", chosen, b.ints([-1]))
    hits = b.op("Equal", places, b.ints(range(groups)), dtype=b.BOOL)
    hit = b.op("ReduceMax", b.to(hits, b.FLOAT), b.ints([-2]), keepdims=0)
    allowed = b.op("Greater", hit, b.number(0.5, b.FLOAT), dtype=b.BOOL)
    value = b.number(-math.inf if fill is None else a_float({"fill": fill}, "fill"), dtype)
    limited = b.op("Where", b.op("Unsqueeze", allowed, b.ints([-1])), grouped, value, dtype=dtype)
    return (b.reshape(limited, apart, dims),)


def _experts_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, weights = types
    need_real(x, "the first operand of experts")
    need_last(x, a_int(attrs, "features"), "the first operand of these experts")
    need(indices.dtype is DType.INT64, f"expert indices must be integers, they are {indices}")
    need(
        indices.shape == weights.shape and indices.shape[:-1] == x.shape[:-1],
        f"experts need one weight an index and token: x {x}, indices {indices}, weights {weights}",
    )
    return (x,)


def _experts_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    e, d, f = (a_int(attrs, n) for n in ("num_experts", "features", "intermediate"))
    if a_str(attrs, "layout") == "in_out":
        shapes = ((e, d, 2 * f), (e, f, d))
    else:
        shapes = ((e, 2 * f, d), (e, d, f))
    return (
        parameter("gate_up_proj", shapes[0], "matrix"),
        parameter("down_proj", shapes[1], "matrix"),
    )


def _experts_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    chosen = elements(operands[1].shape)
    return chosen * (6 * a_int(attrs, "features") * a_int(attrs, "intermediate"))


def _experts_numpy(o: Operands) -> tuple[Array, ...]:
    """Sum over a token's experts: w_j down(act(gate(x)) up(x)), or with w_j on x."""
    x, chosen, weights = o.real(0), o.ints(1), o.real(2)
    act, width = ACTIVATIONS[o.text("act")].numpy, o.whole("intermediate")
    y = np.zeros_like(x)
    for e in np.unique(chosen):
        gate_up, down = (o.widened(o.stored(n)[e]) for n in ("gate_up_proj", "down_proj"))
        if o.text("layout") == "out_in":
            gate_up, down = gate_up.T, down.T
        *tokens, places = np.nonzero(chosen == e)
        at, w = tuple(tokens), weights[*tokens, places, None]
        inside, outside = (w, 1.0) if o.text("scale") == "input" else (1.0, w)
        both = (inside * x[at]) @ gate_up
        y[at] += outside * ((act(both[:, :width]) * both[:, width:]) @ down)
    return (y,)


def _experts_module(at: ModuleSite) -> Call:
    widths = [at.number(n) for n in ("num_experts", "features", "intermediate")]
    return call(at.plan.experts_class(at.attrs), *widths)


def _experts_onnx(b: Builder, site: Site, x: Values) -> Values:
    """The sum over _experts_onnx is kept in float32: ONNX Runtime cannot scatter-add other dtypes on the CPU."""
    dtype = b.element(site.results[0].dtype)
    features = a_int(site.attrs, "features")
    tokens = b.flat(x[0], site.dims())
    chosen = b.flat(x[1], site.dims(1))
    weights = b.flat(b.to(x[2], dtype), site.dims(2))
    zero = ir.Tensor(np.zeros(1, dtype=np.float32))
    empty = b.op("ConstantOfShape", b.op("Shape", tokens, dtype=b.INT64), dtype=b.FLOAT, value=zero)
    numbers = b.ints(range(a_int(site.attrs, "num_experts")))
    stacks = tuple(_Stack.of(b, site.parameters[name]) for name in ("gate_up_proj", "down_proj"))
    scanned = [value for stack in stacks for value in stack.values]
    body = _body(b, site, tokens, chosen, weights, features, stacks)
    total = b.op(
        "Scan", empty, numbers, *scanned, dtype=b.FLOAT, body=body, num_scan_inputs=1 + len(scanned)
    )
    result = b.to(total, dtype)
    return (result if len(site.dims()) == 2 else b.op("Reshape", result, b.shape(site.dims())),)


@dataclass(frozen=True, slots=True)
class _Stack:
    """A weight of all experts: one tensor, or the parts of a quantised one. Of each a step sees one expert."""

    values: tuple[ir.Value, ...]
    coded: Quantized | None

    @staticmethod
    def of(b: Builder, weight: ir.Value) -> _Stack:
        parts = b.parts(weight)
        if parts is None:
            # Experts stored in another dtype are cast one by one, when they are chosen.
            return _Stack((b.stored(weight),), None)
        coded = (parts.codes, parts.scales, parts.zero_points)
        return _Stack(tuple(value for value in coded if value is not None), parts)

    def inputs(self, step: Builder, name: str) -> Values:
        """Inputs of the body for one expert."""
        values: list[ir.Value] = []
        for value, suffix in zip(self.values, ("", "_scales", "_zero_points"), strict=False):
            assert value.dtype is not None and value.shape is not None
            shape = ir.Shape(value.shape.dims[1:])
            values.append(step.value(f"{name}{suffix}", value.dtype, shape))
        return tuple(values)

    def product(self, b: Builder, x: ir.Value, expert: Values, transposed: int) -> ir.Value:
        """``x`` [m, inputs] times one expert's matrix, [m, outputs], in the dtype of ``x``."""
        if self.coded is None:
            assert x.dtype is not None
            return b.op("Gemm", x, b.to(expert[0], x.dtype), transB=transposed)
        codes, scales, points = (*expert, None)[:3]
        assert codes is not None and scales is not None and scales.shape is not None
        blocks = self.coded.encoding
        rows, count = scales.shape.numpy()
        stored = b.ints([rows, count, blocks.block * blocks.bits // 8])
        outputs, inputs = self.coded.shape[1:] if transposed else self.coded.shape[:0:-1]
        return b.op(
            "MatMulNBits",
            *(x, b.op("Reshape", codes, stored), scales, points),
            K=inputs,
            N=outputs,
            bits=blocks.bits,
            block_size=blocks.block,
            accuracy_level=blocks.accuracy_level,
        )


def _body(
    b: Builder,
    site: Site,
    tokens: ir.Value,
    chosen: ir.Value,
    weights: ir.Value,
    features: int,
    stacks: tuple[_Stack, ...],
) -> ir.Graph:
    step = b.child()
    rows = ir.Shape([None, features])
    scope = b.scope
    total = step.value(f"{scope}/total", b.FLOAT, rows)
    expert = step.value(f"{scope}/expert", b.INT64, ir.Shape([]))
    weights_of = tuple(
        stack.inputs(step, f"{scope}/{name}")
        for stack, name in zip(stacks, ("gate_up", "down"), strict=True)
    )
    hits = step.op("Equal", chosen, expert, dtype=b.BOOL)
    used = step.op("ReduceMax", hits, dtype=b.BOOL, keepdims=0)
    products = tuple(zip(stacks, weights_of, strict=True))
    then = _evaluate(step, site, (tokens, weights, hits, total), products)
    keep = step.child()
    kept = keep.op("Identity", total)
    skip = ir.Graph([], [kept], nodes=keep.nodes, name=step.name(f"{scope}/skipped"))
    result = step.op("If", used, dtype=b.FLOAT, then_branch=then, else_branch=skip)
    result.shape = rows
    inputs = [total, expert, *(value for values in weights_of for value in values)]
    return ir.Graph(inputs, [result], nodes=step.nodes, name=step.name(f"{scope}/one_expert"))


def _evaluate(
    step: Builder, site: Site, values: Values, products: tuple[tuple[_Stack, Values], ...]
) -> ir.Graph:
    tokens, weights, hits, total = values
    (up, up_values), (down, down_values) = products
    b = step.child()
    dtype = tokens.dtype
    assert dtype is not None
    places = b.op("NonZero", hits, dtype=b.INT64)  # [2, m]: token and slot
    token = b.op("Gather", places, b.whole(0), axis=0)
    weight = b.op("GatherND", weights, b.op("Transpose", places, perm=(1, 0)))
    column = b.op("Unsqueeze", weight, b.ints([1]))
    rows = b.op("Gather", tokens, token, axis=0)
    if a_str(site.attrs, "scale") == "input":
        rows = b.op("Mul", rows, column)
    transposed = int(a_str(site.attrs, "layout") == "out_in")
    both = up.product(b, rows, up_values, transposed)
    gate, linear = _halves(b, site, both, paired=up.coded is not None)
    hidden = b.op("Mul", ACTIVATIONS[a_str(site.attrs, "act")].onnx(b, gate), linear)
    result = down.product(b, hidden, down_values, transposed)
    if a_str(site.attrs, "scale") == "output":
        result = b.op("Mul", result, column)
    index = b.op("Unsqueeze", token, b.ints([1]))
    added = b.op("ScatterND", total, index, b.to(result, b.FLOAT), reduction="add")
    added.shape = ir.Shape([None, Dim.of(a_int(site.attrs, "features")).value])
    return ir.Graph([], [added], nodes=b.nodes, name=b.name(f"{b.scope}/chosen"))


def _halves(b: Builder, site: Site, both: ir.Value, *, paired: bool) -> Values:
    """Gate and linear half, [m, F] each: one after the other, or in turns as codes have them."""
    dtype = both.dtype
    if not paired:
        return b.ops("Split", both, dtypes=(dtype, dtype), axis=1, num_outputs=2)
    turns = b.op("Reshape", both, b.ints([-1, a_int(site.attrs, "intermediate"), 2]))
    return tuple(b.op("Gather", turns, b.whole(i), axis=2) for i in range(2))


_LEAST = 1e-30
"""A weight that rounded to 0 has a share with a logarithm."""


_NOT_CHOSEN = -6e4
"""The logarithm of no weight at all: its exponential is 0, and float16 can hold it."""


def _mixture_onnx(b: Builder, site: Site, x: Values) -> Values:
    routed = _routed(b, site, x, b.model)
    up, down = _stacked(b, site)
    inputs = (routed.tokens, routed.logits, up, None, down)
    return (_whole(b, site, routed, _swiglu(b, "MoE", inputs, site)),)


def _quantized_mixture_onnx(b: Builder, site: Site, x: Values) -> Values:
    """On the CPU in float32 whatever the model's dtype is: its kernel has no faster way."""
    dtype = b.FLOAT if b.profile.name == "ort-cpu" else b.model
    routed = _routed(b, site, x, dtype)
    up, down = (_parts(b, site, name) for name in ("gate_up_proj", "down_proj"))
    inputs = (
        *(routed.tokens, routed.logits, up.codes, b.to(up.scales, dtype), None),
        *(down.codes, b.to(down.scales, dtype), None, None, None, None),
        *(up.zero_points, down.zero_points),
    )
    return (_whole(b, site, routed, _swiglu(b, "QMoE", inputs, site, up.encoding)),)


def _swiglu(
    b: Builder,
    kind: str,
    inputs: Sequence[ir.Value | None],
    site: Site,
    blocks: Encoding | None = None,
) -> ir.Value:
    """Experts of silu(gate) * up, rows of gate and up in turns."""
    return b.op(
        kind,
        *inputs,
        k=a_int(site.attrs, "k"),
        normalize_routing_weights=1,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        expert_weight_bits=blocks.bits if blocks else None,
        block_size=blocks.block if blocks else None,
        accuracy_level=blocks.accuracy_level if blocks else None,
        weights_prepacked=0 if blocks else None,
    )


@dataclass(frozen=True, slots=True)
class _Routed:
    """What the operators get: tokens [n, D] and logits [n, E]; ``factor`` [n, 1], float32, multiplies their result."""

    tokens: ir.Value
    logits: ir.Value
    factor: ir.Value | None


def _routed(b: Builder, site: Site, x: Values, dtype: ir.DataType) -> _Routed:
    """The operators' weights are softmax(logits) over its k largest, so log(w) gives w / sum(w).

    It gets log(w / sum(w)): rounding that to two bytes costs at most u/e of the sum of weights, since r |log r| <= 1/e.
    One expert has weight 1 there; its own weight goes to the side that the model scales.
    """
    tokens, chosen, weights = (b.flat(t, site.dims(i)) for i, t in enumerate(x))
    experts, k = a_int(site.attrs, "num_experts"), a_int(site.attrs, "k")
    wide = b.to(weights, b.FLOAT)
    if k == 1:
        total, logs = wide, b.op("Mul", wide, b.number(0.0, b.FLOAT))
    else:
        wide = b.op("Max", wide, b.number(_LEAST, b.FLOAT))
        total = b.op("ReduceSum", wide, b.ints([1]), keepdims=1)
        logs = b.op("Log", b.op("Div", wide, total))
    count = b.op("Shape", chosen, dtype=b.INT64, start=0, end=1)
    shape = b.op("Concat", count, b.ints([experts]), axis=0)
    nothing = ir.Tensor(np.array([_NOT_CHOSEN], dtype=np.float32))
    empty = b.op("ConstantOfShape", shape, dtype=b.FLOAT, value=nothing)
    logits = b.to(b.op("ScatterElements", empty, chosen, logs, axis=1), dtype)
    if k == 1 and a_str(site.attrs, "scale") == "input":
        scaled = b.op("Mul", b.to(tokens, b.FLOAT), wide)
        return _Routed(b.to(scaled, dtype), logits, None)
    return _Routed(b.to(tokens, dtype), logits, total)


def _whole(b: Builder, site: Site, routed: _Routed, result: ir.Value) -> ir.Value:
    """The result of the model's experts, in its dtype and shape."""
    if routed.factor is not None:
        result = b.op("Mul", b.to(result, b.FLOAT), routed.factor)
    result = b.to(result, b.element(site.results[0].dtype))
    dims = site.dims()
    return result if len(dims) == 2 else b.op("Reshape", result, b.shape(dims))


def _stacked(b: Builder, site: Site) -> Values:
    """[E, 2 F, D] with a gate row and an up row in turns, and [E, D, F]; folded when a session opens."""
    experts, features, width = (
        a_int(site.attrs, n) for n in ("num_experts", "features", "intermediate")
    )
    up, down = site.parameters["gate_up_proj"], site.parameters["down_proj"]
    if a_str(site.attrs, "layout") == "out_in":
        apart = b.op("Reshape", up, b.ints([experts, 2, width, features]))
        turns = b.op("Transpose", apart, perm=(0, 2, 1, 3))
    else:
        apart = b.op("Reshape", up, b.ints([experts, features, 2, width]))
        turns = b.op("Transpose", apart, perm=(0, 3, 2, 1))
        down = b.op("Transpose", down, perm=(0, 2, 1))
    return b.op("Reshape", turns, b.ints([experts, 2 * width, features])), down


def _parts(b: Builder, site: Site, name: str) -> Quantized:
    coded = b.parts(site.parameters[name])
    assert coded is not None
    return coded


EXPERT_OPS: tuple[Op, ...] = (
    Op(
        "experts",
        "Gated feed-forward experts of one layer in two tensors; only the chosen experts of a token are evaluated. "
        "``layout='out_in'`` stores [E, 2F, D] and [E, D, F] (Mixtral), ``'in_out'`` [E, D, 2F] and [E, F, D] "
        "(Llama 4); the gate is the first half. ``scale='output'`` weights the expert's result, ``'input'`` its "
        "operand (Llama 4: not the same, the gate is not linear).",
        "y = sum_j w_j * down_e(act(gate_e(x)) * up_e(x)), e = indices_j;  "
        "input: down_e(act(gate_e(w_j x)) * up_e(w_j x))",
        ("x", "indices", "weights"),
        _experts_shape,
        Precision.MODEL,
        Tokens.ALONE,
        attrs=(
            int_attr("num_experts", "number of experts E"),
            int_attr("features", "width D of a token"),
            int_attr("intermediate", "width F of an expert"),
            AttrSpec(
                "act", "str", "activation of the gate", default="silu", choices=tuple(ACTIVATIONS)
            ),
            AttrSpec("layout", "str", "", default="out_in", choices=("out_in", "in_out")),
            AttrSpec("scale", "str", "", default="output", choices=("output", "input")),
        ),
        parameters=_experts_parameters,
        flops=_experts_flops,
        is_part=True,
        cite="facts 4.8",
        role=Role.EXPERTS,
        numpy=_experts_numpy,
        torch=lambda at, x: at.routed(x),
        torch_module=_experts_module,
        onnx=_experts_onnx,
    ),
    Op(
        "limit_groups",
        "Scores of experts outside of the best groups become -inf, or ``fill``: for a ``topk`` within them. A group is "
        "as good as its ``best`` largest scores together (DeepSeek-V3: 2; V2: 1).",
        "s_e if the group of e is among the `kept` with the largest sum of `best` scores, else fill",
        ("scores",),
        _limit_groups_shape,
        Precision.EXACT,
        Tokens.ALONE,
        attrs=(
            int_attr("groups", "how many groups of equal size the experts are in"),
            int_attr("kept", "how many of them may be chosen from"),
            AttrSpec("best", "int", "scores of a group that count", default=2),
            AttrSpec("fill", "float", "what other scores become; none is -inf", optional=True),
        ),
        cite="arXiv 2412.19437, section 2.1.2",
        numpy=_limit_groups_numpy,
        torch=_limit_groups_torch,
        onnx=_limit_groups_onnx,
    ),
    Op(
        "MoE",
        "Experts in one kernel.",
        "as `experts`",
        ("x", "indices", "weights"),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        fused=True,
        role=Role.EXPERTS,
        onnx=_mixture_onnx,
    ),
    Op(
        "QMoE",
        "Experts whose weights are codes in one kernel.",
        "as `experts`",
        ("x", "indices", "weights"),
        same_shape,
        Precision.MODEL,
        Tokens.ALONE,
        fused=True,
        role=Role.EXPERTS,
        onnx=_quantized_mixture_onnx,
    ),
)
