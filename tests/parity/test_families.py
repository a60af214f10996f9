"""Models of other families, small: a folder that transformers saved, exported, gives what transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity.published import SIZES, exported, require_equal

GEMMA_3: dict[str, Any] = {
    "num_hidden_layers": 7, "sliding_window": 4, "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "num_hidden_layers": 3, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 10, "head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}  # fmt: skip
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma/3/1b-it": ("gemma3_text", GEMMA_3),
    "gemma/3/4b-it": (
        "gemma3_text",
        {**GEMMA_3, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }},
    ),
    "deepseek/3/671b": (
        "deepseek_v3",
        {**DEEPSEEK, "max_position_embeddings": 256, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 64,
            "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
        }},
    ),
    "gpt-oss/1/20b": (
        "gpt_oss",
        {"num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4,
         "swiglu_limit": 0.5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}  # fmt: skip


def model_of(kind: str, changes: dict[str, Any]) -> Any:
    """Random weights at unit scale: what is left out shows."""
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.state_dict().items():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1 and "embed" not in name:
            values /= weight.shape[-1] ** 0.5
        gain = "norm" in name and kind != "gemma3_text"  # which stores it less one
        weight.copy_(gain + values / 10 if weight.ndim == 1 else values)
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("spec_id", SMALL)
def test_a_small_one_is_what_transformers_computes(spec_id: str, tmp_path: Path) -> None:
    model = model_of(*SMALL[spec_id])
    model.save_pretrained(tmp_path / "checkpoint")
    require_equal(exported(tmp_path / "checkpoint", tmp_path / "folder"), model)


def test_the_text_part_of_a_model_with_images_is_read(tmp_path: Path) -> None:
    """Gemma 3 4B as the Hub has it: its decoder below `language_model.`, beside an encoder of images."""
    model = model_of(*SMALL["gemma/3/4b-it"])
    whole = tmp_path / "checkpoint"
    model.save_pretrained(whole)
    stored = {
        f"language_model.{name}": t for name, t in load_file(whole / "model.safetensors").items()
    }
    encoder = {
        "vision_tower.vision_model.post_layernorm.weight": torch.ones(8),
        "multi_modal_projector.mm_input_projection_weight": torch.ones(8, 64),
    }
    save_file({**stored, **encoder}, whole / "model.safetensors", {"format": "pt"})
    require_equal(exported(whole, tmp_path / "folder"), model)
