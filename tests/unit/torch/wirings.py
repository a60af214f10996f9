"""Wirings that no released model has, as changes of the plain decoder."""

from __future__ import annotations

from llamagen.ir.graph import Graph
from tests.unit.torch.models import changed

HEAD = "q = split_heads(q_proj(x), num_heads)\n      k = split_heads(k_proj(x), num_kv_heads)"
VALUE = "k, v = cache(k, split_heads(v_proj(x), num_kv_heads))"

TWO_RESULTS = """
  DecoderLayer:
    parts: {pair: Pair, mlp: none, post_attention_layernorm: none}
    forward: |
      a, b = pair(input_layernorm(x))
      return x + self_attn(a) - b / 2 + 1.5
  Pair:
    parts: {left: 'linear(hidden_size, hidden_size)', right: 'linear(hidden_size, hidden_size, bias=true)'}
    forward: |
      h = left(x)
      return tanh(h), clamp(right(h), low=-1.0, high=none)
"""
EXTRA_OPERAND = """
  Decoder:
    parts: {scale: 'rms_norm(hidden_size, eps=norm_eps)'}
    forward: |
      x = embed_tokens(input_ids)
      e = scale(x)
      x = layers(x, e)
      return norm(x + e)
  DecoderLayer:
    inputs: [x, e]
    forward: |
      h = x + self_attn(input_layernorm(x)) * sigmoid(e)
      return h + mlp(post_attention_layernorm(h))
"""
NO_STACK = """
  Decoder:
    parts: {layers: none, first: DecoderLayer, second: DecoderLayer}
    forward: |
      return norm(second(first(embed_tokens(input_ids))))
"""
TWO_STACKS = """
  Decoder:
    parts: {more: 'stack(1, DecoderLayer())'}
    forward: |
      return norm(more(layers(embed_tokens(input_ids))))
"""
LONG_HEAD = """
  CausalLM:
    parts: {lm_tail: Tail, early: 'linear(vocab_size, vocab_size)'}
    forward: |
      h = model(input_ids)
      y = lm_head(h)
      return y + softcap(early(silu(y)), 2.0) + lm_tail(h)
  Tail:
    parts: {proj: 'linear(hidden_size, vocab_size)'}
    forward: return proj(x)
"""
EMBEDDING_STEPS = """
  Decoder:
    parts: {places: 'embedding(max_positions, hidden_size)', first_norm: 'rms_norm(hidden_size, eps=norm_eps)'}
    forward: |
      e = embed_tokens(input_ids)
      h = first_norm(e + places(positions))
      return norm(layers(h * 2 + e))
"""
UNMASKED = f"""
  Attention:
    forward: |
      {HEAD}
      v = split_heads(v_proj(x), num_kv_heads)
      seen = attention(q, k, v, mask='none', scale=0.3)
      {VALUE}
      return o_proj(merge_heads(seen + attention(q, k, v, mask='causal')))
"""
MIXED_EXTRAS = f"""
  Decoder:
    parts: {{layers: 'stack(3, DecoderLayer(kind=kinds[layer]))'}}
  DecoderLayer:
    options: {{kind: plain}}
    parts: {{self_attn: 'Attention(kind=kind)'}}
  Attention:
    options: {{kind: plain}}
    forward: |
      {HEAD}
      {VALUE}
      cap = 1.5 if kind == 'cap' else none
      slopes = kind == 'alibi'
      a = attention(q, k, v, mask='causal', softcap=cap, alibi=slopes)
      return o_proj(merge_heads(a))
"""
LAYOUT = """
  FeedForward:
    forward: |
      g = permute(reshape(gate_proj(x), [B, S, 2, 10]), [0, 1, 3, 2])
      u = reshape(up_proj(x), [B, S, 10, 2])
      both = reshape(concat(g * u, exp(-square(u)), axis=-1), [B, S, 40])
      return down_proj(slice(both, 3, 23))
"""
SOFT = """
  FeedForward:
    forward: |
      g = float32(gate_proj(x))
      w = softmax(g, axis=-1) / sqrt(mean(square(g)) + 1)
      return down_proj(model_dtype(w * softplus(g)) * relu2(up_proj(x)))
"""

STREAMS = """
  Decoder:
    parts: {spread: 'linear(hidden_size, hidden_size)'}
    forward: |
      x = embed_tokens(input_ids)
      x, y = layers(x, spread(x))
      return norm(x + 0.5 * y)
  DecoderLayer:
    inputs: [x, y]
    forward: |
      h = x + self_attn(input_layernorm(y))
      return y - 0.25 * h, h + mlp(post_attention_layernorm(h))
"""
SHARED_KEYS = """
  Decoder:
    parts:
      first: DecoderLayer
      layers: "stack(num_layers, DecoderLayer() if own[layer] else Late())"
    forward: |
      x, k, v = first(embed_tokens(input_ids))
      x, _, _ = layers(x, k, v)
      return norm(x)
  DecoderLayer:
    forward: |
      h, k, v = self_attn(input_layernorm(x))
      h = x + h
      return h + mlp(post_attention_layernorm(h)), k, v
  Attention:
    forward: {return: "o_proj(merge_heads(attention(q, k, v, mask='causal'))), k, v"}
  Late:
    inputs: [x, k, v]
    parts: {norm: 'rms_norm(hidden_size, eps=norm_eps)', attn: Sharing}
    forward: |
      return x + attn(norm(x), k, v), k, v
  Sharing:
    inputs: [x, k, v]
    parts:
      q_proj: linear(hidden_size, num_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      q = rope(split_heads(q_proj(x), num_heads), positions, rope)
      return o_proj(merge_heads(attention(q, k, v, mask='causal')))
"""
OWN_WORK = """
  Decoder:
    parts: {layers: 'stack(num_layers, DecoderLayer(wide=layer == 1))'}
    forward: |
      x = embed_tokens(input_ids)
      return norm(layers(x, tanh(x), x))
  DecoderLayer:
    inputs: [x, e, f]
    options: {wide: false}
    parts: {extra: 'linear(hidden_size, hidden_size)'}
    forward: |
      more = extra(e) * f
      h = x + self_attn(input_layernorm(x))
      h = h + more if wide else h
      return h + mlp(post_attention_layernorm(h))
"""
WIRINGS = {
    "two values from layer to layer": ("num_layers: 3", STREAMS, ""),
    "keys of an earlier layer": (
        "num_layers: 4",
        SHARED_KEYS,
        "patterns: {own: {list: [false, true, false, false]}}",
    ),
    "what one kind of layer reads": ("num_layers: 3", OWN_WORK, ""),
    "two results": ("", TWO_RESULTS, ""),
    "an extra operand": ("", EXTRA_OPERAND, ""),
    "no stack": ("num_layers: null", NO_STACK, ""),
    "two stacks": ("", TWO_STACKS, ""),
    "a long head": ("", LONG_HEAD, ""),
    "steps before the layers": ("", EMBEDDING_STEPS, ""),
    "attention without a mask": ("", UNMASKED, ""),
    "extras of some layers": (
        "num_layers: 3",
        MIXED_EXTRAS,
        "patterns: {kinds: {list: [plain, cap, alibi]}}",
    ),
    "layout": ("", LAYOUT, ""),
    "soft": ("", SOFT, ""),
    "yarn": (
        "rope: {kind: yarn, theta: 10000.0, factor: 4.0, original_max_positions: 16, attention_factor: 1.14}",
        "",
        "",
    ),
}


def wiring(name: str) -> Graph:
    hyperparameters, blocks, more = WIRINGS[name]
    return changed(hyperparameters, blocks, more)
