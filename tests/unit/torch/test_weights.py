"""``from_pretrained`` of generated modules: what it reads, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.torch.models import TIED, changed, ids, llama, module, scatter
from tests.unit.torch.wirings import NO_STACK


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")
    return folder


@torch.no_grad()
def test_single_file(tmp_path: Path) -> None:
    model = llama()
    loaded = module(changed()).CausalLM.from_pretrained(saved(tmp_path, model.state_dict()))
    assert not loaded.training
    assert torch.equal(loaded(ids(2, 7))[0], model(ids(2, 7))[0])


@torch.no_grad()
def test_shards_and_a_stage_and_a_dtype(tmp_path: Path) -> None:
    model = llama()
    state = model.state_dict()
    names = sorted(state)
    weight_map = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({n: state[n] for n in names if weight_map[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    make = module(changed()).CausalLM.from_pretrained
    assert torch.equal(make(tmp_path)(ids(2, 7))[0], model(ids(2, 7))[0])
    stage = make(tmp_path, torch.bfloat16, layers=range(1, 2), embed=False)
    assert {p.dtype for p in stage.parameters()} == {torch.bfloat16}
    assert "model.layers.1.mlp.up_proj.weight" in stage.state_dict()
    assert "model.layers.0.mlp.up_proj.weight" not in stage.state_dict()
    for bad in ("../model-0.safetensors", "/tmp/model-0.safetensors", "model-0.bin"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, bad)}))
        with pytest.raises(ValueError, match="not the bare name"):
            make(tmp_path)


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
    assert torch.equal(loaded(ids(2, 7))[0], model(ids(2, 7))[0])
    last = make(tmp_path, layers=range(1, 2), embed=False)
    assert torch.equal(last.lm_head.weight, model.model.embed_tokens.weight)


def test_a_head_is_tied_in_a_model_that_cannot_be_cut() -> None:
    """Without a stack of layers the constructor has no stages; the tie is made all the same."""
    model = module(changed("num_layers: null, tie_embeddings: true", TIED + NO_STACK)).CausalLM()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    state = llama().state_dict()
    state["model.layers.0.extra.weight"] = state.pop("model.norm.weight")
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(20, 24, dtype=torch.int32)
    with pytest.raises(ValueError, match="does not fit this model") as error:
        module(changed()).CausalLM.from_pretrained(saved(tmp_path, state), torch.float32)
    assert str(error.value).splitlines()[1:] == [
        "  model.layers.0.extra.weight in model.safetensors is not part of this model",
        "  model.layers.0.mlp.up_proj.weight in model.safetensors is float [3, 4], not float [20, 24]",
        "  model.layers.1.mlp.up_proj.weight in model.safetensors is torch.int32 [20, 24], not float [20, 24]",
        "  model.norm.weight is missing",
    ]


def test_rotary_frequencies_of_old_files_are_ignored(tmp_path: Path) -> None:
    state = llama().state_dict()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    module(changed()).CausalLM.from_pretrained(saved(tmp_path, state))
