"""Small models for the tests of the PyTorch backend: emitted, imported, with weights at unit scale."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from llamagen.emit.torch import emit_torch, load_module
from llamagen.ir.elaborate import build
from llamagen.ir.graph import Graph
from llamagen.spec.registry import Registry

torch.set_num_threads(1)

SPECS = Path(__file__).parents[2] / "specs"
LLAMA3 = (
    "{kind: llama3, theta: 500000.0, factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0,"
    " original_max_positions: 32}"
)
TIED = """
  CausalLM:
    parts:
      lm_head: linear(hidden_size, vocab_size, tied_to='model.embed_tokens.weight')
"""


@cache
def graph(spec_id: str) -> Graph:
    """The graph of a spec below tests/specs."""
    return build(Registry((SPECS,)).load(spec_id))


@cache
def changed(
    hyperparameters: str = "", blocks: str = "", more: str = "", base: str = "foreign/_decoder"
) -> Graph:
    """The graph of ``base`` with some hyperparameters (a flow mapping) and blocks (YAML) replaced."""
    text = f"spec: 1\nid: test/changed\nextends: {base}\nhyperparameters: {{{hyperparameters}}}\n{more}\n"
    text += f"blocks:\n{blocks}\n" if blocks else ""
    return build(Registry((SPECS,)).load_text(text))


def module(graph: Graph) -> ModuleType:
    return load_module(emit_torch(graph))


def scatter(model: Any, seed: int = 0) -> Any:
    """Random parameters that keep activations at unit scale; gains around 1, biases and gates live."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif parameter.ndim > 1 and "embed" not in name:
            values = values * parameter.shape[-1] ** -0.5
        parameter.data = values.to(parameter.dtype)
    return model.eval()


def llama(heads: str = "", **options: object) -> Any:
    """The plain decoder with random weights."""
    made = module(changed(heads)).CausalLM(**options)
    return scatter(made)


def cache_of(model: torch.nn.Module, capacity: int = 0) -> Any:
    """An empty cache of the class that stands in the model's file."""
    return sys.modules[type(model).__module__].KVCache(capacity)


def ids(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(batch: int, length: int, padding: int) -> torch.Tensor:
    """An attention mask with ``padding`` tokens missing at the left of the first row."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :padding] = 0
    return mask
