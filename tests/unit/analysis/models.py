"""Specs written out for these tests, with the published numbers; they do not depend on the shipped family."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llamagen.analysis.targets import Model, built, resolved_of
from llamagen.ir.elaborate import build
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec

BLOCKS = """
root: CausalLM
blocks:
  CausalLM:
    inputs: [input_ids]
    parts:
      model: Decoder
      lm_head: "linear(hidden_size, vocab_size, tied_to='model.embed_tokens.weight' if tie_embeddings else none)"
    forward: |
      return lm_head(model(input_ids))
  Decoder:
    inputs: [input_ids]
    parts:
      embed_tokens: embedding(vocab_size, hidden_size)
      layers: stack(num_layers, DecoderLayer)
      norm: rms_norm(hidden_size, eps=norm_eps)
    forward: |
      return norm(layers(embed_tokens(input_ids)))
  DecoderLayer:
    parts:
      input_layernorm: rms_norm(hidden_size, eps=norm_eps)
      self_attn: Attention
      post_attention_layernorm: rms_norm(hidden_size, eps=norm_eps)
      mlp: SwiGLU
    forward: |
      h = x + self_attn(input_layernorm(x))
      return h + mlp(post_attention_layernorm(h))
  Attention:
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
      return o_proj(merge_heads(attention(q, k, v, mask='causal')))
  SwiGLU:
    parts:
      gate_proj: linear(hidden_size, intermediate_size)
      up_proj: linear(hidden_size, intermediate_size)
      down_proj: linear(intermediate_size, hidden_size)
    forward: |
      return down_proj(silu(gate_proj(x)) * up_proj(x))
"""

ROPE_10K = "{kind: default, theta: 10000.0}"
ROPE_500K = "{kind: default, theta: 500000.0}"
ROPE_31 = (
    "{kind: llama3, theta: 500000.0, factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0,"
    " original_max_positions: 8192}"
)


def text(
    spec_id: str,
    *,
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv: int,
    head_dim: int,
    ffn: int,
    positions: int,
    rope: str,
    eps: str = "1.0e-5",
    tied: bool = False,
    extra: str = "",
    blocks: str = BLOCKS,
) -> str:
    return f"""spec: 1
id: {spec_id}
hyperparameters:
  vocab_size: {vocab}
  hidden_size: {hidden}
  num_layers: {layers}
  num_heads: {heads}
  num_kv_heads: {kv}
  head_dim: {head_dim}
  intermediate_size: {ffn}
  max_positions: {positions}
  norm_eps: {eps}
  tie_embeddings: {str(tied).lower()}
  rope: {rope}
{extra}{blocks}"""


LLAMA_2_7B = text(
    "t/2/7b", vocab=32000, hidden=4096, layers=32, heads=32, kv=32, head_dim=128, ffn=11008,
    positions=4096, rope=ROPE_10K,
)  # fmt: skip
LLAMA_3_8B = text(
    "t/3/8b", vocab=128256, hidden=4096, layers=32, heads=32, kv=8, head_dim=128, ffn=14336,
    positions=8192, rope=ROPE_500K,
)  # fmt: skip
LLAMA_31_405B = text(
    "t/3.1/405b", vocab=128256, hidden=16384, layers=126, heads=128, kv=8, head_dim=128, ffn=53248,
    positions=131072, rope=ROPE_31,
)  # fmt: skip
LLAMA_32_1B = text(
    "t/3.2/1b", vocab=128256, hidden=2048, layers=16, heads=32, kv=8, head_dim=64, ffn=8192,
    positions=131072, rope=ROPE_31.replace("factor: 8.0", "factor: 32.0", 1), tied=True,
)  # fmt: skip

SCOUT = """spec: 1
id: t/4/scout
hyperparameters:
  vocab_size: 202048
  hidden_size: 5120
  num_layers: 48
  num_heads: 40
  num_kv_heads: 8
  head_dim: 128
  intermediate_size: 8192
  expert_intermediate_size: 8192
  num_experts: 16
  num_experts_per_token: 1
  attention_chunk_size: 8192
  max_positions: 10485760
  norm_eps: 1.0e-5
  tie_embeddings: false
  rope: {kind: default, theta: 500000.0, layout: interleaved}
patterns:
  layer_types: {every: 4, value: full, otherwise: chunked}
root: CausalLM
blocks:
  CausalLM:
    inputs: [input_ids]
    parts:
      model: Decoder
      lm_head: linear(hidden_size, vocab_size)
    forward: |
      return lm_head(model(input_ids))
  Decoder:
    inputs: [input_ids]
    parts:
      embed_tokens: embedding(vocab_size, hidden_size)
      layers: stack(num_layers, DecoderLayer(kind=layer_types[layer]))
      norm: rms_norm(hidden_size, eps=norm_eps)
    forward: |
      return norm(layers(embed_tokens(input_ids)))
  DecoderLayer:
    options: {kind: full}
    parts:
      input_layernorm: rms_norm(hidden_size, eps=norm_eps)
      self_attn: Attention(kind=kind)
      post_attention_layernorm: rms_norm(hidden_size, eps=norm_eps)
      feed_forward: MoE
    forward: |
      h = x + self_attn(input_layernorm(x))
      return h + feed_forward(post_attention_layernorm(h))
  Attention:
    options: {kind: full}
    parts:
      q_proj: linear(hidden_size, num_heads * head_dim)
      k_proj: linear(hidden_size, num_kv_heads * head_dim)
      v_proj: linear(hidden_size, num_kv_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      q = split_heads(q_proj(x), num_heads)
      k = split_heads(k_proj(x), num_kv_heads)
      q = rms_normalize(rope(q, positions, rope), eps=norm_eps) if kind == 'chunked' else q
      k = rms_normalize(rope(k, positions, rope), eps=norm_eps) if kind == 'chunked' else k
      v = split_heads(v_proj(x), num_kv_heads)
      k, v = cache(k, v)
      a = attention(q, k, v, mask='causal', chunk=attention_chunk_size if kind == 'chunked' else none)
      return o_proj(merge_heads(a))
  MoE:
    parts:
      router: linear(hidden_size, num_experts)
      experts: experts(num_experts, hidden_size, expert_intermediate_size, layout='in_out', scale='input')
      shared_expert: SwiGLU
    forward: |
      scores, chosen = topk(router(x), k=num_experts_per_token)
      return shared_expert(x) + experts(x, chosen, sigmoid(scores))
  SwiGLU:
    parts:
      gate_proj: linear(hidden_size, intermediate_size)
      up_proj: linear(hidden_size, intermediate_size)
      down_proj: linear(intermediate_size, hidden_size)
    forward: |
      return down_proj(silu(gate_proj(x)) * up_proj(x))
"""


@cache
def spec(source: str) -> ResolvedSpec:
    return Registry().load_text(source)


@cache
def graph(source: str) -> Graph:
    return build(spec(source))


TINY = text(
    "t/base", vocab=512, hidden=256, layers=2, heads=8, kv=8, head_dim=32, ffn=512, positions=2048,
    rope=ROPE_10K,
)  # fmt: skip


def overlaid(overlay: str, folder: Path, base: str = TINY, name: str = "case") -> ResolvedSpec:
    """``base`` with YAML laid over it, through ``extends``."""
    (folder / "base.yaml").write_text(base, encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(f"spec: 1\nid: t/{name}\nextends: base.yaml\n{overlay}\n", encoding="utf-8")
    return Registry().load(path)


def model_of(target: str) -> Model:
    """The model of an id, of a YAML file, or of ``REVISION:PATH``."""
    return built(resolved_of(target))
