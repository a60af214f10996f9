"""Kinds of rope as transformers reads them from a config.json: at real head widths, and beyond the original context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM, logging

from llamagen.emit.config.checkpoint import import_path
from llamagen.emit.options import ExportOptions
from llamagen.verify.limits import difference
from llamagen.verify.scenarios import Scenario
from llamagen.verify.witnesses import OnnxWitness, TorchWitness, TransformersWitness
from tests.parity.models import RandomModel
from tests.parity.peers import everything_float64

logging.set_verbosity_error()

CONTEXT = 48
ORIGINAL = {"original_max_position_embeddings": 20}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}


def factors(head_dim: int) -> Mapping[str, list[float]]:
    pairs = range(head_dim // 2)
    return {"short_factor": [1 + i / 90 for i in pairs], "long_factor": [1 + i / 2 for i in pairs]}


SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "yarn": YARN,
    "yarn, as gpt-oss": {**YARN, "factor": 32.0, "truncate": False},
    "yarn, as DeepSeek": {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn, one weight": {**YARN, "mscale": 0.5},
    "yarn, stated": {**YARN, "attention_factor": 1.3, "beta_fast": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.7},
    "longrope": {"rope_type": "longrope", **factors(64), **ORIGINAL},
    "longrope, stated": {"rope_type": "longrope", **factors(64), **ORIGINAL, "factor": 1.5},
    "longrope, no original": {"rope_type": "longrope", **factors(64)},
    "longrope of 128": {"rope_type": "longrope", **factors(128), **ORIGINAL},
    "yarn of 128": {**YARN, "truncate": False},
    "dynamic of 128": {"rope_type": "dynamic", "factor": 2.0},
}


def config(name: str) -> dict[str, Any]:
    head_dim = 128 if name.endswith("128") else 64
    return {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 2 * head_dim,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": head_dim,
        "intermediate_size": 96,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": SCALINGS[name],
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@cache
def model_of(name: str, folder: Path) -> RandomModel:
    file = folder / "config.json"
    file.write_text(json.dumps(config(name)))
    return RandomModel(import_path(file).resolved)


def texts(name: str) -> tuple[Scenario, ...]:
    """Beyond the original context at once, call by call, and in single tokens across its end."""
    dynamic = name.startswith("dynamic")
    end, border = (2 * CONTEXT, CONTEXT) if dynamic else (CONTEXT, 20)
    ids = np.random.default_rng(3).integers(0, 100, (2, end))
    whole = np.ones_like(ids)
    near = border + 4
    return (
        Scenario("beyond", ids, whole, (end,)),
        Scenario("calls", ids, whole, (border - 8, end - border - 2, 10)),
        Scenario("steps", ids[:, :near], whole[:, :near], (border - 4, *(1,) * 8)),
    )


@pytest.mark.parametrize("name", SCALINGS)
def test_a_kind_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """The reference to rounding of float64; the backends to that of float32."""
    model = model_of(name, tmp_path)
    settings = {k: v for k, v in config(name).items() if k != "model_type"}
    with everything_float64():
        peer: Any = LlamaForCausalLM(AutoConfig.for_model("llama", **settings)).eval()
        weights = {
            p: torch.from_numpy(model.weight(p).astype(np.float64)) for p in model.parameters
        }
        peer.load_state_dict(weights, strict=True)
        theirs = [text.logits(TransformersWitness(peer)) for text in texts(name)]
    every = ExportOptions(logits="all"), ExportOptions(profile="ort-cpu", logits="all")
    backends = (
        TorchWitness.of_graph(model.graph, model.weight),
        *(OnnxWitness.of_graph(model.graph, model.weight, options) for options in every),
    )
    for text, logits in zip(texts(name), theirs, strict=True):
        reference = text.logits(model.reference)
        assert difference(reference, logits).max_over_std < 1e-11, text.name
        for backend in backends:
            assert difference(text.logits(backend), reference).max_over_std < 4e-5, text.name
