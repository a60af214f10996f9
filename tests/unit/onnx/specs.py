"""Small models as YAML: together they use every kind of layer that the op table knows."""

from __future__ import annotations

BASE = """\
spec: 1
id: test/{name}
hyperparameters:
  vocab_size: 61
  hidden_size: 32
  num_layers: 4
  num_heads: 4
  num_kv_heads: 2
  head_dim: 8
  intermediate_size: 48
  norm_eps: 1.0e-5
{hyper}
root: CausalLM
blocks:
  CausalLM:
    inputs: [input_ids]
    parts:
      model: Decoder
      lm_head: "{head}"
    forward: |
      return {logits}
  Decoder:
    inputs: [input_ids]
    parts:
      embed_tokens: embedding(vocab_size, hidden_size)
      layers: stack(num_layers, {layer})
      norm: rms_norm(hidden_size, eps=norm_eps)
    forward: |
      return norm(layers(embed_tokens(input_ids){embed}))
{blocks}
"""

SWIGLU = """\
  SwiGLU:
    parts:
      gate_proj: linear(hidden_size, intermediate_size)
      up_proj: linear(hidden_size, intermediate_size)
      down_proj: linear(intermediate_size, hidden_size)
    forward: |
      return down_proj(silu(gate_proj(x)) * up_proj(x))
"""

PRE_NORM = """\
  DecoderLayer:
    options: {kind: far}
    parts:
      input_layernorm: rms_norm(hidden_size, eps=norm_eps)
      self_attn: Attention(kind=kind)
      post_attention_layernorm: rms_norm(hidden_size, eps=norm_eps)
      mlp: MLP
    forward: |
      h = x + self_attn(input_layernorm(x))
      return h + mlp(post_attention_layernorm(h))
"""

GQA = """\
  Attention:
    options: {kind: far}
    parts:
      q_proj: linear(hidden_size, num_heads * head_dim)
      k_proj: linear(hidden_size, num_kv_heads * head_dim)
      v_proj: linear(hidden_size, num_kv_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      k = rope(split_heads(k_proj(x), num_kv_heads), positions, rope)
      v = split_heads(v_proj(x), num_kv_heads)
      k, v = cache(k, v)
      return o_proj(merge_heads(attention(q, k, v, mask='causal', window=3 if kind == 'near' else none)))
"""


def spec(
    name: str,
    blocks: str,
    hyper: str = "  rope: {kind: default, theta: 10000.0}",
    head: str = "linear(hidden_size, vocab_size)",
    layer: str = "DecoderLayer()",
    embed: str = "",
    logits: str = "lm_head(model(input_ids))",
) -> str:
    return BASE.format(
        name=name, blocks=blocks, hyper=hyper, head=head, layer=layer, embed=embed, logits=logits
    )


LLAMA = spec(
    "llama",
    PRE_NORM + GQA + SWIGLU.replace("SwiGLU", "MLP"),
    head="linear(hidden_size, vocab_size, tied_to='model.embed_tokens.weight')",
    hyper="  rope: {kind: llama3, theta: 500000.0, factor: 8.0, low_freq_factor: 1.0, "
    "high_freq_factor: 4.0, original_max_positions: 16}",
)

WINDOWS = spec(
    "windows",
    PRE_NORM + GQA + SWIGLU.replace("SwiGLU", "MLP"),
    layer="DecoderLayer(kind=reach[layer])",
    hyper="  rope: {kind: default, theta: 10000.0}\npatterns:\n  reach: {cycle: [near, far]}",
)

GATED = spec(
    "gated",
    """\
  DecoderLayer:
    parts:
      self_attn: Attention
      attention_norm: layer_norm(hidden_size, eps=norm_eps)
      mlp: MLP
      mlp_norm: rms_norm(hidden_size, eps=norm_eps, offset=1.0, cast='after_weight')
      gate: parameter([1])
    forward: |
      h = x + attention_norm(self_attn(x)) * sigmoid(gate)
      return h + mlp_norm(mlp(h)) * 0.5
  Attention:
    parts:
      qkv_proj: linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias=true)
      q_norm: rms_norm(head_dim, eps=norm_eps)
      k_norm: rms_norm(head_dim, eps=norm_eps)
      o_proj: linear(num_heads * head_dim, hidden_size, bias=true)
    forward: |
      q, k, v = split(qkv_proj(x), [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim])
      q = rope(q_norm(split_heads(q, num_heads)), positions, rope)
      k = rope(k_norm(split_heads(k, num_kv_heads)), positions, rope)
      k, v = cache(k, split_heads(v, num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal', scale=0.4, softcap=2.0)))
  MLP:
    parts:
      fc1: linear(hidden_size, intermediate_size, bias=true)
      fc2: linear(intermediate_size, hidden_size, bias=true)
    forward: |
      return fc2(gelu(fc1(x), approximate='tanh'))
""",
    hyper="  rope: {kind: default, theta: 10000.0, layout: interleaved, partial: 0.5}",
    embed=" * 1.7",
    logits="softcap(lm_head(model(input_ids)), cap=5.0)",
)

MIXTRAL = spec(
    "mixtral",
    PRE_NORM
    + GQA
    + """\
  MLP:
    parts:
      router: linear(hidden_size, 5)
      experts: experts(5, hidden_size, intermediate_size)
    forward: |
      weights, chosen = topk(softmax(float32(router(x))), k=2)
      return experts(x, chosen, model_dtype(weights / sum(weights)))
""",
)

LLAMA4 = spec(
    "llama4",
    """\
  DecoderLayer:
    options: {kind: chunked}
    parts:
      input_layernorm: rms_norm(hidden_size, eps=norm_eps)
      self_attn: "Chunked if kind == 'chunked' else Global"
      post_attention_layernorm: rms_norm(hidden_size, eps=norm_eps)
      feed_forward: MoE
    forward: |
      h = x + self_attn(input_layernorm(x))
      return h + feed_forward(post_attention_layernorm(h))
  Chunked:
    parts:
      q_proj: linear(hidden_size, num_heads * head_dim)
      k_proj: linear(hidden_size, num_kv_heads * head_dim)
      v_proj: linear(hidden_size, num_kv_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      q = rms_normalize(rope(split_heads(q_proj(x), num_heads), positions, rope), eps=norm_eps)
      k = rms_normalize(rope(split_heads(k_proj(x), num_kv_heads), positions, rope), eps=norm_eps)
      k, v = cache(k, split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal', chunk=4)))
  Global:
    parts:
      q_proj: linear(hidden_size, num_heads * head_dim)
      k_proj: linear(hidden_size, num_kv_heads * head_dim)
      v_proj: linear(hidden_size, num_kv_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      scaled = split_heads(q_proj(x), num_heads) * attention_temperature(positions, scale=0.1, floor_scale=4)
      k, v = cache(split_heads(k_proj(x), num_kv_heads), split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(model_dtype(scaled), k, v, mask='causal')))
  MoE:
    parts:
      router: linear(hidden_size, 5)
      experts: experts(5, hidden_size, intermediate_size, layout='in_out', scale='input')
      shared_expert: SwiGLU
    forward: |
      logits, chosen = topk(router(x), k=1)
      return shared_expert(x) + experts(x, chosen, sigmoid(logits))
"""
    + SWIGLU,
    layer="DecoderLayer(kind=kinds[layer])",
    hyper="  rope: {kind: default, theta: 10000.0, layout: interleaved}\npatterns:\n  kinds: {cycle: [chunked, whole]}",
)

SPECS = {"llama": LLAMA, "windows": WINDOWS, "gated": GATED, "mixtral": MIXTRAL, "llama4": LLAMA4}

TWICE = LLAMA.replace(
    "return h + mlp(post_attention_layernorm(h))",
    "a = mlp(x)\n      b = mlp(post_attention_layernorm(h))\n      return h + a + b",
).replace("test/llama", "test/twice")
"""A block called twice: its values have the same names at both places."""

SPECS["twice"] = TWICE
