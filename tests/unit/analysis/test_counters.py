"""The same numbers from independent counters: torch's FLOP counter, ONNX cache inputs, transformers, on full sizes."""

from __future__ import annotations

from pathlib import Path
from sys import modules
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llamagen import api
from llamagen.analysis.numbers import cache_of, count_flops, count_parameters, flops_of
from llamagen.emit.onnx.emit import emit_onnx
from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.graph import MAIN, Graph
from tests.unit.analysis import models

CONTEXT = 5
REDUCED = Path(__file__).resolve().parents[2] / "specs" / "reduced"


def generated(graph: Graph) -> torch.nn.Module:
    """The generated module on the meta device: shapes only, so full sizes cost nothing."""
    made = load_module(emit_torch(graph))
    with torch.device("meta"):
        model = getattr(made, graph.root)(attention="eager")
    assert isinstance(model, torch.nn.Module)
    return model


@pytest.mark.parametrize("source", [models.LLAMA_2_7B, models.LLAMA_3_8B, models.LLAMA_32_1B])
def test_torch_flop_counter_and_parameters(source: str) -> None:
    graph = models.graph(source)
    model = generated(graph)
    assert sum(p.numel() for p in model.parameters()) == count_parameters({MAIN: graph}).total
    ids = torch.zeros((2, CONTEXT), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as prefill:
        cache = modules[type(model).__module__].KVCache()
        model(ids, cache=cache)
    report = flops_of(graph)
    assert prefill.get_total_flops() == count_flops(report, 2, CONTEXT, 0).total
    values = sum(slot.numel() for slot in cache.slots)
    assert values == 2 * cache_of(graph).allocated(CONTEXT, 1)
    with FlopCounterMode(display=False) as decode:
        model(ids[:, :1], cache=cache)
    assert decode.get_total_flops() == count_flops(report, 2, 1, CONTEXT).total


@pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick"])
def test_experts_and_chunks_cost_what_torch_counts(name: str) -> None:
    """Reduced: routing depends on values, so the module runs on the CPU; each token pays for its one expert."""
    model = api.load(REDUCED / f"{name}.yaml")
    graph = model.graph
    made = load_module(emit_torch(graph))
    module = getattr(made, graph.root_block.name)(attention="eager")
    report, counted = flops_of(graph), cache_of(graph)
    assert any(layer.chunk is not None for layer in counted.layers)
    ids = torch.arange(2 * 19).reshape(2, 19)
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        cache = made.KVCache()
        module(ids, cache=cache)
    assert prefill.get_total_flops() == count_flops(report, 2, 19, 0).total
    assert sum(slot.numel() for slot in cache.slots) == 2 * counted.allocated(19, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as decode:
        module(ids[:, :1], cache=cache)
    assert decode.get_total_flops() == count_flops(report, 2, 1, 19).total
    emitted = emit_onnx(graph).model.graph.inputs
    slots: list[Any] = [v.shape for v in emitted if str(v.name).startswith("past_key_values.")]
    values = sum(heads * size for _, heads, _, size in slots)
    assert values == counted.per_token(1)


def test_cache_inputs_of_the_onnx_graph() -> None:
    from llamagen.api import Model
    from llamagen.spec.registry import Registry

    text = Model(models.spec(models.LLAMA_3_8B), Registry()).onnx_text()
    folded = [
        line.split("[", 1)[1].rstrip("]").split(", ")
        for line in text.splitlines()
        if line.startswith("  input past_key_values.{i}.")
    ]
    assert "layers 0..31, i:" in text
    values = 32 * sum(int(heads) * int(dim) for _, heads, _, dim in folded)
    assert values == cache_of(models.graph(models.LLAMA_3_8B)).per_token(1)


def test_transformers_counts_the_same_parameters() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    total = count_parameters({MAIN: models.graph(models.LLAMA_3_8B)}).total
    assert sum(p.numel() for p in model.parameters()) == total
