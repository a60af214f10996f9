"""Every generation trains, compiles with inductor in one graph, is exported and generates; its images too.

pytest -m slow tests/parity/test_generations.py
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.graph import MAIN
from llamagen.ir.joined import joined
from llamagen.spec.registry import Registry
from tests.parity import llama4, mllama
from tests.parity.models import RandomModel
from tests.parity.test_joined import cases, tensors
from tests.unit.torch.test_runs import CAPTURED

SIZES = """
spec: 1
id: shrunk/model
extends: {target}
hyperparameters:
  vocab_size: 96
  hidden_size: 64
  num_layers: 2
  num_heads: 8
  num_kv_heads: {kv}
  head_dim: 8
  intermediate_size: 160
invariants: {{{invariants}}}
"""
GUARDS = ("guard/1-7b", "guard/2-8b", "guard/3-1b", "guard/3-8b")
LLAMAS = ("1/7b", "2/7b", "2/70b", "code/7b", "code/34b", "3/8b", "3.1/8b", "3.2/1b")
TEXT = (*LLAMAS, "3.3/70b-instruct", *GUARDS)
IMAGES = ("3.2/11b-vision", "4/scout", "4/maverick", "guard/4-12b")


@cache
def model_of(name: str) -> RandomModel:
    target = f"llama/{name}"
    if name == "3.2/11b-vision":
        return mllama.shrunk(mllama.WIDE)
    if name in IMAGES:
        return llama4.shrunk(target)
    spec = Registry().load(target).spec
    kv = 8 if spec.hyperparameters.num_kv_heads == spec.hyperparameters.num_heads else 2
    widths = (n for n, text in spec.invariants.items() if "size" in text)
    invariants = ", ".join(f"{n}: null" for n in widths)
    return RandomModel.of_text(SIZES.format(target=target, kv=kv, invariants=invariants).lstrip())


def fresh(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The generated class, newly initialised, and a batch for it."""
    graphs = model_of(name).graphs
    module = load_module(emit_torch(joined(graphs) or graphs[MAIN]))
    torch.manual_seed(0)
    if name not in IMAGES:
        return module.CausalLM(), {"input_ids": torch.randint(0, 96, (2, 12))}
    case = cases(mllama.WIDE if "11b" in name else f"llama/{name}")[0]
    batch = {"input_ids": case.input_ids, **case.images, **case.beside}
    return module.VisionLanguageModel(), tensors(batch, torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [*TEXT, *IMAGES])
def test_a_generation_trains_compiles_exports_and_generates(name: str) -> None:
    model, batch = fresh(name)
    labels = batch["input_ids"].clone()
    labels[labels >= model_of(name).vocab_size] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.loss(labels=labels, **batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    model.eval()

    with torch.no_grad(), CAPTURED:
        expected = model(**batch)
        exported = torch.export.export(model, (), batch, strict=False).module()
        torch.testing.assert_close(exported(**batch), expected)
        ids = model.generate(**batch, max_new_tokens=6)
        assert ids.shape[1] == batch["input_ids"].shape[1] + 6
        torch._dynamo.reset()
        model.compile(fullgraph=True, dynamic=True)
        torch.testing.assert_close(model(**batch), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(**batch, max_new_tokens=6), ids)
