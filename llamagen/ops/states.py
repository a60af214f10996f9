"""Ops that hand a state of fixed size from call to call: short convolutions and linear recurrences over tokens.

Padding is passed over: a text gives what it gives alone, wherever its padding is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamagen.ops.attention import new_mask, pack_rows, unpack_rows
from llamagen.ops.code import Binary, Call, Code, Text, call, literal
from llamagen.ops.dims import Dim, S
from llamagen.ops.lazy import ir, np
from llamagen.ops.op import (
    Attrs,
    AttrSpec,
    Carried,
    DType,
    Op,
    Operands,
    Parameter,
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
    need,
    need_last,
    need_rank,
    need_real,
    parameter,
    part_text,
)

if TYPE_CHECKING:
    from llamagen.emit.onnx.builder import Builder, Site
    from llamagen.emit.torch.site import ModuleSite, TorchSite
    from llamagen.ops.op import Array, Values


def _conv1d_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    channels, kernel = a_int(attrs, "channels"), a_int(attrs, "kernel")
    need_rank(x, 3, "the operand of conv1d")
    need_real(x, "the operand of conv1d")
    need_last(x, channels, "the operand of this conv1d")
    need(x.shape[1] == S, "conv1d goes along the tokens of a call, [B, S, D], not along {}", x)
    need(kernel > 1, f"a kernel of {kernel} sees no other token: it is a factor a channel")
    return (TensorType(DType.MODEL, x.shape),)


def _conv1d_states(types: Types, attrs: Attrs) -> tuple[Carried, ...]:
    x = types[0]
    shape = (x.shape[0], x.shape[2], Dim.of(a_int(attrs, "kernel") - 1))
    last = TensorType(DType.MODEL, shape)
    return (Carried("conv_state", last, last),)


def _conv1d_parameters(attrs: Attrs) -> tuple[Parameter, ...]:
    channels, kernel = a_int(attrs, "channels"), a_int(attrs, "kernel")
    weight = parameter("weight", (channels, 1, kernel), "matrix")
    return (weight, parameter("bias", (channels,), "bias")) if a_bool(attrs, "bias") else (weight,)


def _conv1d_numpy(o: Operands) -> tuple[Array, ...]:
    """Text by text and token by token, over the real tokens alone."""
    x, real, past = o.real(0), o.ints(1) > 0, o.states[0]
    weight = o.weight("weight")[:, 0]
    bias = o.weight("bias") if a_bool(o.attrs, "bias") else 0.0
    y, left = np.zeros_like(x), np.empty_like(past)
    for row in range(len(x)):
        last = np.concatenate([past[row], np.zeros((len(weight), 1))], axis=1)
        for token in np.flatnonzero(real[row, -x.shape[1] :]):
            last[:, -1] = x[row, token]
            y[row, token] = (last * weight).sum(axis=1) + bias
            last[:, :-1] = last[:, 1:]
        left[row] = last[:, :-1]
    return y, left


def _conv1d_module(at: ModuleSite) -> Call:
    bias = literal(a_bool(at.attrs, "bias"))
    return call("CausalConv1d", at.number("channels"), at.number("kernel"), bias=bias)


def _conv1d_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    return part_text(at, (*x, Text("cache")))


def _conv1d_onnx(b: Builder, site: Site, x: Values) -> Values:
    """A product for each weight of the kernel, in float32: a depthwise Conv wants cuDNN on CUDA.

    Real tokens of a row come first meanwhile; behind the last inputs of the calls before each sees its own.
    """
    rows, mask = b.to(x[0], b.model), x[1]
    kernel, tokens = a_int(site.attrs, "kernel"), site.dims()[1]
    past = b.op("Transpose", b.inside(site.states[0], DType.MODEL), perm=(0, 2, 1))
    seen = b.op("Concat", past, pack_rows(b, rows, mask), axis=1)
    left = b.op(
        "Transpose", b.op("GatherND", seen, _ends(b, mask, kernel), batch_dims=1), perm=(0, 2, 1)
    )
    wide, weight = b.to(seen, b.FLOAT), b.to(site.parameters["weight"], b.FLOAT)
    taps = b.op("Transpose", weight, perm=(2, 1, 0))  # [K, 1, D]
    total = b.to(site.parameters["bias"], b.FLOAT) if "bias" in site.parameters else None
    for i in range(kernel):
        end = b.op("Add", b.size(tokens), b.ints([i]))
        part = b.op("Slice", wide, b.ints([i]), end, b.ints([1]))
        part = b.op("Mul", part, b.op("Gather", taps, b.whole(i), axis=0))
        total = part if total is None else b.op("Add", total, part)
    assert total is not None
    y = unpack_rows(b, b.to(total, b.model), mask)
    return (y, b.to(left, b.io))


def _ends(b: Builder, mask: ir.Value, kernel: int) -> ir.Value:
    """int64[B, K - 1, 1]: behind as many old inputs, the places of the last ones once the real tokens of a row came."""
    key = f"ends of {kernel}"
    if key not in b.shared:
        with b.within("/rows"):
            count = b.op("ReduceSum", new_mask(b, mask), b.ints([1]), keepdims=1)
            places = b.op("Add", count, b.ints(range(kernel - 1)))
            b.shared[key] = b.op("Unsqueeze", places, b.ints([2]))
    return b.shared[key]


RULES = ("linear", "gated", "delta", "gated_delta")


def gates_of(attrs: Attrs) -> tuple[str, ...]:
    """The operands that a rule has behind the mask."""
    rule = a_str(attrs, "rule")
    return ("decay",) * rule.startswith("gated") + ("beta",) * rule.endswith("delta")


def _linear_attention_shape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    q, k, v, _, *more = types
    for t, what in ((q, "queries"), (k, "keys"), (v, "values")):
        need_rank(t, 4, what)
        need_real(t, what)
    need(q.shape[2] == S, "linear_attention goes along the tokens of a call, not along {}", q)
    need(q.shape[-1] == k.shape[-1], "queries {} and keys {} differ in head_dim", q, k)
    need(k.shape[:3] == v.shape[:3], "keys {} and values {} differ in heads or length", k, v)
    heads, kv_heads = q.shape[1].value, k.shape[1].value
    need(
        q.shape[2] == k.shape[2] and heads % kv_heads == 0,
        "{} query heads cannot share {} key/value heads of {}",
        *(heads, kv_heads, k),
    )
    gates = gates_of(attrs)
    need(
        len(more) == len(gates),
        "the rule {} takes {} behind the mask; here are {}",
        *(a_str(attrs, "rule"), " and ".join(gates) or "nothing", len(more)),
    )
    for name, t in zip(gates, more, strict=True):
        need_rank(t, 4, name)
        need_real(t, name)
        widths = (Dim.of(1), k.shape[3]) if name == "decay" else (Dim.of(1),)
        need(
            t.shape[:3] == k.shape[:3] and t.shape[3] in widths,
            "{} {} is not one number for each head of keys {}",
            *(name, t, k),
        )
    return (TensorType(q.dtype, (*q.shape[:3], v.shape[3])),)


def _linear_attention_states(types: Types, attrs: Attrs) -> tuple[Carried, ...]:
    k, v = types[1], types[2]
    state = TensorType(DType.FLOAT32, (*k.shape[:2], k.shape[3], v.shape[3]))
    return (Carried("recurrent_state", state, state),)


def _linear_attention_flops(operands: Types, results: Types, attrs: Attrs) -> Dim:
    """What is written to a state, read from it by queries, and by keys where what they say is replaced."""
    q, k, v = (t.shape for t in operands[:3])
    reads = elements(k) * (2 if "beta" in gates_of(attrs) else 1)
    return (elements(q) + reads) * v[3] * 2


def _scale(attrs: Attrs, head_dim: Dim) -> float:
    return head_dim.value**-0.5 if attrs["scale"] is None else a_float(attrs, "scale")


def _linear_attention_numpy(o: Operands) -> tuple[Array, ...]:
    """Text by text, head by head and token by token; one of padding reads and writes nothing."""
    q, k, v = o.real(0), o.real(1), o.real(2)
    gates = {name: o.real(4 + i) for i, name in enumerate(gates_of(o.attrs))}
    scale = _scale(o.attrs, Dim.of(q.shape[3]))
    group, tokens = q.shape[1] // k.shape[1], q.shape[2]
    real = o.ints(3)[:, -tokens:] > 0
    y, states = np.zeros((*q.shape[:3], v.shape[3])), o.states[0].copy()
    for b, h in np.ndindex(*k.shape[:2]):
        for t in range(tokens):
            if real[b, t] and "decay" in gates:
                states[b, h] *= np.exp(gates["decay"][b, h, t])[:, None]
            new = v[b, h, t]
            if "beta" in gates:
                new = gates["beta"][b, h, t] * (new - states[b, h].T @ k[b, h, t])
            if real[b, t]:
                states[b, h] += np.outer(k[b, h, t], new)
            of_group = slice(h * group, (h + 1) * group)
            y[b, of_group, t] = scale * q[b, of_group, t] @ states[b, h]
    return y, states


def _linear_attention_torch(at: TorchSite, x: Sequence[Code]) -> Code:
    head_dim = at.operand_types[0].shape[-1]
    usual = Binary("**", at.size(head_dim), literal(-0.5))
    scale = usual if at.attrs["scale"] is None else at.number("scale")
    gates = dict(zip(gates_of(at.attrs), x[4:], strict=True))
    return call("linear_attention", *x[:4], Text("cache"), scale, **gates)


def _linear_attention_onnx(b: Builder, site: Site, x: Values) -> Values:
    """A Scan over the tokens, in float32. At padding a key is 0 and a decay none, which leaves a state as it is."""
    q, k, v = (b.to(t, b.FLOAT) for t in x[:3])
    (batch, _, tokens, width), (_, kv_heads, *_), (*_, wide) = (site.dims(i) for i in range(3))
    group = Dim.of(site.dims()[1].value // kv_heads.value)
    real, none = _real(b, x[3]), b.number(0.0, b.FLOAT)
    q = b.op("Mul", q, b.number(_scale(site.attrs, width), b.FLOAT))
    q = b.reshape(q, site.dims(), (batch, kv_heads, group, tokens, width))
    k = b.op("Where", real, k, none, dtype=b.FLOAT)

    def by_token(x: ir.Value, axis: int) -> ir.Value:
        """[B, K, S, n] with the tokens first, and a dimension of size 1 at ``axis``."""
        return b.op("Unsqueeze", b.op("Transpose", x, perm=(2, 0, 1, 3)), b.ints([axis]))

    scanned = [b.op("Transpose", q, perm=(3, 0, 1, 2, 4)), by_token(k, 3), by_token(v, 3)]
    for name, gate in zip(gates_of(site.attrs), x[4:], strict=True):
        gate = b.to(gate, b.FLOAT)
        if name == "decay":
            gate = b.op("Exp", b.op("Where", real, gate, none, dtype=b.FLOAT))
        scanned.append(by_token(gate, 4))
    state, y = b.ops(
        "Scan",
        *(site.states[0], *scanned),
        dtypes=(b.FLOAT, b.FLOAT),
        body=_one_token(b, site),
        num_scan_inputs=len(scanned),
    )
    want = site.results[0].shape
    y = b.op("Transpose", y, perm=(1, 2, 3, 0, 4))
    y = b.reshape(y, (batch, kv_heads, group, tokens, wide), want)
    return (b.to(y, b.element(site.results[0].dtype)), state)


def _one_token(b: Builder, site: Site) -> ir.Graph:
    """State [B, K, H, V], of one token queries [B, K, G, H], keys [B, K, 1, H] and values [B, K, 1, V], decay
    [B, K, 1 or H, 1], beta [B, K, 1, 1] -> the state after it, what the queries read, [B, K, G, V]."""
    step, scope, gates = b.child(), b.scope, gates_of(site.attrs)
    names = ("state", "query", "key", "value", *gates)
    inputs = [step.value(f"{scope}/{name}", b.FLOAT, ir.Shape([None] * 4)) for name in names]
    state, query, key, new = inputs[:4]
    given = dict(zip(gates, inputs[4:], strict=True))
    if "decay" in given:
        state = step.op("Mul", state, given["decay"])
    if "beta" in given:
        new = step.op("Sub", new, step.op("MatMul", key, state))
        new = step.op("Mul", new, given["beta"])
    column = step.op("Transpose", key, perm=(0, 1, 3, 2))
    state = step.op("Add", state, step.op("Mul", column, new))
    read = step.op("MatMul", query, state)
    return ir.Graph(inputs, [state, read], nodes=step.nodes, name=step.name(f"{scope}/one_token"))


def _real(b: Builder, mask: ir.Value) -> ir.Value:
    """bool[B, 1, S, 1]: True for the real tokens of this call."""
    if "real heads" not in b.shared:
        with b.within("/rows"):
            real = b.to(new_mask(b, mask), b.BOOL)
            b.shared["real heads"] = b.op("Unsqueeze", real, b.ints([1, 3]))
    return b.shared["real heads"]


STATE_OPS: tuple[Op, ...] = (
    Op(
        "conv1d",
        "Each channel's last ``kernel`` inputs, this token's among them, times its own weights (a causal depthwise "
        "convolution: LFM2, Mamba, gated delta nets). What `attention_mask` calls padding is passed over. Its state "
        "are the last ``kernel - 1`` inputs.",
        "y[t, d] = sum_j weight[d, 0, j] x[t - kernel + 1 + j, d] + bias[d];  x is 0 before the text",
        ("x", "attention_mask"),
        _conv1d_shape,
        Precision.MODEL,
        Tokens.MIXED,
        attrs=(
            int_attr("channels", "width of operand and result"),
            int_attr("kernel", "inputs of a channel that one result sees"),
            AttrSpec("bias", "bool", "whether a bias is added", default=False),
        ),
        parameters=_conv1d_parameters,
        flops=lambda operands, results, attrs: (
            elements(results[0].shape) * (2 * a_int(attrs, "kernel"))
        ),
        is_part=True,
        state=State.FIXED,
        carries=_conv1d_states,
        cite="arXiv 2312.00752 (Mamba), 2511.23404 (LFM2)",
        numpy=_conv1d_numpy,
        torch=_conv1d_torch,
        torch_module=_conv1d_module,
        onnx=_conv1d_onnx,
    ),
    Op(
        "linear_attention",
        "A recurrence over tokens whose state is a matrix a head: each token decays it, writes its value under its "
        "key, and reads it by its query. Rules: `linear` (nothing else), `gated` (decay in log space, one a head or "
        "one a feature of keys: RetNet, GLA, Mamba 2), `delta` (beta times what the value differs from what the key "
        "reads is written) and `gated_delta` (both: Qwen3-Next). Query head h reads the state of key/value head "
        "h // (N / K). What `attention_mask` calls padding is passed over. In float32.",
        "S = exp(decay) S + k (beta (v - k^T exp(decay) S))^T;  y = scale q^T S;  scale defaults to 1/sqrt(head_dim)",
        ("q", "k", "v", "attention_mask"),
        _linear_attention_shape,
        Precision.FLOAT32_INSIDE,
        Tokens.MIXED,
        attrs=(
            AttrSpec(
                "rule",
                "str",
                "what a token does to the state; `decay` and `beta` follow the mask as it says",
                required=True,
                choices=RULES,
            ),
            AttrSpec(
                "scale", "float", "factor on queries; none is 1/sqrt(head_dim)", optional=True
            ),
        ),
        flops=_linear_attention_flops,
        optional_operands=("decay", "beta"),
        role=Role.RECURRENCE,
        state=State.FIXED,
        carries=_linear_attention_states,
        cite="arXiv 2006.16236, 2312.06635 (gated), 2406.06484 (delta), 2412.06464 (gated delta); ONNX LinearAttention",
        numpy=_linear_attention_numpy,
        torch=_linear_attention_torch,
        onnx=_linear_attention_onnx,
    ),
)
