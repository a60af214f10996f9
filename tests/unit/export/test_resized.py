"""A checkpoint of a released architecture in other sizes, exported under the released id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import Target

REDUCED = Path(__file__).parents[2] / "specs" / "reduced"
SAME = {
    "llama/4/scout": "llama-4-scout",
    "llama/3.2/11b-vision-instruct": "llama-3.2-11b-vision",
    "llama/3.1/8b": "llama-3.1-8b",
}


def checkpoint(name: str, folder: Path) -> Path:
    api.random_checkpoint(REDUCED / f"{name}.yaml", folder, seed=3, dtype="float32")
    return folder


def codes(error: LlamagenError) -> set[str]:
    return {one.code for one in error.diagnostics}


@pytest.mark.parametrize("released", SAME)
def test_it_is_the_model_of_its_own_spec(released: str, tmp_path: Path) -> None:
    stored = checkpoint(SAME[released], tmp_path / "checkpoint")
    written = api.load(released).export(tmp_path / "out", checkpoint=stored)
    assert "LG646" in {one.code for one in written.notes}
    api.load(REDUCED / f"{SAME[released]}.yaml").export(tmp_path / "own", checkpoint=stored)
    ours, own = (api.load(tmp_path / n / "spec.yaml") for n in ("out", "own"))
    assert ours.spec.root == own.spec.root
    # Beyond sizes: every attribute of every op, epsilons and rope scaling included.
    assert ours.graph_text().split("\n", 1)[1:] == own.graph_text().split("\n", 1)[1:]
    assert ours.parameters == own.parameters


@pytest.mark.parametrize("released", SAME)
def test_check_says_what_export_does(released: str, tmp_path: Path) -> None:
    report = api.check_checkpoint(checkpoint(SAME[released], tmp_path / "checkpoint"), released)
    assert report.clean, report.findings
    assert [one.code for one in report.findings if one.code in ("LG646", "LG619")] == [
        "LG646",
        "LG619",
    ]


def test_check_refuses_what_export_does(tmp_path: Path) -> None:
    stored = checkpoint("llama-3.1-8b", tmp_path / "checkpoint")
    assert not api.check_checkpoint(stored, "llama/4/scout").clean
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    found = api.check_checkpoint(stored, "llama/3.1/8b").findings
    assert {one.code for one in found} & {"LG611", "LG612", "LG613", "LG618"}


def test_tensors_that_are_not_those_of_the_file_are_refused(tmp_path: Path) -> None:
    stored = checkpoint("llama-3.1-8b", tmp_path / "checkpoint")
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(LlamagenError) as caught:
        api.load("llama/3.1/8b").export(tmp_path / "out", checkpoint=stored)
    assert codes(caught.value) & {"LG611", "LG612", "LG613", "LG618"}
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_no_size(tmp_path: Path) -> None:
    stored = checkpoint("llama-3.1-8b", tmp_path / "checkpoint")
    for other in ("llama/3/8b", "llama/4/scout"):
        with pytest.raises(LlamagenError):
            api.load(other).export(tmp_path / "out", checkpoint=stored, ignore_config=True)
    assert not (tmp_path / "out").exists()


def test_what_no_number_makes_is_refused_by_its_name(tmp_path: Path) -> None:
    stored = checkpoint("llama-3.1-8b", tmp_path / "checkpoint")
    found = api.check_checkpoint(stored, "llama/3/8b").findings
    assert [one.code for one in found] == ["LG607"]
    assert "`rope_scaling` is {" in found[0].message
    assert found[0].span is not None
    with pytest.raises(LlamagenError) as caught:
        api.load("llama/3/8b").export(tmp_path / "out", checkpoint=stored)
    assert caught.value.diagnostics == found


def test_numbers_that_leave_no_trace_in_the_shapes_are_said(tmp_path: Path) -> None:
    stored = checkpoint("llama-3.1-8b", tmp_path / "checkpoint")
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.01}))
    report = api.check_checkpoint(stored, "llama/3.1/8b")
    assert report.clean
    assert "rms_norm_eps 0.01 for 1e-05, " in report.findings[0].message


def test_ignored_files_give_no_size(tmp_path: Path) -> None:
    stored = checkpoint("llama-3.1-8b", tmp_path / "checkpoint")
    with pytest.raises(LlamagenError) as caught:
        api.load("llama/3.1/8b").export(tmp_path / "out", checkpoint=stored, ignore_config=True)
    assert codes(caught.value) & {"LG611", "LG612", "LG613", "LG618"}


def test_values_without_a_key_follow_those_with_one(tmp_path: Path) -> None:
    config = json.loads(api.load("llama/4/scout").files(Target.CONFIG)["config.json"])
    config["image_token_index"] = 7
    config["text_config"]["intermediate_size"] = 96
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = api.import_config(tmp_path / "config.json").resolved.spec
    assert spec.constants["patch_token"] == 7
    assert spec.hyperparameters.shared_expert_intermediate_size == 96
