"""The config.json beside weights against the spec: headers cannot tell Llama 3 from 3.1, this file can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamagen import api
from llamagen.diagnostics import Diagnostic
from llamagen.emit.config.checkpoint import disagreements
from llamagen.emit.config.json_source import read_json
from llamagen.spec.registry import Registry
from tests.unit.family.facts import BUILDABLE, configs, records, spec_of

REGISTRY = Registry()


def compared(
    spec_id: str, config: object, folder: Path, name: str = "config.json"
) -> tuple[Diagnostic, ...]:
    file = folder / name
    file.write_text(json.dumps(config))
    return disagreements(REGISTRY.load(spec_id), read_json(file), REGISTRY)


def config_of(name: str, **changes: object) -> dict[str, Any]:
    return {**configs()[name], **changes}


@pytest.mark.parametrize("name", sorted(set(configs()) & set(BUILDABLE)))
def test_every_model_agrees_with_its_own_file(name: str, tmp_path: Path) -> None:
    assert compared(spec_of(name).spec.id, configs()[name], tmp_path) == ()


@pytest.mark.parametrize("name", [n for n in BUILDABLE if "meta_params" in records()[n]])
def test_every_model_agrees_with_its_own_params(name: str, tmp_path: Path) -> None:
    params = records()[name]["meta_params"]
    assert compared(spec_of(name).spec.id, params, tmp_path, "params.json") == ()


@pytest.mark.parametrize(
    ("spec_id", "file", "key", "fits"),
    [
        ("llama/3.1/8b", "llama-3-8b", "rope_scaling", "`llama/3/8b`"),
        ("llama/3/8b", "llama-3.1-8b", "rope_scaling", "`llama/3.1/8b`"),
        ("llama/2/7b", "llama-7b", "rms_norm_eps", "`llama/1/7b`"),
        ("llama/2/7b", "codellama-7b-python", "rope_theta", "`llama/code/7b-python`"),
        ("llama/guard/3-1b", "llama-3.2-1b", "rope_scaling", "`llama/3.2/1b`"),
    ],
)
def test_models_of_one_shape_are_told_apart(
    spec_id: str, file: str, key: str, fits: str, tmp_path: Path
) -> None:
    found = compared(spec_id, configs()[file], tmp_path)
    assert [d.code for d in found] == ["LG607"] * len(found)
    assert any(f"`{key}` is " in d.message for d in found)
    assert found[-1].help is not None
    assert fits in found[-1].help


def test_both_values_and_the_place_are_named(tmp_path: Path) -> None:
    (found,) = compared("llama/2/7b", config_of("llama-2-7b", rms_norm_eps=1e-6), tmp_path)
    assert found.message == "`rms_norm_eps` is 1e-06 here; `llama/2/7b` has 1e-05"
    assert found.span is not None
    assert found.span.file.endswith("config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"eos_token_id": 7},
        {"bos_token_id": None},
        {"max_position_embeddings": 4096},
        {"torch_dtype": "float32"},
        {"some_tool": "wrote this"},
        {"head_dim": None},
        {"attention_dropout": 0.1},
    ],
    ids=str,
)
def test_what_the_graph_does_not_depend_on_does_not_count(
    change: dict[str, object], tmp_path: Path
) -> None:
    assert compared("llama/2/7b", config_of("llama-2-7b", **change), tmp_path) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"num_key_value_heads": 8},
        {"tie_word_embeddings": True},
        {"model_type": "mllama"},
    ],
    ids=str,
)
def test_what_the_graph_depends_on_counts(change: dict[str, object], tmp_path: Path) -> None:
    found = compared("llama/2/7b", config_of("llama-2-7b", **change), tmp_path)
    assert [d.code for d in found] == ["LG607"]


def test_the_flag_of_a_params_file_counts(tmp_path: Path) -> None:
    params = {**records()["llama-3-8b"]["meta_params"], "use_scaled_rope": True}
    (found,) = compared("llama/3/8b", params, tmp_path, "params.json")
    assert "`use_scaled_rope` is true" in found.message
    assert found.help is not None
    assert "`llama/3.1/8b`" in found.help


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    (found,) = disagreements(REGISTRY.load("llama/2/7b"), None, REGISTRY)
    assert (found.code, found.severity) == ("LG608", "note")


OWN = """
spec: 1
id: tests/own
extends: llama/2/7b
config: null
constants: {logit_scale: 0.5, my_act: silu}
blocks: {CausalLM: {forward: 'return activation(lm_head(model(input_ids)) * logit_scale, my_act)'}}
"""
ROPE = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"rope_theta": 500000.0}, ["LG607"]),
        ({"rms_norm_eps": 1e-6, "num_attention_heads": 16}, ["LG607", "LG607"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["LG607"]),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}, ["LG607"]),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e4}}, []),
        ({"logit_scale": 0.25}, ["LG607"]),
        ({"rope_theta": None, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}, []),
        (
            {"rope_theta": None, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
            ["LG607"],
        ),
        ({"rope_theta": None, "rope_parameters": {"full_attention": ROPE}}, []),
        ({"head_dim": 64}, []),
        ({"my_act": "gelu_pytorch_tanh"}, ["LG607"]),
        ({"my_act": "swish"}, []),
        ({"my_act": "quick_gelu"}, []),
        ({"max_position_embeddings": 77, "use_cache": False}, []),
    ],
    ids=str,
)
def test_a_spec_without_a_table_is_compared_by_usual_names(
    change: dict[str, object], codes: list[str], tmp_path: Path
) -> None:
    """What else the file has was not compared, and that is said."""
    config: dict[str, object] = {
        "my_scale": 0.25,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_attention_heads": 32,
    }
    config = {k: v for k, v in {**config, **change}.items() if v is not None}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    *found, unseen = disagreements(REGISTRY.load_text(OWN), read_json(file), REGISTRY)
    assert [one.code for one in found] == codes
    assert (unseen.code, unseen.severity) == ("LG648", "warning")
    assert "my_scale" in unseen.message
    assert all(one.span is not None for one in found)


@pytest.mark.parametrize(
    ("stated", "codes"),
    [
        ({"rope_parameters": {"rope_theta": 10000.0}}, []),
        ({"rope_parameters": {"rope_theta": 20000.0}}, ["LG607"]),
        ({"rope_theta": 10000.0}, []),
        ({"rope_theta": 20000.0}, ["LG607"]),
        ({}, ["LG648"]),
    ],
    ids=str,
)
def test_a_table_in_the_words_of_transformers_5_is_compared(
    stated: dict[str, object], codes: list[str], tmp_path: Path
) -> None:
    text = OWN.replace(
        "config: null",
        "config: {kind: mine, fields: {rope_theta: null, rope_parameters: {rope_theta: rope.theta}},"
        " absent: {rope_theta: null}}",
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mine", **stated}))
    found = disagreements(REGISTRY.load_text(text), read_json(file), REGISTRY)
    assert [one.code for one in found] == codes, found


REDUCED = Path(__file__).resolve().parents[2] / "specs" / "reduced" / "llama-3.1-8b.yaml"


def test_export_lets_the_spec_count_when_told_so(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    api.random_checkpoint(REDUCED, checkpoint)
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "rope_scaling": None}))
    api.load(REDUCED).export(out, checkpoint=checkpoint, ignore_config=True)
    assert json.loads((out / "config.json").read_text())["rope_scaling"] == config["rope_scaling"]
