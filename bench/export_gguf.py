"""A Llama checkpoint as GGUF for llama.cpp: python -m bench.export_gguf CHECKPOINT OUT f32|q8_0|q4_0.

Written from the format's description, because the converter of llama.cpp is not in its package.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ALL_F32 = 0
"""LLAMA_FTYPE_ALL_F32"""


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's name and values in float32, of bfloat16 safetensors."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "BF16", entry
            begin, end = entry["data_offsets"]
            raw = np.fromfile(file, np.uint16, (end - begin) // 2, offset=8 + size + begin)
            yield name, (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def renamed(name: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp rotates them: a head's halves interleaved."""
    out, width = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def frequency_divisors(config: dict[str, Any], head_dim: int) -> np.ndarray | None:
    """Llama 3.1's scaling of the rotary frequencies, as a divisor of each."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    found = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        smooth = (original / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def write(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = GGUFWriter(out, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(ALL_F32)
    divisors = frequency_divisors(config, head_dim)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors, raw_dtype=GGMLQuantizationType.F32)
    for name, values in tensors(folder):
        if "q_proj" in name or "k_proj" in name:
            values = paired(values, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(renamed(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    source, target, bits = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    target.mkdir(parents=True)
    full = target / ("model.gguf" if bits == "f32" else "f32.gguf")
    write(source, full)
    if bits != "f32":
        import llama_cpp  # the oracle of tests/field writes as this does, and has another build of it

        file_types = {
            "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
            "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        }
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = file_types[bits]
        options.pure = True  # the head in the same bits as the rest
        failed = llama_cpp.llama_model_quantize(
            str(full).encode(), str(target / "model.gguf").encode(), ctypes.byref(options)
        )
        full.unlink()
        if failed:
            raise SystemExit(f"llama.cpp could not quantise to {bits}")


if __name__ == "__main__":
    main()
