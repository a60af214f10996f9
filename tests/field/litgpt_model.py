"""Oracle for `llamagen verify --against`: litgpt, written by others from the papers, for every dense generation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt.config import Config
from litgpt.model import GPT
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.field import given

PARTS = {
    "self_attn.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
}
WHOLE = {
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
POSITIONS = 1 << 17

model: Any = None
angles: tuple[torch.Tensor, torch.Tensor]


def load(folder: str) -> None:
    global model, angles
    sizes = given.numbers(folder)
    rope = sizes["rope"]
    scaling = {
        "factor": rope.get("factor"),
        "low_freq_factor": rope.get("low_freq_factor"),
        "high_freq_factor": rope.get("high_freq_factor"),
        "original_max_seq_len": rope.get("original_max_positions"),
    }
    model = GPT(
        Config(
            name="reduced",
            block_size=POSITIONS,
            padded_vocab_size=sizes["vocab_size"],
            vocab_size=sizes["vocab_size"],
            n_layer=sizes["num_layers"],
            n_head=sizes["num_heads"],
            n_query_groups=sizes["num_kv_heads"],
            head_size=sizes["head_dim"],
            n_embd=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=sizes["norm_eps"],
            mlp_class_name="LLaMAMLP",
            rope_base=rope["theta"],
            rope_adjustments=None if rope["kind"] == "default" else scaling,
        )
    ).eval()
    stored = given.weights(folder)
    stored.setdefault("lm_head.weight", stored["model.embed_tokens.weight"])
    state: dict[str, torch.Tensor] = {}
    for path, value in stored.items():
        name = path.removesuffix(".weight")
        if name in WHOLE:
            state[f"{WHOLE[name]}.weight"] = value
            continue
        _, _, layer, part = name.split(".", 3)
        if part in PARTS:
            state[f"transformer.h.{layer}.{PARTS[part]}.weight"] = value
    for n in range(sizes["num_layers"]):
        parts = [stored[f"model.layers.{n}.self_attn.{one}_proj.weight"] for one in "qkv"]
        state[f"transformer.h.{n}.attn.qkv.weight"] = torch.cat(parts)
    model.load_state_dict(state, strict=True)
    angles = model.cos, model.sin


def one_row(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.cos, model.sin = (table[positions] for table in angles)
    found: torch.Tensor = model(ids[None])[0]
    return found


def logits(
    input_ids: given.Ids, position_ids: given.Ids, attention_mask: given.Ids, past: object
) -> NDArray[np.float64]:
    return given.by_rows(one_row, input_ids, position_ids, attention_mask)
