"""Hugging Face config.json and generation_config.json of a model whose wiring is that of LlamaForCausalLM.

The wiring is the one of spec/llama/1/_base.yaml, word for word; any other has no such config and gets no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeAlias, assert_never

from llamagen.spec.registry import Registry
from llamagen.spec.resolve import ResolvedSpec
from llamagen.spec.schema import (
    BlockDefinition,
    DefaultRope,
    LinearRope,
    Llama3Rope,
    Rope,
    Spec,
    YarnRope,
)

Json: TypeAlias = "None | bool | int | float | str | list[int] | list[str] | dict[str, Json]"

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
_WIRING = "llama/1/_base"


def config_files(resolved: ResolvedSpec) -> dict[str, str]:
    """File name -> text; empty for a model that transformers' Llama classes do not describe."""
    spec = resolved.spec
    if not is_llama(spec):
        return {}
    made = {CONFIG_FILE: _text(_config(spec))}
    special = _special(spec)
    if special:
        made[GENERATION_FILE] = _text({"_from_model_config": True, **special})
    return made


def is_llama(spec: Spec) -> bool:
    """Whether the blocks are those of the first LLaMA and every size is set."""
    base = Registry().load(_WIRING).spec
    values = spec.hyperparameters
    sizes = (values.vocab_size, values.hidden_size, values.num_layers, values.num_heads)
    more = (values.num_kv_heads, values.head_dim, values.intermediate_size, values.norm_eps)
    rope = values.rope
    return (
        spec.root == base.root
        and _wiring(spec.blocks) == _wiring(base.blocks)
        and None not in (*sizes, *more)
        and rope is not None
        and rope.layout == "half"
        and rope.partial == 1.0
    )


def _wiring(blocks: Mapping[str, BlockDefinition]) -> dict[str, BlockDefinition]:
    return {name: block.model_copy(update={"doc": None}) for name, block in blocks.items()}


def _config(spec: Spec) -> dict[str, Json]:
    values = spec.hyperparameters
    assert values.rope is not None
    config: dict[str, Json] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_special(spec),
        "head_dim": values.head_dim,
        "hidden_act": "silu",
        "hidden_size": values.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": values.intermediate_size,
        "max_position_embeddings": values.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": values.num_heads,
        "num_hidden_layers": values.num_layers,
        "num_key_value_heads": values.num_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": values.norm_eps,
        "rope_scaling": _scaling(values.rope),
        "rope_theta": values.rope.theta,
        "tie_word_embeddings": bool(values.tie_embeddings),
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": values.vocab_size,
    }
    if values.max_positions is None:
        del config["max_position_embeddings"]
    return config


def _special(spec: Spec) -> dict[str, Json]:
    tokens = spec.tokenizer
    if tokens is None:
        return {}
    ends = list(tokens.eos_ids)
    found: dict[str, Json] = {
        "bos_token_id": tokens.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
    }
    if tokens.pad_id is not None:
        found["pad_token_id"] = tokens.pad_id
    return found


def _scaling(rope: Rope) -> Json:
    match rope:
        case DefaultRope():
            return None
        case LinearRope(factor=factor):
            return {"factor": factor, "rope_type": "linear"}
        case Llama3Rope():
            return {
                "factor": rope.factor,
                "high_freq_factor": rope.high_freq_factor,
                "low_freq_factor": rope.low_freq_factor,
                "original_max_position_embeddings": rope.original_max_positions,
                "rope_type": "llama3",
            }
        case YarnRope():
            return {
                "attention_factor": rope.attention_factor,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_max_positions,
                "rope_type": "yarn",
            }
        case _:
            assert_never(rope)


def _text(config: Mapping[str, Json]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
