"""Oracle for `llamagen verify --against`: the code that Meta published with Llama 3 (PyPI llama-models), for 1 to 3.1.

Its factor of scaled frequencies is 8 whatever the model says, so it is no authority for 3.2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fairscale.nn.model_parallel.initialize as parallel
import numpy as np
import torch
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer, precompute_freqs_cis
from numpy.typing import NDArray
from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.field import given

PARTS = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
TEXT, POSITIONS = 64, 1 << 17
"""Tokens of a case at most, and where they may lie."""

model: Any = None
angles: torch.Tensor


def load(folder: str) -> None:
    global model, angles
    sizes = given.numbers(folder)
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel.initialize_model_parallel(1)
    rope, width = sizes["rope"], sizes["intermediate_size"]
    if rope["kind"] != "default":
        fixed = (8.0, 1.0, 4.0, 8192)  # apply_scaling
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions")
        assert tuple(rope[name] for name in names) == fixed, rope
    asked = ModelArgs(
        dim=sizes["hidden_size"],
        n_layers=sizes["num_layers"],
        n_heads=sizes["num_heads"],
        n_kv_heads=sizes["num_kv_heads"],
        vocab_size=sizes["vocab_size"],
        multiple_of=width,
        ffn_dim_multiplier=3 * width / (8 * sizes["hidden_size"]),
        norm_eps=sizes["norm_eps"],
        rope_theta=rope["theta"],
        use_scaled_rope=rope["kind"] == "llama3",
        max_batch_size=1,
        max_seq_len=TEXT,
    )
    model = Transformer(asked).eval()
    angles = precompute_freqs_cis(
        asked.dim // asked.n_heads, POSITIONS, asked.rope_theta, asked.use_scaled_rope
    )
    heads = {"attention.wq": sizes["num_heads"], "attention.wk": sizes["num_kv_heads"]}
    state: dict[str, torch.Tensor] = {}
    stored = given.weights(folder)
    stored.setdefault("lm_head.weight", stored["model.embed_tokens.weight"])
    for path, value in stored.items():
        name = path.removesuffix(".weight")
        if name in WHOLE:
            state[f"{WHOLE[name]}.weight"] = value
            continue
        _, _, layer, part = name.split(".", 3)
        theirs = PARTS[part]
        if theirs in heads:  # they rotate neighbours, the Hub's weights rotate halves
            value = value.unflatten(0, (heads[theirs], 2, -1)).transpose(1, 2).flatten(0, 2)
        state[f"layers.{layer}.{theirs}.weight"] = value
    model.load_state_dict(state, strict=True)


def one_row(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """As `Transformer.forward` does, with the angles of the positions that are asked for."""
    h = model.tok_embeddings(ids[None])
    mask = torch.triu(torch.full((len(ids), len(ids)), float("-inf")), diagonal=1)
    for layer in model.layers:
        h = layer(h, 0, angles[positions], mask)
    return model.output(model.norm(h))[0]


def logits(
    input_ids: given.Ids, position_ids: given.Ids, attention_mask: given.Ids, past: object
) -> NDArray[np.float64]:
    return given.by_rows(one_row, input_ids, position_ids, attention_mask)
