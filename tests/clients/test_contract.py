"""Which graphs get a genai_config.json: those that the runtime then runs, and a reason for every other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

from llamagen import api
from llamagen.emit.clients.contract import Decoder, Unfit, contract_of
from llamagen.emit.clients.files import MAX_LENGTH
from llamagen.emit.clients.readme import ONE_ROW
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions
from llamagen.emit.options import ExportOptions
from llamagen.emit.supply import COMPANIONS
from llamagen.runtime.session import Session
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from tests.parity import llama4, mllama
from tests.parity.models import FOREIGN, SPECS

PROMPT = [5, 17, 2, 9, 33]
STEPS = 6
OUTSIDE = {"deepseek_v3", "lfm2", "qwen3_next"}
"""Keys wider than values, where the runtime knows one head size, or states beside them."""


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_decoder_nobody_thought_of_runs_or_is_refused(
    name: str, profile: str, tmp_path: Path
) -> None:
    model = api.load(SPECS / "foreign" / f"{name}.yaml")
    contract = contract_of(model.graph)
    model.export(tmp_path / "out", ExportOptions(profile=profile), random_weights=3)
    config = tmp_path / "out" / "genai_config.json"
    assert config.is_file() == isinstance(contract, Decoder)
    if isinstance(contract, Unfit):
        assert name in OUTSIDE
        readme = (tmp_path / "out" / "README.md").read_text()
        assert f"- onnxruntime-genai: the model {' and '.join(contract.reasons)}.\n" in readme
        return
    assert json.loads(config.read_text())["search"]["do_sample"] is False  # nobody said it samples
    session = Session(tmp_path / "out", OpenOptions(threads=1))
    expected, ids = [], PROMPT
    for _ in range(STEPS):
        ids = [int(np.argmax(session.step(ids)))]
        expected += ids
    loaded = og.Model(str(tmp_path / "out"))
    params = og.GeneratorParams(loaded)
    params.set_search_options(max_length=len(PROMPT) + STEPS)
    generator = og.Generator(loaded, params)
    generator.append_tokens(np.array([PROMPT], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = generator.get_sequence(0)[len(PROMPT) :].tolist()
    assert found == expected[: len(found)] and found


def test_released_text_models_are_within_the_contract() -> None:
    registry = Registry()
    for spec_id in registry.ids(abstract=False):
        resolved = registry.load(spec_id)
        if resolved.spec.root is None:
            continue
        contract = contract_of(api.load(spec_id).graph)
        words = resolved.spec.id.split("/")
        if words[0] == "llama" and words[1] in ("1", "2", "3", "3.1", "3.3", "code"):
            h = resolved.spec.hyperparameters
            assert isinstance(contract, Decoder), spec_id
            assert contract == Decoder(
                ("input_ids", "position_ids", "attention_mask"),
                h.num_layers or 0,
                h.num_heads or 0,
                h.num_kv_heads or 0,
                h.head_dim or 0,
                h.vocab_size or 0,
            )


def test_defaults_of_the_folder(tmp_path: Path) -> None:
    """What a user meets who sets nothing: a length that fits in memory, tokens and sampling of the checkpoint."""
    spec = tmp_path / "m.yaml"
    text = (SPECS / "reduced" / "llama-3.1-8b.yaml").read_text()
    spec.write_text(text.replace("vocab_size: 128", "vocab_size: 96").replace("512", "131072"))
    checkpoint = tmp_path / "checkpoint"
    api.random_checkpoint(spec, checkpoint)
    generation = {
        "bos_token_id": 90,
        "eos_token_id": [91, 92, 128001],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    (checkpoint / "LICENSE").write_text("terms")
    api.load(spec).export(tmp_path / "out", checkpoint=checkpoint)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["context_length"] == 131072
    told = config["model"]["decoder"]
    for side, word in (("inputs", "past"), ("outputs", "present")):
        names = [told[side][f"{word}_{kind}_names"].partition("%d")[2] for kind in ("key", "value")]
        assert names == [".key", ".value"]
    assert config["model"]["eos_token_id"] == [91, 92]  # 128001 cannot be produced
    assert (config["model"]["bos_token_id"], config["model"]["pad_token_id"]) == (90, 91)
    assert config["search"] == {
        "max_length": MAX_LENGTH,
        "past_present_share_buffer": False,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    assert og.Model(str(tmp_path / "out")).type == "llama"
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
@pytest.mark.parametrize("images", ["llama/4/scout", "llama/3.2/11b-vision"])
def test_the_text_of_a_model_with_images(images: str, profile: str, tmp_path: Path) -> None:
    """Chunked layers without rotation, and layers that images skip: within the contract while there are no images."""
    model = llama4.shrunk(images) if "4" in images.split("/")[1] else mllama.shrunk(mllama.WIDE)
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(resolved_text(model.resolved), encoding="utf-8")
    api.load(spec).export(out, ExportOptions(profile=profile), random_weights=3)
    assert "`llamagen verify` runs all graphs together" in (out / "README.md").read_text()
    expected = [piece.token for piece in api.run(out, PROMPT, max_new_tokens=16)]
    loaded = og.Model(str(out))
    params = og.GeneratorParams(loaded)
    params.set_search_options(max_length=len(PROMPT) + 16)
    generator = og.Generator(loaded, params)
    generator.append_tokens(np.array([PROMPT], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = generator.get_sequence(0)[len(PROMPT) :].tolist()
    assert found[: len(expected)] == expected
    assert len(found) - len(expected) <= 1  # the end token
    assert len(expected) > 10  # beyond two chunks


@pytest.mark.parametrize(
    ("profile", "dtype", "runtime", "context", "needs"),
    [
        ("portable", "float32", None, "512 tokens", None),
        ("ort-cpu", "float32", None, "50 tokens (the model has 512)", "1.32"),
        ("ort-cpu", "float32", "1.27", "50 tokens (the model has 512)", "1.27"),
        ("ort-cuda", "float16", None, "50 tokens (the model has 512)", "1.31"),
        ("ort-cuda", "bfloat16", "1.32", "50 tokens (the model has 512)", "1.32"),
    ],
)
def test_the_readme_says_the_context_and_the_runtime(
    profile: str, dtype: str, runtime: str | None, context: str, needs: str | None, tmp_path: Path
) -> None:
    spec, out = tmp_path / "m.yaml", tmp_path / "out"
    text = (SPECS / "reduced" / "llama-3.1-8b.yaml").read_text()
    spec.write_text(
        text.replace("num_heads: 8", "num_heads: 4").replace("head_dim: 8", "head_dim: 16")
    )
    api.load(spec).export(
        out,
        ExportOptions(profile=profile, dtype=dtype, runtime=runtime, max_context=50),
        random_weights=3,
    )
    readme = (out / "README.md").read_text()
    assert f"| context | {context} |" in readme
    since = "" if needs is None else f"; needs onnxruntime {needs} or later"
    assert f"| operators | profile {profile}, opset 24{since} |" in readme
    one_row = needs in ("1.27", "1.31")
    assert (f"| calls of several rows | {ONE_ROW} |" in readme) == one_row
    assert read_manifest(out).batched_chunks == (not one_row)
    config = json.loads((out / "genai_config.json").read_text())
    assert context.startswith(f"{config['model']['context_length']} tokens")


def test_every_small_file_of_a_checkpoint_is_carried_and_listed(tmp_path: Path) -> None:
    spec, checkpoint, out = (
        SPECS / "reduced" / "llama-3.1-8b.yaml",
        tmp_path / "checkpoint",
        tmp_path / "out",
    )
    api.random_checkpoint(spec, checkpoint)
    names = set(COMPANIONS) - {"config.json"}
    for name in names:
        (checkpoint / name).write_text("{}")
    api.load(spec).export(out, checkpoint=checkpoint)
    readme = (out / "README.md").read_text()
    for name in (*COMPANIONS, "MANIFEST.json", "spec.yaml", "genai_config.json"):
        assert (out / name).is_file()
        assert f"\n| `{name}` | " in readme
