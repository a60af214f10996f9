"""Llama 4 shrunk to milliseconds with every kind of layer, and transformers' model of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers import (
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Llama4VisionConfig,
)

from llamagen.spec.schema import EveryPattern, PatchVision, Spec
from tests.parity.models import RandomModel
from tests.parity.peers import common

MODELS = ("llama/4/scout", "llama/4/maverick", "llama/guard/4-12b")

SIZES = """
spec: 1
id: shrunk/model
extends: {target}
hyperparameters:
  vocab_size: 61
  hidden_size: 24
  num_layers: 8
  num_heads: 4
  num_kv_heads: 2
  head_dim: 8
  max_positions: 128
  dense_intermediate_size: 20
  rope: {{{rope}}}
{more}
  vision:
    hidden_size: 16
    num_layers: 2
    num_heads: 2
    intermediate_size: 64
    image_size: 24
    patch_size: 4
    adapter_input_size: 20
    adapter_output_size: 20
    output_size: 20
constants: {{patch_token: 60}}
tokenizer:
  bos_id: 53
  eos_ids: [54]
  pad_id: 55
  special_tokens:
    image: 56
    patch: 60
    image_start: 57
    image_end: 58
    tile_x_separator: 59
    tile_y_separator: 52
invariants: {{heads_fill_the_width: null}}
"""

EXPERTS = """
  num_experts: {experts}
  num_experts_per_token: {chosen}
  expert_intermediate_size: 12
  shared_expert_intermediate_size: 12
  attention_chunk_size: 5
  attention_temperature_floor: {floor}
"""


def shrunk(target: str, *, chosen: int = 1, floor: int = 3) -> RandomModel:
    """``target`` at eight layers, chunks of five tokens and temperature steps of ``floor``."""
    rope, more = "theta: 500.0", ""
    if "guard" not in target:
        more = EXPERTS.strip("\n").format(experts=4, chosen=chosen, floor=floor)
    if "scout" in target:
        rope += ", original_max_positions: 64"
    return RandomModel.of_text(SIZES.format(target=target, rope=rope, more=more).lstrip())


def text_config(spec: Spec) -> dict[str, object]:
    """Values of Llama4TextConfig."""
    h, count = spec.hyperparameters, spec.hyperparameters.num_layers
    assert count is not None
    kinds = [("chunked", "chunked", "chunked", "global")[i % 4] for i in range(count)]
    experts: Mapping[str, object] = {"moe_layers": [], "intermediate_size": 1}
    if h.num_experts is not None:
        feeds = spec.patterns["feeds"]
        assert isinstance(feeds, EveryPattern)
        experts = {
            "num_local_experts": h.num_experts,
            "num_experts_per_tok": h.num_experts_per_token,
            "interleave_moe_layer_step": feeds.every,
            "intermediate_size": h.expert_intermediate_size,
            "attn_scale": h.attention_temperature_scale,
            "floor_scale": h.attention_temperature_floor,
        }
    else:
        kinds = ["rotated"] * count
    types = ["chunked_attention" if k == "chunked" else "full_attention" for k in kinds]
    return {
        **common(spec),
        **experts,
        "intermediate_size_mlp": h.dense_intermediate_size,
        # transformers makes the mask of chunks whether a layer has them or not, and stops without a size.
        "attention_chunk_size": h.attention_chunk_size or 8192,
        "attn_temperature_tuning": h.attention_temperature_scale is not None,
        "use_qk_norm": h.qk_norm,
        "no_rope_layers": [int(k != "global") for k in kinds],
        "layer_types": types,
    }


def text_peer(model: RandomModel) -> torch.nn.Module:
    """Llama4ForCausalLM with the weights of ``model``. Call it inside ``everything_float64``."""
    config = Llama4TextConfig(**text_config(model.resolved.spec))
    config._attn_implementation = "eager"
    peer = Llama4ForCausalLM(config)
    prefix = "language_model."
    state = {
        path.removeprefix(prefix): torch.from_numpy(np.asarray(model.weight(path), np.float64))
        for path in model.parameters  # those of the text model
    }
    peer.load_state_dict(state, strict=True)
    peer.double().train(False)
    return peer


def whole_peer(model: RandomModel) -> torch.nn.Module:
    """Llama4ForConditionalGeneration with the weights of ``model``, by the same names."""
    spec = model.resolved.spec
    v = spec.hyperparameters.vision
    assert isinstance(v, PatchVision)
    vision = Llama4VisionConfig(
        hidden_size=v.hidden_size,
        num_hidden_layers=v.num_layers,
        num_attention_heads=v.num_heads,
        intermediate_size=v.intermediate_size,
        norm_eps=v.norm_eps,
        image_size=v.image_size,
        patch_size=v.patch_size,
        num_channels=v.num_channels,
        rope_theta=v.rope_theta,
        pixel_shuffle_ratio=v.pixel_shuffle_ratio,
        projector_input_dim=v.adapter_input_size,
        projector_output_dim=v.adapter_output_size,
        vision_output_dim=v.output_size,
    )
    text = Llama4TextConfig(**text_config(spec))
    token = spec.constants["patch_token"]
    config = Llama4Config(vision_config=vision, text_config=text, image_token_index=token)
    config._attn_implementation = "eager"
    peer = Llama4ForConditionalGeneration(config)
    state = {
        path: torch.from_numpy(np.asarray(model.weight(path), np.float64))
        for path in model.all_parameters
    }
    peer.load_state_dict(state, strict=True)
    peer.double().train(False)
    return peer
