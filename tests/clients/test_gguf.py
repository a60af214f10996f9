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
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions, open_session
from llamagen.runtime.session import Session
from llamagen.verify.stored import CodedPlace, stored_weights
from tests.real import smollm2

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at",
    "Once upon a time, in a village",
    "To bake bread, first",
    "The three branches of government are",
    "import numpy as np",
    "My favourite season is",
    "Photosynthesis is the process by which",
)
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is exported without options: weights stay packed."""
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
    """Of 200 tokens and more, none is another than with the decoded weights in float32.

    One text is generated; of the others each token is the likeliest one behind those before.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session, count = open_session(folder / "model.onnx", OpenOptions(threads=1)), 0
    names = {one.name: one.shape for one in session.get_inputs()}
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        with torch.no_grad():
            text = peer.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        (whole,), new = text.tolist(), text.shape[1] - len(ids)
        feeds: dict[str, Any] = {
            name: np.zeros([1, shape[1], 0, shape[3]], np.float32)
            for name, shape in names.items()
            if name.startswith("past_key_values")
        }
        feeds["input_ids"] = np.array([whole[:-1]])
        feeds["attention_mask"] = np.ones((1, len(whole) - 1), np.int64)
        feeds["position_ids"] = np.arange(len(whole) - 1)[None]
        (logits,) = session.run(["logits"], feeds)
        assert logits[0, -new:].argmax(axis=1).tolist() == whole[-new:], prompt
        if count == 0:
            found = [one.token for one in llamagen.run(folder, ids, max_new_tokens=NEW_TOKENS)]
            assert found == whole[-new:]
        count += new
    assert count >= 200


def test_packed_weights_are_those_of_transformers_bit_by_bit(folder: Path, peer: Any) -> None:
    """211 of them, in codes, scales and minimums of the file; q and k in the order of the Hub."""
    record = read_manifest(folder).quantization
    assert record is not None and not record.decoded
    assert {name: len(paths) for name, paths in record.kept.items()} == {"Q4_1": 210, "Q8_0": 1}
    stored, wanted = stored_weights(folder), peer.state_dict()
    for path in (path for paths in record.kept.values() for path in paths):
        assert isinstance(stored.places[path], CodedPlace)
        assert np.array_equal(stored.read(path), wanted[path].numpy()), path


def test_it_says_whose_it_is(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "apache-2.0" in readme
    assert "Meta" not in readme


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_right_export_is_no_alarm(folder: Path, seed: int) -> None:
    """Massive activations amplify rounding: products of codes are 1.0e-5 standard deviations from float64."""
    report = llamagen.verify_folder(folder, ("torch", "reference"), seed=seed)
    assert report.passed
    farthest = max(
        row.difference.rms_over_std
        for row in report.rows
        if row.difference and row.case == "prefill"
    )
    assert farthest > 1e-6, "what a random model shows"
