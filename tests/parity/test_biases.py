"""`attention_bias` and `mlp_bias` of LlamaConfig, which models converted from other families use."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from transformers import LlamaForCausalLM

from llamagen import api
from llamagen.emit.options import ExportOptions
from tests.parity.published import SIZES, exported, llama, require_equal

BIASES = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("attention", "mlp"), BIASES)
def test_the_export_has_the_biases_that_the_configuration_means(
    attention: bool, mlp: bool, tmp_path: Path
) -> None:
    model = llama(attention_bias=attention, mlp_bias=mlp)
    model.save_pretrained(tmp_path / "model")
    out = exported(tmp_path / "model", tmp_path / "out")
    require_equal(out, model)
    spec = api.load(out / "spec.yaml")
    biased = {path.split(".")[-2] for path in spec.parameters if path.endswith(".bias")}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"} if attention else set()
    assert biased == projections | ({"gate_proj", "up_proj", "down_proj"} if mlp else set())
    again = json.loads(spec.files()["config.json"])
    assert (again["attention_bias"], again["mlp_bias"]) == (attention, mlp)


def test_fused_graphs_add_them_too(tmp_path: Path) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    model.save_pretrained(tmp_path / "model")
    options = ExportOptions(profile="ort-cpu", logits="all")
    require_equal(exported(tmp_path / "model", tmp_path / "out", options), model)


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


def test_biases_of_a_gguf_are_those_of_its_projections(tmp_path: Path) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    out = exported(gguf_of(model, tmp_path / "model.gguf"), tmp_path / "out")
    require_equal(out, model)
