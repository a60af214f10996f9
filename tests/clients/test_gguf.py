"""A model that was really trained, in a file that llama.cpp's people made: the same as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import llamagen
from llamagen import api
from llamagen.emit.onnx.session import OpenOptions
from llamagen.runtime.session import Session
from tests.real import smollm2

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at",
    "Once upon a time, in a village",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = smollm2()
    out = tmp_path_factory.mktemp("gguf") / "out"
    api.imported(path).export(out, checkpoint=path)
    return out


@pytest.fixture(scope="module")
def peer() -> torch.nn.Module:
    """transformers' own reader of GGUF: its decoding of the blocks, its order of the rows."""
    config = AutoConfig.from_pretrained(smollm2().parent, gguf_file=smollm2().name)
    model = LlamaForCausalLM(config).float()
    state = load_gguf_checkpoint(smollm2(), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model.eval()


def test_logits_are_those_of_transformers(folder: Path, peer: Any) -> None:
    """To 1e-5 of their spread, ten times what two orders of summation in float32 leave in 30 layers (measured 1e-6)."""
    generator = np.random.default_rng(7)
    for length in (1, 9, 40):
        ids = [int(i) for i in generator.integers(20, 49152, length)]
        found = Session(folder, OpenOptions(threads=2)).step(ids)
        with torch.no_grad():
            wanted = peer(torch.tensor([ids])).logits[0, -1].numpy()
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), length


def test_greedy_texts_are_those_of_transformers(folder: Path, peer: Any) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        with torch.no_grad():
            wanted = peer.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[
                0, len(ids) :
            ].tolist()
        found = [one.token for one in llamagen.run(folder, ids, max_new_tokens=24)]
        assert found == wanted, prompt


def test_it_says_whose_it_is(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "apache-2.0" in readme
    assert "Meta" not in readme
    assert llamagen.verify_folder(folder, ("reference",), steps=2).passed
