"""Decoders in sizes that vLLM's kernels for a CPU take, as folders for transformers."""

from __future__ import annotations

from pathlib import Path

import llamagen
from llamagen.emit.options import ExportOptions

SPECS = Path(__file__).parents[1] / "specs"
CODE = ExportOptions(format="transformers", custom_code=True)
_SIZES = (
    "vocab_size: 512, hidden_size: 128, num_layers: 4, num_heads: 4, num_kv_heads: 2, "
    "head_dim: 32, max_positions: 512"
)
_EXPERTS = "num_experts: 4, expert_intermediate_size: 64"
_DENSE = "intermediate_size: 256"
_MORE = {
    "gemma2": f"{_DENSE}, sliding_window: 8, embedding_multiplier: 11.313708498984761",
    "gemma3": f"{_DENSE}, sliding_window: 8, embedding_multiplier: 11.313708498984761",
    "mistral": f"{_DENSE}, sliding_window: 8",
    "mixtral": _EXPERTS,
    "qwen3_moe": f"{_DENSE}, {_EXPERTS}",
    "olmoe": _EXPERTS,
    "gpt2": "num_kv_heads: 4, intermediate_size: 256",
    "deepseek_v3": f"num_kv_heads: 4, {_DENSE}, {_EXPERTS}, shared_expert_intermediate_size: 64",
    "llama4_text": f"{_EXPERTS}, shared_expert_intermediate_size: 64, dense_intermediate_size: 256",
    "phi": f"{_DENSE}, rope: {{partial: 0.5}}",
    "glm4_moe": f"{_DENSE}, num_experts: 8, expert_intermediate_size: 64, rope: {{partial: 0.5}}",
    "persimmon": f"num_kv_heads: 4, {_DENSE}, rope: {{partial: 0.5}}",
    "bloom": f"num_kv_heads: 4, {_DENSE}",
    "gpt_oss": f"{_EXPERTS}, sliding_window: 8",
    "exaone4": f"{_DENSE}, sliding_window: 8",
}
"""What further hyperparameters are in a spec of its size."""
_CONSTANTS = {"deepseek_v3": "{nope_dim: 20, rope_dim: 12, v_dim: 32}"}
FAMILY = {
    "llama": ("llama/1/_base", f"{_DENSE}, norm_eps: 1.0e-6", ""),
    "llama3": ("llama/3.2/1b", _DENSE, "tokenizer: null\ninvariants: null\n"),
}
"""Of the family: what a spec of these sizes extends, its further hyperparameters, and what else it says."""


def spec_of(name: str, folder: Path) -> Path:
    """A spec of tests/specs, or one of ``FAMILY``, in these sizes; ``odd`` has them itself."""
    if name == "odd":
        return SPECS / "odd.yaml"
    path = folder / f"{name}.yaml"
    foreign = f"{SPECS}/foreign/{name}.yaml", _MORE.get(name, _DENSE), ""
    base, more, rest = FAMILY.get(name, foreign)
    sizes = ", ".join(
        one
        for one in _SIZES.split(", ")
        if one.partition(":")[0] not in more.replace(":", " ").split()
    )
    if name in _CONSTANTS:
        rest = f"constants: {_CONSTANTS[name]}\n"
    path.write_text(
        f"spec: 1\nid: resized/{name}\nextends: {base}\nhyperparameters: {{{sizes}, {more}}}\n{rest}",
        encoding="utf-8",
    )
    return path


def folder_of(name: str, place: Path, options: ExportOptions = CODE) -> Path:
    out = place / f"{name}-folder"
    llamagen.load(spec_of(name, place)).export(out, options, random_weights=1)
    return out
