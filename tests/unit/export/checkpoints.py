"""One set of weights as the four kinds of checkpoints that people have, written by transformers and by torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, logging

from llamagen.api import Model, load
from llamagen.weights.random import random_values
from tests.parity.models import SPECS

logging.set_verbosity_error()
logging.disable_progress_bar()

State = Mapping[str, torch.Tensor]

DEFAULT_ROPE: dict[str, object] = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3_ROPE: dict[str, object] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Reduced:
    """A spec of tests/specs/reduced and, written by hand, the sizes that transformers gets."""

    name: str
    vocab: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    eps: float
    positions: int
    rope: Mapping[str, object]
    embedding_dim: int
    """Along which Meta's release splits the embedding over ranks: 1 until Llama 2, then 0."""
    _made: dict[str, LlamaForCausalLM] = field(default_factory=dict, repr=False, compare=False)

    @property
    def spec(self) -> Path:
        return SPECS / "reduced" / f"{self.name}.yaml"

    @cached_property
    def model(self) -> Model:
        return load(self.spec)

    @cached_property
    def peer(self) -> LlamaForCausalLM:
        """transformers' model with our random weights, rounded to bfloat16 as releases are."""
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=2,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            rms_norm_eps=self.eps,
            max_position_embeddings=self.positions,
            rope_parameters=dict(self.rope),
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        peer = LlamaForCausalLM(config)
        state = {
            path: torch.from_numpy(random_values(3, path, p.shape, p.kind)).bfloat16().float()
            for path, p in self.model.parameters.items()
        }
        peer.load_state_dict(state)
        return peer.eval()

    @property
    def state(self) -> State:
        return {name: tensor.bfloat16() for name, tensor in self.peer.state_dict().items()}


REDUCED = (
    Reduced("llama-1-7b", 96, 64, 4, 4, 256, 1e-6, 2048, DEFAULT_ROPE, 1),
    Reduced("llama-2-70b", 96, 128, 16, 2, 96, 1e-5, 4096, DEFAULT_ROPE, 1),
    Reduced("llama-3.1-8b", 128, 64, 8, 2, 96, 1e-5, 512, LLAMA3_ROPE, 0),
)


def hub_single(model: Reduced, folder: Path) -> None:
    model.peer.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()


def hub_sharded(model: Reduced, folder: Path) -> None:
    model.peer.save_pretrained(folder, max_shard_size="80KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def meta_single(model: Reduced, folder: Path) -> None:
    _save_meta(model, folder, 1)


def meta_double(model: Reduced, folder: Path) -> None:
    _save_meta(model, folder, 2)


ROUTES: Mapping[str, Callable[[Reduced, Path], None]] = {
    "hub_single": hub_single,
    "hub_sharded": hub_sharded,
    "meta_single": meta_single,
    "meta_double": meta_double,
}

_COLUMNS, _ROWS, _WHOLE = 0, 1, None  # of Meta's parallel layers, by the dimension that ranks split
_META: Mapping[str, tuple[str, int | None]] = {
    "self_attn.q_proj": ("attention.wq", _COLUMNS),
    "self_attn.k_proj": ("attention.wk", _COLUMNS),
    "self_attn.v_proj": ("attention.wv", _COLUMNS),
    "self_attn.o_proj": ("attention.wo", _ROWS),
    "mlp.gate_proj": ("feed_forward.w1", _COLUMNS),
    "mlp.up_proj": ("feed_forward.w3", _COLUMNS),
    "mlp.down_proj": ("feed_forward.w2", _ROWS),
    "input_layernorm": ("attention_norm", _WHOLE),
    "post_attention_layernorm": ("ffn_norm", _WHOLE),
}


def _save_meta(model: Reduced, folder: Path, ranks: int) -> None:
    folder.mkdir(parents=True)
    size = model.hidden // model.heads // 2
    shards: list[dict[str, torch.Tensor]] = [{"rope.freqs": torch.ones(size)} for _ in range(ranks)]
    for name, value in model.state.items():
        stored, dim = _meta_name(name, model.embedding_dim)
        if "q_proj" in name or "k_proj" in name:
            heads = model.heads if "q_proj" in name else model.kv_heads
            # half-split rows to interleaved ones: facts 4.10, read backwards
            value = value.view(heads, 2, size, -1).transpose(1, 2).reshape(value.shape)
        parts = [value] * ranks if dim is None else value.chunk(ranks, dim)
        for shard, part in zip(shards, parts, strict=True):
            shard[stored] = part.contiguous().clone()
    for rank, shard in enumerate(shards):
        file = folder / f"consolidated.{rank:02d}.pth"
        torch.save(shard, file)
        assert torch.load(file, weights_only=True).keys() == shard.keys()


def _meta_name(name: str, embedding_dim: int) -> tuple[str, int | None]:
    match name.removesuffix(".weight").split(".", 3):
        case ["model", "embed_tokens"]:
            return "tok_embeddings.weight", embedding_dim
        case ["model", "norm"]:
            return "norm.weight", _WHOLE
        case ["lm_head"]:
            return "output.weight", _COLUMNS
        case ["model", "layers", number, rest]:
            stored, dim = _META[rest]
            return f"layers.{number}.{stored}.weight", dim
        case _:
            raise AssertionError(name)
