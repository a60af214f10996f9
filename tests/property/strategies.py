"""Random valid decoders as YAML text, and inputs for them.

A spec is drawn as text, so that a failure shrinks to a small YAML file, is printed as one, and can be kept
as a case. Every draw's first choice is the plainest: what a shrunk spec still has, the failure needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from llamagen.verify.scenarios import Scenario
from tests.counting import count


class SpecText(str):
    """YAML that prints as YAML in Hypothesis' report."""

    def __repr__(self) -> str:
        return f"SpecText('''\n{self}''')"


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh")
KINDS = ("full", "sliding", "chunked", "nope", "local", "tempered")
"""Attention of a layer: a sliding window, chunks, no rotation, the other rotary base, a temperature."""
STATES = {"conv": "ShortConv", "recurrent": "Recurrence"}
"""What a layer may have in its place, and its block."""
MIXERS = (*KINDS, *STATES)


def number(value: float) -> str:
    """A float as the spec's YAML wants it: with a point."""
    text = repr(float(value))
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


@dataclass
class Sizes:
    """The numbers that declarations are made of."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    ffn: int
    vocab: int


@dataclass
class Draft:
    """A spec under construction."""

    sizes: Sizes
    norm: tuple[str, str]
    """Op and arguments after the width."""
    hyper: dict[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("full",)
    feeds: tuple[str, ...] = ("dense",)

    def norm_of(self, width: str | int) -> str:
        op, rest = self.norm
        return f"{op}({width}, eps=norm_eps{rest})"


T = TypeVar("T")


def pick(draw: DrawFn, *choices: T) -> T:
    return draw(st.sampled_from(choices))


def maybe(draw: DrawFn) -> bool:
    return draw(st.sampled_from((False, True)))


@st.composite
def ropes(draw: DrawFn, head_dim: int) -> str:
    kind = pick(draw, "default", "linear", "llama3", "yarn")
    theta = pick(draw, 10000.0, 50.0, 500000.0)
    fields = [f"kind: {kind}", f"theta: {number(theta)}"]
    if kind != "default":
        fields.append(f"factor: {number(pick(draw, 4.0, 2.5, 32.0))}")
    if kind == "llama3":
        low = pick(draw, 1.0, 0.5, 2.0)
        high = low * pick(draw, 4.0, 1.0)
        fields += [f"low_freq_factor: {number(low)}", f"high_freq_factor: {number(high)}"]
    if kind == "yarn":
        fields += [f"attention_factor: {number(pick(draw, 1.0, 1.25))}"]
        fields += [f"beta_fast: {number(pick(draw, 32.0, 4.0))}", "beta_slow: 1.0"]
    if kind in ("llama3", "yarn"):
        fields.append(f"original_max_positions: {pick(draw, 64, 8192)}")
    if maybe(draw):
        fields.append("layout: interleaved")
    width = draw(st.integers(1, head_dim // 2)) * 2
    if width < head_dim and maybe(draw):
        fields.append(f"partial: {number((width + 0.5) / head_dim)}")
    return "{" + ", ".join(fields) + "}"


@st.composite
def drafts(draw: DrawFn, head_dims: tuple[int, ...], kinds: tuple[str, ...]) -> Draft:
    kv_heads = draw(st.integers(1, 3))
    head_dim = pick(draw, *head_dims)
    sizes = Sizes(
        layers=draw(st.integers(1, 4)),
        hidden=pick(draw, 16, 8, 12, 20, 30),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=pick(draw, head_dim, head_dim, 5),
        ffn=draw(st.integers(5, 24)),
        vocab=draw(st.integers(13, 40)),
    )
    norm = pick(
        draw,
        ("rms_norm", ""),
        ("rms_norm", ", cast='after_weight'"),
        ("rms_norm", ", offset=1.0, cast='after_weight'"),
        ("layer_norm", ""),
        ("layer_norm", ", bias=false"),
        ("layer_norm", ", weight=false, bias=false"),
    )
    draft = Draft(sizes, norm)
    draft.kinds = tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)))
    if STATES.keys() & set(draft.kinds):  # some layer has an attention
        draft.kinds = ("full", *draft.kinds)
    draft.feeds = tuple(draw(st.lists(st.sampled_from(("dense", "moe")), min_size=1, max_size=2)))
    h = draft.hyper
    h["vocab_size"], h["hidden_size"] = str(sizes.vocab), str(sizes.hidden)
    h["num_layers"], h["num_heads"] = str(sizes.layers), str(sizes.heads)
    h["num_kv_heads"], h["head_dim"] = str(sizes.kv_heads), str(sizes.head_dim)
    h["intermediate_size"] = str(sizes.ffn)
    h["norm_eps"] = number(pick(draw, 1e-6, 1e-5, 0.01))
    h["rope"] = draw(ropes(sizes.head_dim))
    h["hidden_act"] = str(pick(draw, *ACTIVATIONS))
    h["attention_bias"] = str(maybe(draw)).lower()
    h["mlp_bias"] = str(maybe(draw)).lower()
    h["tie_embeddings"] = str(maybe(draw)).lower()
    if "local" in draft.kinds:
        h["rope_local"] = draw(ropes(sizes.head_dim))
    if "sliding" in draft.kinds:
        h["sliding_window"] = str(draw(st.integers(1, 6)))
    if "chunked" in draft.kinds:
        h["attention_chunk_size"] = str(draw(st.integers(1, 6)))
    if "tempered" in draft.kinds:
        h["attention_temperature_scale"] = number(pick(draw, 0.1, 0.5))
        h["attention_temperature_floor"] = str(draw(st.integers(1, 4)))
    if "moe" in draft.feeds:
        h["num_experts"] = str(experts := draw(st.integers(2, 6)))
        h["num_experts_per_token"] = str(draw(st.integers(1, experts)))
        h["expert_intermediate_size"] = str(draw(st.integers(4, 12)))
    return draft


def block(name: str, parts: dict[str, str], forward: list[str], *more: str) -> str:
    lines = [f"  {name}:", *(f"    {line}" for line in more)]
    if parts:
        lines += ["    parts:", *(f"      {k}: {v}" for k, v in parts.items())]
    return "\n".join([*lines, "    forward: |", *(f"      {line}" for line in forward)])


def causal_lm(draw: DrawFn) -> str:
    head = "linear(hidden_size, vocab_size, tied_to='model.embed_tokens.weight' if tie_embeddings else none)"
    logits = "lm_head(model(input_ids))"
    logits = str(pick(draw, logits, f"softcap({logits}, 3.0)", f"{logits} / 8.0", f"-{logits}"))
    parts = {"model": "Decoder", "lm_head": head}
    return block("CausalLM", parts, [f"return {logits}"], "inputs: [input_ids]")


def decoder(draw: DrawFn, draft: Draft) -> str:
    parts = {
        "embed_tokens": "embedding(vocab_size, hidden_size)",
        "layers": "stack(num_layers, DecoderLayer(kind=kinds[layer], feed=feeds[layer]))",
        "norm": draft.norm_of("hidden_size"),
    }
    x = str(pick(draw, "embed_tokens(input_ids)", "embed_tokens(input_ids) * 4.5"))
    if maybe(draw):
        parts["embed_norm"] = draft.norm_of("hidden_size")
        x = f"embed_norm({x})"
    return block("Decoder", parts, [f"return norm(layers({x}))"], "inputs: [input_ids]")


def decoder_layer(draw: DrawFn, draft: Draft) -> str:
    norm = draft.norm_of("hidden_size")
    feed = "Experts if feed == 'moe' else FeedForward"
    mixer = "Attention(kind=kind)"
    for kind in STATES.keys() & set(draft.kinds):
        mixer = f"{STATES[kind]} if kind == '{kind}' else {mixer}"
    parts = {"norm_1": norm, "self_attn": mixer, "norm_2": norm, "mlp": feed}
    a, m = "self_attn(norm_1(x))", "mlp(norm_2(h))"
    match pick(draw, "pre", "post", "sandwich", "parallel", "parallel with two norms"):
        case "post":
            a, m = "norm_1(self_attn(x))", "norm_2(mlp(h))"
        case "sandwich":
            parts |= {"norm_3": norm, "norm_4": norm}
            a, m = "norm_3(self_attn(norm_1(x)))", "norm_4(mlp(norm_2(h)))"
        case "parallel":
            del parts["norm_2"]
            a, m = "", "self_attn(n) + mlp(n)"
        case "parallel with two norms":
            a, m = "", "mlp(norm_2(x)) + self_attn(norm_1(x))"
    match pick(draw, "plain", "scaled", "gated", "gated by channel"):
        case "scaled":
            a, m = a and f"{a} * 0.35", f"({m}) * 0.35"
        case "gated":
            parts |= {"gate_a": "parameter(1)"}
            a, m = a and f"tanh(gate_a) * {a}", f"({m}) * tanh(gate_a)"
        case "gated by channel":
            parts |= {"gate_a": "parameter(hidden_size)"}
            a, m = a and f"gate_a * {a}", f"({m}) * gate_a"
    lines = [f"h = x + {a}", f"return h + {m}"] if a else [f"return x + {m}"]
    if "(n)" in m:
        lines.insert(0, "n = norm_1(x)")
    options = "options: {kind: full, feed: dense}"
    return block("DecoderLayer", parts, lines, options)


def attention(draw: DrawFn, draft: Draft) -> str:
    s, norm = draft.sizes, draft.norm_of
    fused = maybe(draw)
    q_width, k_width = "num_heads * head_dim", "num_kv_heads * head_dim"
    v_width = f"num_kv_heads * {s.value_dim}"
    out_bias = pick(draw, "false", "attention_bias")
    parts = {"o_proj": f"linear(num_heads * {s.value_dim}, hidden_size, bias={out_bias})"}
    if fused:
        parts["qkv_proj"] = (
            f"linear(hidden_size, {q_width} + {k_width} + {v_width}, bias=attention_bias)"
        )
        lines = [f"q, k, v = split(qkv_proj(x), [{q_width}, {k_width}, {v_width}])"]
    else:
        for name, width in (("q", q_width), ("k", k_width), ("v", v_width)):
            parts[f"{name}_proj"] = f"linear(hidden_size, {width}, bias=attention_bias)"
        lines = [f"{n} = {n}_proj(x)" for n in "qkv"]
    qk = pick(draw, "none", "head", "width", "head after", "bare after", "clamp")
    if qk == "width":
        parts |= {"q_norm": norm(q_width), "k_norm": norm(k_width)}
        lines += ["q = q_norm(q)", "k = k_norm(k)"]
    if qk == "clamp":
        lines += ["q = clamp(q, -1.5, none)", "k = clamp(k, -1.5, 1.25)"]
    lines += ["q = split_heads(q, num_heads)", "k = split_heads(k, num_kv_heads)"]
    if qk in ("head", "head after"):
        parts |= {"q_norm": norm("head_dim"), "k_norm": norm("head_dim")}
    if qk == "head":
        lines += ["q = q_norm(q)", "k = k_norm(k)"]
    for n in "qk":
        table = "rope_local if kind == 'local' else rope" if "local" in draft.kinds else "rope"
        if {"nope", "tempered"} & set(draft.kinds):
            lines.append(
                f"{n} = {n} if kind == 'nope' or kind == 'tempered' else rope({n}, positions, {table})"
            )
        else:
            lines.append(f"{n} = rope({n}, positions, {table})")
    if "tempered" in draft.kinds:
        t = "attention_temperature(positions, attention_temperature_scale, attention_temperature_floor)"
        lines.append(f"q = model_dtype(float32(q) * {t}) if kind == 'tempered' else q")
    if qk == "head after":
        lines += ["q = q_norm(q)", "k = k_norm(k)"]
    if qk == "bare after":
        lines += ["q = rms_normalize(q, norm_eps)", "k = rms_normalize(k, norm_eps)"]
    limits = ""
    if "sliding" in draft.kinds:
        limits += ", window=sliding_window if kind == 'sliding' else none"
    if "chunked" in draft.kinds:
        limits += ", chunk=attention_chunk_size if kind == 'chunked' else none"
    if maybe(draw):
        limits += ", softcap=2.0"
    if maybe(draw):
        limits += ", scale=0.4"
    if maybe(draw):
        limits += ", alibi=true"
    if maybe(draw):
        parts["sinks"] = "parameter(num_heads, kind='bias')"
        limits += ", sinks=sinks"
    lines.append("k, v = cache(k, split_heads(v, num_kv_heads))")
    lines.append(f"a = merge_heads(attention(q, k, v, mask='causal'{limits}))")
    if maybe(draw):
        parts["g_proj"] = f"linear(hidden_size, num_heads * {s.value_dim})"
        lines.append("a = a * sigmoid(g_proj(x))")
    lines.append("return o_proj(a)")
    return block("Attention", parts, lines, "options: {kind: full}")


def short_conv(draw: DrawFn) -> str:
    kernel, bias = draw(st.integers(2, 5)), pick(draw, "true", "false")
    parts = {
        "in_proj": "linear(hidden_size, 2 * hidden_size)",
        "conv": f"conv1d(hidden_size, kernel={kernel}, bias={bias})",
        "out_proj": "linear(hidden_size, hidden_size)",
    }
    mixed = pick(draw, "conv(u, attention_mask)", "silu(conv(u, attention_mask))")
    lines = [
        "gate, u = split(in_proj(x), [hidden_size, hidden_size])",
        f"return out_proj(gate * {mixed})",
    ]
    return block("ShortConv", parts, lines)


def recurrence(draw: DrawFn) -> str:
    rule = pick(draw, "linear", "gated", "delta", "gated_delta")
    q, k, v = "num_heads * head_dim", "num_kv_heads * head_dim", "num_kv_heads * 5"
    parts = {
        f"{n}_proj": f"linear(hidden_size, {width})"
        for n, width in zip("qkv", (q, k, v), strict=True)
    }
    parts["o_proj"] = "linear(num_heads * 5, hidden_size)"
    lines = [
        "q = split_heads(q_proj(x), num_heads)",
        "k = rms_normalize(split_heads(k_proj(x), num_kv_heads), 0.01) / head_dim",
    ]
    operands = "q, k, split_heads(v_proj(x), num_kv_heads), attention_mask"
    if "gated" in rule:
        parts["decay"] = f"linear(hidden_size, {pick(draw, 'num_kv_heads', k)})"
        lines.append("g = -softplus(float32(split_heads(decay(x), num_kv_heads)))")
        operands += ", g"
    if "delta" in rule:
        parts["beta"] = "linear(hidden_size, num_kv_heads)"
        operands += ", sigmoid(split_heads(beta(x), num_kv_heads))"
    scale = pick(draw, "", ", scale=0.5")
    lines.append(f"y = linear_attention({operands}, rule='{rule}'{scale})")
    lines.append("return o_proj(merge_heads(y))")
    return block("Recurrence", parts, lines)


MIXES = (
    "where({a} > {b}, {a}, {b})",
    "where({a} < 0.5 and not ({b} >= 0.25), 0.5, max({a}, 0.5))",
    "where({a} <= {b} or {a} == {b}, {b} - {a}, 0)",
    "max({a}, {b}) * min({b}, 1.5)",
    "{a} * exp(-abs({b})) + {b} / (1 + square({a}))",
    "{a} * (1 + square({b})) ** 0.25 - log(1 + abs({b})) * sin({a})",
    "{a} * (1 / (1.5 + cos({b}))) + max({b}, axis=F) - min({a})",
    "(2 + tanh({a})) ** tanh({b})",
    "einsum({a}, mixing, 'B S F, F G -> B S G') * {b}",
    "reshape(reshape({a}, shape=[B, S, F, 1]) @ mixed, shape=[B, S, F]) + {b}",
    "{a} + {b} * sum(one_hot(positions, 32), axis=2)",
)
"""Of the gate ``a`` and of ``b``: no comparison decides between values that are far apart."""


def feed_forward(draw: DrawFn) -> str:
    bias = "bias=mlp_bias"
    parts = {"down_proj": f"linear(intermediate_size, hidden_size, {bias})"}
    up = f"linear(hidden_size, intermediate_size, {bias})"
    match pick(draw, "gated", "fused", "plain", "mixed"):
        case "mixed":
            parts |= {"gate_proj": up, "up_proj": up}
            mix = str(pick(draw, *MIXES))
            lines = ["g = gate_proj(x)", "u = up_proj(x)"]
            for name, shape in (
                ("mixing", "intermediate_size, intermediate_size"),
                ("mixed", "1, 1"),
            ):
                if name in mix:
                    parts[name] = f"parameter({shape}, kind='matrix')"
            lines.append(f"return down_proj({mix.format(a='g', b='u')})")
        case "gated":
            parts |= {"gate_proj": up, "up_proj": up}
            lines = ["return down_proj(activation(gate_proj(x), hidden_act) * up_proj(x))"]
        case "fused":
            parts["gate_up_proj"] = f"linear(hidden_size, 2 * intermediate_size, {bias})"
            lines = [
                "gate, up = split(gate_up_proj(x), [intermediate_size, intermediate_size])",
                "return down_proj(up * activation(gate, hidden_act))",
            ]
        case _:
            parts["up_proj"] = up
            lines = ["return down_proj(activation(up_proj(x), hidden_act))"]
    return block("FeedForward", parts, lines)


def experts(draw: DrawFn) -> str:
    layout, scale = pick(draw, "out_in", "in_out"), pick(draw, "output", "input")
    sizes = "num_experts, hidden_size, expert_intermediate_size"
    parts = {
        "router": f"linear(hidden_size, num_experts, bias={pick(draw, 'false', 'true')})",
        "experts": f"experts({sizes}, act=hidden_act, layout='{layout}', scale='{scale}')",
    }
    lines = ["scores = float32(router(x))"]
    top = "num_experts_per_token"
    if maybe(draw):
        lines += ["scores = limit_groups(scores, num_experts, num_experts_per_token, best=1)"]
    match pick(draw, "softmax", "renormalised", "softmax of chosen", "sigmoid", "corrected"):
        case "softmax":
            lines += [f"w, chosen = topk(softmax(scores), {top})"]
        case "renormalised":
            lines += [f"w, chosen = topk(softmax(scores), {top})", "w = w / sum(w)"]
        case "softmax of chosen":
            lines += [f"w, chosen = topk(scores, {top})", "w = softmax(w)"]
        case "sigmoid":
            lines += [f"w, chosen = topk(scores, {top})", "w = sigmoid(w)"]
        case _:
            parts["correction"] = "parameter(num_experts, kind='bias')"
            lines += [
                f"_, chosen = topk(sigmoid(scores) + float32(correction), {top})",
                "w = gather(sigmoid(scores), chosen) * 1.5",
            ]
    result = "experts(x, chosen, model_dtype(w))"
    if maybe(draw):
        parts["shared"] = "FeedForward"
        result += " + shared(x)"
    return block("Experts", parts, [*lines, f"return {result}"])


@st.composite
def specs(
    draw: DrawFn,
    head_dims: tuple[int, ...] = (4, 2, 6, 10, 16, 20),
    kinds: tuple[str, ...] = KINDS,
) -> SpecText:
    """A valid spec. ``Spec`` of it builds, whatever is drawn."""
    draft = draw(drafts(head_dims, kinds))
    kinds, feeds = draft.kinds, draft.feeds
    blocks = [causal_lm(draw), decoder(draw, draft), decoder_layer(draw, draft)]
    blocks += [attention(draw, draft), feed_forward(draw), experts(draw)]
    if "moe" not in feeds:
        blocks.pop()
        blocks[2] = blocks[2].replace("Experts if feed == 'moe' else FeedForward", "FeedForward")
    if "conv" in kinds:
        blocks.append(short_conv(draw))
    if "recurrent" in kinds:
        blocks.append(recurrence(draw))
    lines = [
        "spec: 1",
        "id: drawn/decoder",
        "hyperparameters:",
        *(f"  {k}: {v}" for k, v in draft.hyper.items()),
        "patterns:",
        f"  kinds: {{cycle: [{', '.join(kinds)}]}}",
        f"  feeds: {{cycle: [{', '.join(feeds)}]}}",
        "root: CausalLM",
        "blocks:",
        *blocks,
    ]
    count("random specs")
    return SpecText("\n".join(lines) + "\n")


@st.composite
def inputs(
    draw: DrawFn, vocab_size: int, least: int = 2, most: int = 10, right: bool = False
) -> Scenario:
    """``least`` to ``most`` tokens, rows with left padding of their own, cut anywhere, inside the padding too.

    With ``right`` the padding of a row lies behind its prompt, before the new tokens.
    """
    batch, length = draw(st.integers(1, 3)), draw(st.integers(least, most))
    padding = np.array([draw(st.integers(0, length - 1)) for _ in range(batch)])[:, None]
    cuts = draw(st.sets(st.integers(1, length - 1), max_size=3))
    edges = [0, *sorted(cuts), length]
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    ids = generator.integers(0, vocab_size, (batch, length), dtype=np.int64)
    slots = np.arange(length)
    mask = slots >= padding
    if right:
        end = draw(st.integers(1, length - 1))
        mask = (slots >= end) | (slots < np.maximum(end - padding, 1))
    splits = tuple(b - a for a, b in pairwise(edges))
    count("random inputs")
    return Scenario("drawn", ids, mask.astype(np.int64), splits)
