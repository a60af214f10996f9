"""``from_pretrained`` of generated modules: what it reads, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.torch.models import TIED, changed, ids, llama, module, scatter


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")
    return folder


@torch.no_grad()
def test_single_file(tmp_path: Path) -> None:
    model = llama()
    loaded = module(changed()).CausalLM.from_pretrained(saved(tmp_path, model.state_dict()))
    assert not loaded.training
    assert torch.equal(loaded(ids(2, 7)), model(ids(2, 7)))


@torch.no_grad()
def test_shards_and_a_dtype(tmp_path: Path) -> None:
    model = llama()
    state = model.state_dict()
    names = sorted(state)
    weight_map = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({n: state[n] for n in names if weight_map[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    make = module(changed()).CausalLM.from_pretrained
    assert torch.equal(make(tmp_path)(ids(2, 7)), model(ids(2, 7)))
    half = make(tmp_path, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    moved = {n: f"../{file}" for n, file in weight_map.items()}
    index.write_text(json.dumps({"weight_map": moved}))
    (tmp_path / "inside").mkdir()
    index.rename(tmp_path / "inside" / index.name)
    with pytest.raises(FileNotFoundError, match="inside/model-0"):
        make(tmp_path / "inside")


@torch.no_grad()
def test_a_tied_head_shares_the_embedding(tmp_path: Path) -> None:
    made = changed("tie_embeddings: true", TIED)
    model = scatter(module(made).CausalLM())
    model.tie()
    state = model.state_dict()
    assert state.pop("lm_head.weight") is not None
    make = module(made).CausalLM.from_pretrained
    loaded = make(saved(tmp_path, state))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(ids(2, 7)), model(ids(2, 7)))


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    state = llama().state_dict()
    state["model.layers.0.extra.weight"] = state.pop("model.norm.weight")
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError) as error:
        module(changed()).CausalLM.from_pretrained(saved(tmp_path, state), torch.float32)
    for problem in (
        'Missing key(s) in state_dict: "model.norm.weight"',
        'Unexpected key(s) in state_dict: "model.layers.0.extra.weight"',
        "size mismatch for model.layers.0.mlp.up_proj.weight",
    ):
        assert problem in str(error.value)


def test_weights_that_are_no_floating_point_are_refused(tmp_path: Path) -> None:
    """Those of a quantised checkpoint, say."""
    state = llama().state_dict()
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(20, 24, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        module(changed()).CausalLM.from_pretrained(saved(tmp_path, state), torch.float32)


def test_rotary_frequencies_of_old_files_are_ignored(tmp_path: Path) -> None:
    state = llama().state_dict()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    module(changed()).CausalLM.from_pretrained(saved(tmp_path, state))
