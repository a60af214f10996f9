"""Oracle for `llamagen verify --against`: llama.cpp, as it is built for the package xllamacpp, on a GGUF in float32.

Its server gives probabilities. A row of zeros beside the vocabulary has the logit 0, so that the logits are the
logarithms of the others' probabilities less that row's. It counts positions itself: a text with a gap is refused.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xllamacpp
from gguf import GGUFWriter
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.export_gguf import frequency_divisors, paired, renamed
from tests.field import given

WIDEST = 512
"""Tokens of a case at most."""

server: Any = None
vocabulary: int


def load(folder: str) -> None:
    global server, vocabulary
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        vocabulary = write(folder, file)
        asked = xllamacpp.CommonParams()
        asked.model.path = str(file)
        asked.n_ctx, asked.n_parallel, asked.warmup = WIDEST, 1, False
        asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # keys and values in float32 too; the flash kernel has 16 bits inside
        asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        server = xllamacpp.Server(asked)  # has read the file


def write(folder: str, file: Path) -> int:
    """The folder's weights as a GGUF; the number of its vocabulary."""
    sizes, stored = given.numbers(folder), given.weights(folder)
    rope, tokens = sizes["rope"], sizes["vocab_size"]
    stored.setdefault("lm_head.weight", stored["model.embed_tokens.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name] = torch.cat([stored[name], torch.zeros(1, sizes["hidden_size"])])
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(sizes["num_layers"])
    writer.add_context_length(WIDEST)
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_heads"])
    writer.add_head_count_kv(sizes["num_kv_heads"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_key_length(sizes["head_dim"])
    writer.add_value_length(sizes["head_dim"])
    writer.add_rope_freq_base(rope["theta"])
    writer.add_layer_norm_rms_eps(sizes["norm_eps"])
    writer.add_vocab_size(tokens + 1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{n}" for n in range(tokens + 1)])
    writer.add_token_scores([0.0] * (tokens + 1))
    writer.add_token_types([1] * (tokens + 1))
    scaling = {
        "rope_theta": rope["theta"],
        "rope_scaling": {
            "rope_type": rope["kind"],
            "factor": rope.get("factor"),
            "low_freq_factor": rope.get("low_freq_factor"),
            "high_freq_factor": rope.get("high_freq_factor"),
            "original_max_position_embeddings": rope.get("original_max_positions"),
        },
    }
    divisors = frequency_divisors(scaling, sizes["head_dim"])
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for name, value in stored.items():
        rows = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            rows = paired(rows, sizes["num_heads" if "q_proj" in name else "num_kv_heads"])
        writer.add_tensor(renamed(name), np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return int(tokens)


def one_row(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    # the server sees distances alone, and so does a rotation whose frequencies stay the same
    if not (positions.diff() == 1).all():
        raise ValueError(
            "llama.cpp's server counts positions itself: a text with a gap is not compared"
        )
    text = ids.tolist()
    return torch.stack([after(text[: n + 1]) for n in range(len(text))])


def after(text: list[int]) -> torch.Tensor:
    """Logits [V] of the token that follows."""
    question = {"prompt": text, "n_predict": 1, "n_probs": vocabulary + 1, "temperature": 0}
    answer = server.handle_completions(question)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    logarithms = torch.full((vocabulary + 1,), torch.nan, dtype=torch.float64)
    for one in token["top_logprobs"]:
        logarithms[one["id"]] = one["logprob"]
    assert not logarithms.isnan().any(), "not every token has a probability"
    return logarithms[:-1] - logarithms[-1]


def logits(
    input_ids: given.Ids, position_ids: given.Ids, attention_mask: given.Ids, past: object
) -> NDArray[np.float64]:
    return given.by_rows(one_row, input_ids, position_ids, attention_mask)
