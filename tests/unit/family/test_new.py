"""`llamagen new --like`: a spec of what nobody described, which checks clean, and what it says is left to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamagen import api
from llamagen.emit.config.checkpoint import disagreements
from llamagen.emit.config.foreign import usual_leaves
from llamagen.emit.config.json_source import parse_json
from llamagen.emit.config.table import table_of
from llamagen.spec.registry import Registry
from tests.cases.runner import HERE

# model types of transformers that no shipped spec describes, each with the names that its config class chose
KINDS = [
    "arcee",
    "bloom",
    "cohere",
    "falcon",
    "gpt_neox",
    "granite",
    "jamba",
    "mamba",
    "mpt",
    "nemotron",
    "olmoe",
    "persimmon",
    "seed_oss",
    "stablelm",
    "starcoder2",
]


def begun(config: dict[str, Any], folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return api.new(str(folder / "config.json"), "mine/model").text


def kind(name: str) -> dict[str, Any]:
    from transformers import AutoConfig

    config: dict[str, Any] = json.loads(AutoConfig.for_model(name).to_json_string(use_diff=False))
    return config


@pytest.mark.parametrize("name", KINDS)
def test_a_spec_of_an_unknown_kind_checks_clean_and_says_what_is_left(
    name: str, tmp_path: Path
) -> None:
    config = kind(name)
    text = begun(config, tmp_path)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    report = api.check([str(tmp_path / "mine.yaml")])
    codes = {one.code for one in report.findings}
    assert codes <= {"LG514", "LG522"}, "defaults of the config class: ids outside, a long context"
    table = table_of(Registry().load_text(text))
    assert table is not None
    left = text[text.index("# TODO") :]
    for key, place, value in usual_leaves(config):
        if value is None or key == "model_type":
            continue
        if key in {**table.fields, **table.fixed}:
            assert {**table.fields, **table.fixed}[key] == value
        else:
            passed = table.passed_over(key, value) is not None or key in table.literals
            assert passed or f"\n#   {place}: " in left, key


def test_of_an_id_it_is_that_model(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(api.new("llama/3.2/1b").text, encoding="utf-8")
    mine = api.load(str(tmp_path / "mine.yaml"))
    assert mine.parameters.keys() == api.load("llama/3.2/1b").parameters.keys()
    assert api.check([str(tmp_path / "mine.yaml")]).clean


def checkpoint(change: tuple[str, str] = ("", "")) -> None:
    text = (HERE / "new_like_unknown_checkpoint/prepare.py").read_text("utf-8")
    exec(compile(text.replace(*change), "prepare.py", "exec"), {})


def test_rules_of_a_checkpoint_find_what_has_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint()
    draft = api.new("checkpoint", "mine/model")
    assert draft.base.startswith("qwen/3/"), "which has norms of queries and keys"
    drop = 'checkpoint:\n  drop: ["transformer.h.{i}.attn.gate.weight"]\n'
    (tmp_path / "mine.yaml").write_text(draft.text.replace("checkpoint:\n", drop, 1), "utf-8")
    report = api.check_checkpoint("checkpoint", "mine.yaml")
    assert [one.code for one in report.findings] == ["LG648"], report.findings
    assert "`gate_kind`" in report.findings[0].message


def test_a_tensor_of_another_shape_is_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(('"attn.v_proj.weight": (K * 16, D)', '"attn.v_proj.weight": (K * 8, D)'))
    left = api.new("checkpoint", "mine/model").text.partition("# TODO stored tensors")[2]
    assert "\n#   transformer.h.{i}.attn.v_proj.weight [16, 64], 2 of them\n" in left
    assert "\n#   model.layers.{i}.self_attn.v_proj.weight [32, 64], 2 of them\n" in left


def test_a_key_that_ones_own_table_has_not_is_said_to_be_not_compared(tmp_path: Path) -> None:
    text = begun({**kind("granite"), "residual_multiplier": 0.22}, tmp_path)
    found = disagreements(
        Registry().load_text(text),
        parse_json((tmp_path / "config.json").read_bytes(), "config.json"),
        Registry(),
    )
    assert [(one.code, "`residual_multiplier`" in one.message) for one in found] == [
        ("LG648", True)
    ]
