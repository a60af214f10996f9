"""The same decoders in transformers: configurations with the sizes of a spec, evaluated truly in float64.

transformers casts to float32 inside (norms, rotary tables, softmax, routers). ``everything_float64``
makes those casts go to float64, so that two right implementations agree to about 1e-14 and even an
epsilon that is off by one percent is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from llamagen.spec.schema import Hyperparameters, Spec
from llamagen.verify.scenarios import NOTHING, FloatArray, IntArray, Session, Values
from llamagen.verify.witnesses import Correction, TransformersSession, TransformersWitness


@contextmanager
def everything_float64() -> Iterator[None]:
    """In this block ``torch.float32``, ``torch.float`` and ``Tensor.float()`` mean float64."""
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved[:3]
        torch.set_default_dtype(saved[3])


def rope_parameters(h: Hyperparameters, which: str = "rope") -> dict[str, object]:
    rope = getattr(h, which)
    if rope is None:
        return {}
    names = {
        "theta": "rope_theta",
        "kind": "rope_type",
        "partial": "partial_rotary_factor",
        "original_max_positions": "original_max_position_embeddings",
    }
    plain = rope.model_dump(exclude={"layout"})
    return {names.get(k, k): v for k, v in plain.items()}


def common(spec: Spec) -> dict[str, object]:
    h = spec.hyperparameters
    values = {
        "vocab_size": h.vocab_size,
        "hidden_size": h.hidden_size,
        "num_hidden_layers": h.num_layers,
        "num_attention_heads": h.num_heads,
        "num_key_value_heads": h.num_kv_heads,
        "head_dim": h.head_dim,
        "intermediate_size": h.intermediate_size,
        "max_position_embeddings": h.max_positions,
        "rms_norm_eps": h.norm_eps,
        "rope_parameters": rope_parameters(h),
        "tie_word_embeddings": bool(h.tie_embeddings),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    optional = ("num_key_value_heads", "head_dim", "intermediate_size", "rope_parameters")
    return {k: v for k, v in values.items() if v or k not in optional}


def layer_types(spec: Spec) -> list[str]:
    """Full or sliding, as the peers whose layers differ call it."""
    h = spec.hyperparameters
    assert h.num_layers is not None
    every = {
        "olmo3": 4,
        "cohere2": 4,
        "gemma2": 2,
        "gemma3": 2,
        "gpt_oss_attention": 2,
        "gpt_oss": 2,
    }[spec.id.rsplit("/", 1)[-1]]
    kinds = ["sliding_attention"] * (every - 1) + ["full_attention"]
    return [kinds[i % every] for i in range(h.num_layers)]


@dataclass(frozen=True)
class Peer:
    """``extra`` are configuration values beyond ``common`` (``...``: not this one); ``rename`` maps a role path to the
    peer's name."""

    model_type: str
    extra: Callable[[Spec], dict[str, object]] = lambda spec: {}
    rename: Callable[[str], str] = lambda path: path
    transposed: tuple[str, ...] = ()
    """Last parts of the names whose matrices the peer stores as [in, out]."""
    counts_slots: bool = False
    """Takes left padding for tokens (facts 4.8): a padded batch cannot be compared with it."""
    states: bool = False
    """Padding behind a token gets into its states: rows with such padding are compared one by one, without it."""
    skips_gaps: bool = False
    """Its distances do not count padding between tokens, those of the op `attention` with `alibi` do."""
    zeroed: tuple[str, ...] = ()
    """Names of the peer with this in them are not in the spec and set to zero."""
    kept: tuple[str, ...] = ()
    """Ends of the names of what the peer stores and the spec states as numbers."""


def _gemma(spec: Spec) -> dict[str, object]:
    h = spec.hyperparameters
    assert h.attention_scale is not None
    return {
        "sliding_window": h.sliding_window,
        "layer_types": layer_types(spec),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(h.attention_scale**-2),
        "attn_logit_softcapping": h.attention_softcap,
        "final_logit_softcapping": h.logit_softcap,
    }


def _two_ropes(spec: Spec) -> dict[str, object]:
    h = spec.hyperparameters
    rope = {
        "full_attention": rope_parameters(h),
        "sliding_attention": rope_parameters(h, "rope_local"),
    }
    return {"layer_types": layer_types(spec), "rope_parameters": rope}


def _window(spec: Spec) -> dict[str, object]:
    return {"sliding_window": spec.hyperparameters.sliding_window}


def _layer_norm(spec: Spec) -> dict[str, object]:
    eps = spec.hyperparameters.norm_eps
    return {"layer_norm_eps": eps, "norm_epsilon": eps, "norm_eps": eps}


def _moe(spec: Spec) -> dict[str, object]:
    h = spec.hyperparameters
    return {
        "num_local_experts": h.num_experts,
        "num_experts": h.num_experts,
        "n_routed_experts": h.num_experts,
        "num_experts_per_tok": h.num_experts_per_token,
        "moe_intermediate_size": h.expert_intermediate_size,
        "norm_topk_prob": True,
    }


def _gpt(spec: Spec) -> dict[str, object]:
    h = spec.hyperparameters
    return {
        "n_embd": h.hidden_size,
        "n_layer": h.num_layers,
        "n_head": h.num_heads,
        "n_positions": h.max_positions,
        "layer_norm_epsilon": h.norm_eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": spec.id.endswith("gpt2"),
    }


def _llama4(spec: Spec) -> dict[str, object]:
    h = spec.hyperparameters
    return {
        **_moe(spec),
        "intermediate_size": h.expert_intermediate_size,
        "intermediate_size_mlp": h.dense_intermediate_size,
        "attention_chunk_size": h.attention_chunk_size,
        "attn_scale": h.attention_temperature_scale,
        "floor_scale": h.attention_temperature_floor,
        "attn_temperature_tuning": True,
        "use_qk_norm": True,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    }


def _deepseek(spec: Spec) -> dict[str, object]:
    c = spec.constants
    return {
        **_moe(spec),
        "q_lora_rank": c["q_lora_rank"],
        "kv_lora_rank": c["kv_lora_rank"],
        "qk_nope_head_dim": c["nope_dim"],
        "qk_rope_head_dim": c["rope_dim"],
        "head_dim": c["rope_dim"],
        "v_head_dim": c["v_dim"],
        "routed_scaling_factor": c["routed_scale"],
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "mlp_layer_types": ["dense", "sparse"],
        "rope_interleave": True,
    }


PEERS: Mapping[str, Peer] = {
    "mistral": Peer("mistral", _window),
    "qwen2": Peer("qwen2"),
    "qwen3": Peer("qwen3"),
    "olmo2": Peer("olmo2"),
    "olmo3": Peer("olmo3", lambda s: {**_window(s), **_two_ropes(s)}),
    "mixtral": Peer(
        "mixtral",
        lambda s: {
            **_moe(s),
            "intermediate_size": s.hyperparameters.expert_intermediate_size,
            "sliding_window": None,
        },
    ),
    "qwen3_moe": Peer("qwen3_moe", lambda s: {**_moe(s), "decoder_sparse_step": 2}),
    "phi3": Peer("phi3", _window),
    "gemma2": Peer("gemma2", _gemma),
    "gemma3": Peer("gemma3_text", lambda s: {**_gemma(s), **_two_ropes(s)}),
    "cohere": Peer(
        "cohere", lambda s: {**_layer_norm(s), "use_qk_norm": True, "logit_scale": 0.0625}
    ),
    "cohere2": Peer(
        "cohere2",
        lambda s: {
            **_layer_norm(s),
            **_window(s),
            "logit_scale": 0.0625,
            "layer_types": layer_types(s),
        },
    ),
    "gpt_neox": Peer(
        "gpt_neox",
        lambda s: {**_layer_norm(s), "hidden_act": "gelu"},
        lambda p: p.replace("embed_out", "lm_head"),
    ),
    "phi": Peer(
        "phi", lambda s: {**_layer_norm(s), "hidden_act": "gelu_new", "qk_layernorm": True}
    ),
    "granite": Peer(
        "granite",
        lambda s: {
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": s.hyperparameters.embedding_multiplier,
            "residual_multiplier": s.hyperparameters.residual_multiplier,
            "attention_multiplier": s.hyperparameters.attention_scale,
            "logits_scaling": s.hyperparameters.logits_scaling,
        },
    ),
    "stablelm": Peer(
        "stablelm",
        lambda s: {**_layer_norm(s), "use_qkv_bias": True, "use_parallel_residual": True},
    ),
    "starcoder2": Peer(
        "starcoder2",
        lambda s: {
            **_layer_norm(s),
            **_window(s),
            "use_bias": True,
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "nemotron": Peer("nemotron", lambda s: {**_layer_norm(s), "hidden_act": "relu2"}),
    "smollm3": Peer(
        "smollm3", lambda s: {"no_rope_layers": [1, 1, 1, 0], "use_sliding_window": False}
    ),
    "glm4": Peer("glm4", lambda s: {"attention_bias": True}),
    "olmoe": Peer(
        "olmoe",
        lambda s: {
            **_moe(s),
            "intermediate_size": s.hyperparameters.expert_intermediate_size,
            "norm_topk_prob": False,
            "clip_qkv": 1.2,
        },
    ),
    "hunyuan": Peer("hunyuan_v1_dense"),
    "gptj": Peer(
        "gptj",
        lambda s: {
            **_gpt(s),
            "rotary_dim": 4,
            "n_inner": s.hyperparameters.intermediate_size,
        },
    ),
    "gpt2": Peer(
        "gpt2",
        lambda s: {**_gpt(s), "n_inner": s.hyperparameters.intermediate_size},
        transposed=("c_attn", "c_proj", "c_fc"),
    ),
    "mpt": Peer(
        "mpt",
        lambda s: {
            "d_model": s.hyperparameters.hidden_size,
            "n_heads": s.hyperparameters.num_heads,
            "n_layers": s.hyperparameters.num_layers,
            "max_seq_len": s.hyperparameters.max_positions,
            "layer_norm_epsilon": s.hyperparameters.norm_eps,
            "attn_config": {"clip_qkv": 1.5, "alibi": True},
            "tie_word_embeddings": True,
        },
        lambda p: p.replace("wqkv", "Wqkv"),
    ),
    "gpt_oss_attention": Peer(
        "gpt_oss",
        lambda s: {
            **_window(s),
            "attention_bias": True,
            "layer_types": layer_types(s),
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size": 8,
        },
        zeroed=(".mlp.", "post_attention_layernorm"),
    ),
    "persimmon": Peer(
        "persimmon", lambda s: {**_layer_norm(s), "qk_layernorm": True, "hidden_act": "relu2"}
    ),
    "falcon": Peer(
        "falcon",
        lambda s: {
            "layer_norm_epsilon": s.hyperparameters.norm_eps,
            "num_kv_heads": s.hyperparameters.num_kv_heads,
            "ffn_hidden_size": s.hyperparameters.intermediate_size,
            "new_decoder_architecture": True,
            "parallel_attn": True,
            "bias": False,
            "alibi": False,
            "head_dim": ...,
            "tie_word_embeddings": True,
        },
    ),
    "exaone4": Peer("exaone4", lambda s: {**_window(s), "sliding_window_pattern": 4}),
    "diffllama": Peer("diffllama"),
    "apertus": Peer("apertus", kept=("act_fn.beta", "act_fn.eps")),
    "glm4_moe": Peer(
        "glm4_moe",
        lambda s: {
            **_moe(s),
            "attention_bias": True,
            "use_qk_norm": True,
            "routed_scaling_factor": s.constants["routed_scale"],
            "n_group": s.constants["expert_groups"],
            "topk_group": s.constants["kept_groups"],
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
        lambda p: p.replace("mlp.e_score", "mlp.gate.e_score"),
    ),
    "bloom": Peer(
        "bloom",
        lambda s: {
            "n_layer": s.hyperparameters.num_layers,
            "n_head": s.hyperparameters.num_heads,
            "layer_norm_epsilon": s.hyperparameters.norm_eps,
            "tie_word_embeddings": True,
        },
        skips_gaps=True,
    ),
    "gpt_oss": Peer(
        "gpt_oss",
        lambda s: {
            **_window(s),
            **_moe(s),
            "attention_bias": True,
            "layer_types": layer_types(s),
            "intermediate_size": s.hyperparameters.expert_intermediate_size,
        },
    ),
    "llama4_text": Peer("llama4_text", _llama4, counts_slots=True),
    "qwen3_next": Peer(
        "qwen3_next",
        lambda s: {
            **_moe(s),
            "intermediate_size": 8,
            "shared_expert_intermediate_size": s.hyperparameters.shared_expert_intermediate_size,
            "linear_conv_kernel_dim": s.constants["conv_kernel"],
            "linear_num_key_heads": s.constants["key_heads"],
            "linear_num_value_heads": s.constants["value_heads"],
            "linear_key_head_dim": s.constants["key_dim"],
            "linear_value_head_dim": s.constants["value_dim"],
        },
        states=True,
    ),
    "lfm2": Peer(
        "lfm2",
        lambda s: {
            **_layer_norm(s),
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "conv_L_cache": s.constants["conv_kernel"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
        states=True,
    ),
    "deepseek_v3": Peer(
        "deepseek_v3", _deepseek, lambda p: p.replace("mlp.e_score", "mlp.gate.e_score")
    ),
}


def peer_model(
    spec: Spec, weights: Callable[[str], np.ndarray], paths: list[str], name: str = ""
) -> Any:
    """The peer (of that name, or for the spec's id) with our weights, all names accounted for.

    Call it inside ``everything_float64``."""
    peer = Peer(name) if name else PEERS[spec.id.rsplit("/", 1)[-1]]
    stated = {**common(spec), **peer.extra(spec)}
    values = {key: value for key, value in stated.items() if value is not ...}
    config = AutoConfig.for_model(peer.model_type, **values)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float64
    )
    state = {peer.rename(p): torch.from_numpy(np.asarray(weights(p), np.float64)) for p in paths}
    for name, tensor in state.items():
        if name.removesuffix(".weight").endswith(peer.transposed or ("?",)) and tensor.ndim == 2:
            state[name] = tensor.T.contiguous()
    for name, tensor in model.state_dict().items():
        if any(part in name for part in peer.zeroed):
            state[name] = torch.zeros_like(tensor)
        if name.endswith(peer.kept or ("?",)):
            state[name] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert not unexpected, unexpected
    assert set(missing) <= tied, missing
    return model.double().eval()


@dataclass(frozen=True)
class PeerWitness:
    model: torch.nn.Module
    name: str = "transformers"
    corrections: tuple[Correction, ...] = ()

    def start(self, images: Values = NOTHING, past: Values = NOTHING) -> Session:
        wide = {n: _widened(v) for n, v in images.items()}
        witness = TransformersWitness(self.model, corrections=self.corrections)
        return _PeerSession(witness, wide)


def _widened(value: NDArray[np.generic]) -> NDArray[np.generic]:
    return value if np.issubdtype(value.dtype, np.integer) else value.astype(np.float64)


class _PeerSession(TransformersSession):
    def step(
        self, input_ids: IntArray, mask: IntArray, positions: IntArray, beside: Values = NOTHING
    ) -> FloatArray:
        with everything_float64():
            return super().step(input_ids, mask, positions, beside)
