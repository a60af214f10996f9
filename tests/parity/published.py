"""Small models of transformers in the forms in which people publish weights, and whether an export equals them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from sentencepiece import SentencePieceTrainer
from transformers import LlamaConfig, LlamaForCausalLM, logging

from llamagen import api
from llamagen.emit.calibrate import built_in_text
from llamagen.emit.onnx.session import open_session
from llamagen.emit.options import DEFAULTS, ExportOptions
from llamagen.verify.limits import Tolerance, difference
from llamagen.verify.scenarios import scenarios
from llamagen.verify.witnesses import OnnxWitness, TransformersWitness

logging.set_verbosity_error()
logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "vocab_size": 120, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FLOAT32 = Tolerance(5e-5, 5e-6)


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """With random weights at unit scale: what is left out shows."""
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 2 and "embed" not in name:
            values /= weight.shape[1] ** 0.5
        elif name.endswith("norm.weight"):
            values = 1 + values / 10
        weight.data.copy_(values)
    model.tie_weights()
    return model


def exported(checkpoint: Path, out: Path, options: ExportOptions = DEFAULTS, **more: Any) -> Path:
    """As `export CHECKPOINT --out OUT` does it."""
    api.imported(checkpoint, more.get("adapter")).export(
        out, options, checkpoint=checkpoint, **more
    )
    return out


def require_equal(out: Path, model: torch.nn.Module, tolerance: Tolerance = FLOAT32) -> None:
    """A prompt, single tokens, padding and cuts, through ONNX Runtime and through transformers."""
    ours = OnnxWitness(open_session(out / "model.onnx"))
    theirs = TransformersWitness(model.eval())
    for case in scenarios(SIZES["vocab_size"], length=9, steps=4)[:5]:
        found = difference(case.logits(ours), case.logits(theirs))
        assert found.within(tolerance), (case.name, found)


def gguf_of(model: LlamaForCausalLM, path: Path) -> Path:
    """As llama.cpp's convert_hf_to_gguf.py writes it: rows of q and k, and their biases, in Meta's order."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    heads = {"q_proj": SIZES["num_attention_heads"], "k_proj": SIZES["num_key_value_heads"]}
    for name, tensor in model.state_dict().items():
        values = tensor.float()
        if (part := name.split(".")[-2]) in heads:
            halves = values.reshape(heads[part], 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        writer.add_tensor(stored, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pieces_of(folder: Path, kind: str = "bpe", normaliser: str = "identity") -> Path:
    """A tokenizer.model of SentencePiece, trained on our text."""
    (folder / "text").write_text(built_in_text())
    SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), model_type=kind, vocab_size=500,
        byte_fallback=True, normalization_rule_name=normaliser, remove_extra_whitespaces=False, split_digits=True,
        user_defined_symbols=["<FILL>"], minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"
