"""LoRA adapters that PEFT made, merged on export: the model that `merge_and_unload` gives."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import AdapterRecord, CheckpointSource, read_manifest
from llamagen.emit.options import ExportOptions
from llamagen.verify.stored import stored_weights
from tests.parity.published import exported, gguf_of, llama, require_equal

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

WAYS: dict[str, dict[str, Any]] = {
    "projections": {"r": 4, "lora_alpha": 16, "target_modules": EVERY},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 8, "target_modules": EVERY,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6}, "alpha_pattern": {"up_proj": 3, "v_proj": 1},
    },
    "embeddings": {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "saved": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}  # fmt: skip


def adapted(folder: Path, seed: int = 3, **config: Any) -> torch.nn.Module:
    """Writes ``base`` and ``lora`` below the folder; the base with the adapter merged into it by PEFT."""
    llama().save_pretrained(folder / "base")
    model = get_peft_model(llama(), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora" in name or "modules_to_save" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 4)
    model.save_pretrained(str(folder / "lora"))
    merged: torch.nn.Module = PeftModel.from_pretrained(llama(), folder / "lora").merge_and_unload()
    return merged


@pytest.mark.parametrize("way", WAYS)
def test_the_export_is_the_model_that_peft_merges(way: str, tmp_path: Path) -> None:
    merged = adapted(tmp_path, **WAYS[way])
    out = exported(tmp_path / "base", tmp_path / "out", adapter=tmp_path / "lora")
    stored = stored_weights(out)
    changed = 0
    for name, weight in llama().state_dict().items():
        ours, theirs = stored.read(name).astype(np.float32), merged.state_dict()[name].numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
        changed += not np.array_equal(ours, weight.numpy())
    assert changed >= 3
    require_equal(out, merged)


def test_into_the_rows_of_a_gguf_and_into_codes(tmp_path: Path) -> None:
    """Whose order of rows is another: names and rows of an adapter are the Hub's."""
    merged = adapted(tmp_path, **WAYS["projections"])
    file = gguf_of(llama(), tmp_path / "base.gguf")
    require_equal(exported(file, tmp_path / "out", adapter=tmp_path / "lora"), merged)


def test_from_the_folder_of_the_weights_and_of_a_pickle(tmp_path: Path) -> None:
    merged = adapted(tmp_path, **WAYS["projections"])
    state = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    torch.save(state, tmp_path / "lora" / "adapter_model.bin")
    shutil.copytree(tmp_path / "lora", tmp_path / "base", dirs_exist_ok=True)
    with pytest.raises(LlamagenError) as caught:
        exported(tmp_path / "base", tmp_path / "out")
    (found,) = caught.value.diagnostics
    assert found.code == "LG623" and "--adapter" in (found.help or "")
    require_equal(exported(tmp_path / "base", tmp_path / "out", adapter=tmp_path / "base"), merged)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter."""
    folder = tmp_path_factory.mktemp("pair")
    adapted(folder, **WAYS["projections"])
    return folder


def refused(folder: Path, base: str = "base", weights: str = "copy") -> str:
    with pytest.raises(LlamagenError) as caught:
        exported(
            folder / base, folder / "out", ExportOptions(weights=weights), adapter=folder / "lora"
        )
    assert not (folder / "out").exists()
    (found,) = caught.value.diagnostics
    return f"{found.code} {found.message} ({found.help})"


def test_an_adapter_of_another_base_is_refused(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    llama(intermediate_size=80).save_pretrained(tmp_path / "other")
    said = refused(tmp_path, "other")
    assert said.startswith("LG625") and "another base" in said and "80" in said
    llama(num_hidden_layers=1).save_pretrained(tmp_path / "shallow")
    assert "the model has not" in refused(tmp_path, "shallow")


def test_names_of_the_hub_tell_bases_apart(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    cached = "models--meta-llama--Llama-3.2-1B/snapshots/0123"
    shutil.copytree(tmp_path / "base", tmp_path / cached)
    changed(tmp_path, base_model_name_or_path="meta-llama/Llama-3.2-3B")
    assert "3.2-3B; the weights are those of meta-llama/Llama-3.2-1B" in refused(tmp_path, cached)
    changed(tmp_path, base_model_name_or_path="meta-llama/Llama-3.2-1B")
    exported(tmp_path / cached, tmp_path / "out", adapter=tmp_path / "lora")


@pytest.mark.parametrize("on", ["org/base", "/models/of/someone/base", None])
def test_the_folder_says_what_was_merged(on: str | None, pair: Path, tmp_path: Path) -> None:
    """In MANIFEST.json and for people, and no path of a machine."""
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    changed(tmp_path, base_model_name_or_path=on)
    out = exported(tmp_path / "base", tmp_path / "out", adapter=tmp_path / "lora")
    source = read_manifest(out).weights.source
    assert isinstance(source, CheckpointSource) and source.adapter is not None
    data = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    base = {"org/base": "org/base", None: None}.get(on, "base")
    assert source.adapter == AdapterRecord(name="lora", base=base, rank=4, sha256=digest)
    (row,) = (
        line for line in (out / "README.md").read_text().splitlines() if "merged into" in line
    )
    trained = "" if base is None else f", trained on `{base}`"
    assert f"`lora`, a LoRA of rank 4{trained}; sha256 `{digest[:16]}`" in row
    plain = exported(tmp_path / "base", tmp_path / "plain")
    assert "merged into" not in (plain / "README.md").read_text()
    kept = read_manifest(plain).weights.source
    assert isinstance(kept, CheckpointSource) and kept.adapter is None


def changed(folder: Path, **values: object) -> None:
    file = folder / "lora" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"unknown_kind_of_2027": 1}, "unknown_kind"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 8}, "rank 8"),
        ({"r": 0}, "impossible rank"),
        ({"lora_alpha": "16"}, "a number"),
        ({"rank_pattern": {"(a+)+$": 4}}, "expression"),
        ({"rank_pattern": [4]}, "no table"),
    ],
    ids=str,
)
def test_what_is_not_merged_is_refused_by_name(
    values: dict[str, object], said: str, pair: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    changed(tmp_path, **values)
    text = refused(tmp_path)
    assert text.startswith("LG625") and said in text


def test_tensors_that_are_no_pairs_are_refused(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    state = load_file(file)
    first = next(name for name in state if "q_proj.lora_B" in name)
    save_file({name: t for name, t in state.items() if name != first}, file)
    assert "lora_B" in refused(tmp_path)
    save_file({**state, "base_model.model.model.norm.weight": torch.ones(64)}, file)
    assert "no part of a LoRA" in refused(tmp_path)
    save_file({}, file)
    assert "no tensors" in refused(tmp_path)
    file.unlink()
    assert "LG625" in refused(tmp_path)
    (tmp_path / "lora" / "adapter_config.json").unlink()
    assert "LG625" in refused(tmp_path)


def test_merged_weights_are_not_in_the_files_of_the_base(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    assert "LG640" in refused(tmp_path, weights="reference")
