"""Oracle for `llamagen verify --against`: the code that Meta published with Llama 4 (PyPI llama-models), text alone.

Each text is read in one call: decoding beyond one chunk is wrong there, as its mask knows nothing of the past. Its
temperature counts places in the text; here it gets the positions that are asked for.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fairscale.nn.model_parallel.initialize as parallel
import numpy as np
import torch
from llama_models.llama4 import model as theirs
from llama_models.llama4.args import ModelArgs, MoEArgs
from numpy.typing import NDArray
from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.field import given

PARTS = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "feed_forward.gate_proj": "feed_forward.w1",
    "feed_forward.down_proj": "feed_forward.w2",
    "feed_forward.up_proj": "feed_forward.w3",
    "feed_forward.shared_expert.gate_proj": "feed_forward.shared_expert.w1",
    "feed_forward.shared_expert.down_proj": "feed_forward.shared_expert.w2",
    "feed_forward.shared_expert.up_proj": "feed_forward.shared_expert.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
TEXT, POSITIONS = 64, 1 << 15
"""Tokens of a case at most, and where they may lie."""

model: Any = None
angles: torch.Tensor


def load(folder: str) -> None:
    global model, angles
    sizes = given.numbers(folder)
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel.initialize_model_parallel(1)
    rope, width = sizes["rope"], sizes["hidden_size"]
    scaled = rope["kind"] != "default"
    if scaled:
        assert (rope["low_freq_factor"], rope["original_max_positions"]) == (1, 8192), rope
    assert sizes["head_dim"] * sizes["num_heads"] == width
    stored = given.weights(folder)
    dense = [name for name in stored if name.endswith("feed_forward.gate_proj.weight")]
    # widths are multiples of a base: 2/3 of 4 times the model's, and 2/3 of ffn_exp times it
    wanted = (stored[dense[0]].shape[0] if dense else 8 * width // 3) + 0.5
    factor = min(wanted / (8 * width // 3), 1.0)
    experts = math.ceil(1.5 * math.ceil(sizes["expert_intermediate_size"] / factor))
    asked = ModelArgs(
        dim=width,
        n_layers=sizes["num_layers"],
        n_heads=sizes["num_heads"],
        n_kv_heads=sizes["num_kv_heads"],
        vocab_size=sizes["vocab_size"],
        multiple_of=1,
        ffn_dim_multiplier=factor,
        ffn_exp=(experts + 0.25) / width,
        norm_eps=sizes["norm_eps"],
        attention_chunk_size=sizes["attention_chunk_size"],
        rope_theta=rope["theta"],
        use_scaled_rope=scaled,
        rope_scaling_factor=rope["factor"] if scaled else None,
        rope_high_freq_factor=rope["high_freq_factor"] if scaled else None,
        nope_layer_interval=4,
        use_qk_norm=sizes["qk_norm"],
        attn_temperature_tuning=True,
        floor_scale=sizes["attention_temperature_floor"],
        attn_scale=sizes["attention_temperature_scale"],
        moe_args=MoEArgs(
            num_experts=sizes["num_experts"],
            auto_scale_F=False,
            top_k=sizes["num_experts_per_token"],
            interleave_moe_layer_step=2 if dense else 1,
        ),
        max_batch_size=1,
        max_seq_len=TEXT,
    )
    with patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
        model = theirs.Transformer(asked).eval()
    angles = theirs.precompute_freqs_cis(
        sizes["head_dim"],
        POSITIONS,
        asked.rope_theta,
        scaled,
        asked.rope_scaling_factor,
        asked.rope_high_freq_factor,
    )
    state: dict[str, torch.Tensor] = {}
    for path, value in stored.items():
        name = path.removeprefix("language_model.").removesuffix(".weight")
        if name in WHOLE:
            state[f"{WHOLE[name]}.weight"] = value
            continue
        _, _, layer, part = name.split(".", 3)
        feed = f"layers.{layer}.feed_forward"
        match part:
            case "feed_forward.experts.gate_up_proj":
                state[f"{feed}.experts.w1"], state[f"{feed}.experts.w3"] = value.chunk(2, dim=2)
            case "feed_forward.experts.down_proj":
                state[f"{feed}.experts.w2"] = value
            case "feed_forward.router":
                state[f"{feed}.router_DE"] = value.T
            case _:
                state[f"layers.{layer}.{PARTS[part]}.weight"] = value
    model.load_state_dict(state, strict=True)


def one_row(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """As `Transformer.forward` does, with the positions that are asked for."""
    length = len(ids)
    h = model.tok_embeddings(ids[None])
    everything = torch.triu(torch.full((length, length), float("-inf")), diagonal=1)
    chunk = theirs.create_chunked_attention_mask(length, model.args.attention_chunk_size, h.device)
    arange: Any = torch.arange

    def placed(*ends: int, **how: Any) -> torch.Tensor:
        """The only floats that are counted are the places of the temperature."""
        counted: torch.Tensor = arange(*ends, **how)
        return positions.float() if counted.is_floating_point() else counted

    with patch.object(torch, "arange", placed):
        for layer in model.layers:
            h = layer(h, 0, angles[positions], everything, chunk)
    found: torch.Tensor = model.output(model.norm(h))[0]
    return found


def logits(
    input_ids: given.Ids, position_ids: given.Ids, attention_mask: given.Ids, past: object
) -> NDArray[np.float64]:
    return given.by_rows(one_row, input_ids, position_ids, attention_mask)
