"""`attention_bias` and `mlp_bias` of LlamaConfig, which models converted from other families use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamagen import api
from llamagen.emit.options import ExportOptions
from tests.parity.published import exported, gguf_of, llama, require_equal

BIASES = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("attention", "mlp"), BIASES)
def test_the_export_has_the_biases_that_the_configuration_means(
    attention: bool, mlp: bool, tmp_path: Path
) -> None:
    model = llama(attention_bias=attention, mlp_bias=mlp)
    model.save_pretrained(tmp_path / "model")
    out = exported(tmp_path / "model", tmp_path / "out")
    require_equal(out, model)
    spec = api.load(out / "spec.yaml")
    biased = {path.split(".")[-2] for path in spec.parameters if path.endswith(".bias")}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"} if attention else set()
    assert biased == projections | ({"gate_proj", "up_proj", "down_proj"} if mlp else set())
    again = json.loads(spec.files()["config.json"])
    assert (again["attention_bias"], again["mlp_bias"]) == (attention, mlp)


def test_fused_graphs_add_them_too(tmp_path: Path) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    model.save_pretrained(tmp_path / "model")
    options = ExportOptions(profile="ort-cpu", logits="all")
    require_equal(exported(tmp_path / "model", tmp_path / "out", options), model)


def test_biases_of_a_gguf_are_those_of_its_projections(tmp_path: Path) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    out = exported(gguf_of(model, tmp_path / "model.gguf"), tmp_path / "out")
    require_equal(out, model)
