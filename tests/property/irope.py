"""Random Llama 4 text models: the shipped wiring with other strides, chunks, experts and switches."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from llamagen.verify.scenarios import Scenario
from tests.property.strategies import SpecText, inputs, maybe, pick

SPEC = """
spec: 1
id: drawn/irope
extends: llama/4/scout
hyperparameters:
{hyper}
patterns:
  layer_kinds: {{every: {global_stride}}}
  feeds: {{every: {moe_stride}}}
invariants: {{heads_fill_the_width: null}}
{blocks}"""

NO_TEMPERATURE = """  GlobalAttention:
    forward: |
      q = split_heads(q_proj(x), num_heads)
      k, v = cache(split_heads(k_proj(x), num_kv_heads), split_heads(v_proj(x), num_kv_heads))
      return o_proj(merge_heads(attention(q, k, v, mask='causal')))
"""

OTHER_LAYOUT = """  Experts:
    parts:
      experts: experts(num_experts, hidden_size, expert_intermediate_size, layout='out_in', scale='input')
"""

NO_SHARED_EXPERT = """    forward: |
      score, chosen = topk(router(x), num_experts_per_token)
      return experts(x, chosen, model_dtype(sigmoid(float32(score))))
"""


@dataclass(frozen=True, slots=True)
class Irope:
    text: SpecText
    chunk: int
    vocab_size: int


@st.composite
def irope_specs(draw: DrawFn) -> Irope:
    """Strides of layers without positions and of experts, chunks, top-k from one to all, every switch on and off."""
    kv_heads, experts = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    chunk, vocab_size = draw(st.integers(1, 5)), draw(st.integers(13, 40))
    hyper = {
        "vocab_size": vocab_size,
        "hidden_size": pick(draw, 16, 12, 20),
        "num_layers": draw(st.integers(2, 5)),
        "num_heads": kv_heads * draw(st.integers(1, 3)),
        "num_kv_heads": kv_heads,
        "head_dim": pick(draw, 4, 2, 8),
        "rope": "{theta: 50.0, original_max_positions: 64}",
        "qk_norm": pick(draw, "true", "false"),
        "dense_intermediate_size": draw(st.integers(4, 12)),
        "attention_chunk_size": chunk,
        "num_experts": experts,
        "num_experts_per_token": draw(st.integers(1, experts)),
        "expert_intermediate_size": draw(st.integers(4, 12)),
        "shared_expert_intermediate_size": draw(st.integers(4, 12)),
        "attention_temperature_scale": pick(draw, 0.1, 0.5),
        "attention_temperature_floor": draw(st.integers(1, 4)),
    }
    blocks = NO_TEMPERATURE if maybe(draw) else ""
    layout, alone = maybe(draw), maybe(draw)
    if layout:
        blocks += OTHER_LAYOUT
    if alone:
        part = "      shared_expert: none\n" if layout else "    parts: {shared_expert: none}\n"
        blocks += ("" if layout else "  Experts:\n") + part + NO_SHARED_EXPERT
    text = SPEC.format(
        hyper="\n".join(f"  {k}: {v}" for k, v in hyper.items()),
        global_stride=draw(st.integers(1, 5)),
        moe_stride=draw(st.integers(1, 3)),
        blocks=f"blocks:\n{blocks}" if blocks else "",
    )
    return Irope(SpecText(text.lstrip()), chunk, vocab_size)


def over_chunks(model: Irope) -> st.SearchStrategy[Scenario]:
    """Inputs of more than one chunk and up to three, whatever the padding leaves of them."""
    return inputs(model.vocab_size, model.chunk + 1, 3 * model.chunk + 1)
