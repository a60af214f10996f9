"""A model in stages is the model, to the bit, wherever it is cut; one that is not says so."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.verify.folder import verify_folder
from tests.parity.models import SPECS

CHOICES = (
    ("reduced/llama-3.2-1b", ExportOptions(stages=3)),
    ("reduced/llama-3.2-1b", ExportOptions("ort-cpu", stages=2)),
    ("reduced/llama-3.2-1b", ExportOptions("ort-cpu", "bfloat16", stages=2)),
    (
        "reduced/llama-3.2-1b",
        ExportOptions("ort-cpu", stages=2, quantize=QuantizeOptions("int4", 16)),
    ),
    ("foreign/gemma3", ExportOptions("ort-cpu", cache="bounded", stages=2)),
    ("foreign/mixtral", ExportOptions(stages=2)),
    ("foreign/mpt", ExportOptions(stages=2)),
)


def exported(name: str, options: ExportOptions, out: Path) -> Path:
    api.load(SPECS / f"{name}.yaml", [SPECS]).export(out, options, random_weights=1)
    return out


@pytest.mark.parametrize(("name", "options"), CHOICES)
def test_stages_are_the_whole(name: str, options: ExportOptions, tmp_path: Path) -> None:
    out = exported(name, options, tmp_path / "out")
    report = verify_folder(out, ["torch"], steps=3)
    rows = [row for row in report.rows if row.case.endswith("in stages")]
    assert len(rows) > 5 and report.passed
    assert all(row.difference is not None and row.difference.max_over_std == 0 for row in rows)
    stages = read_manifest(out).stages
    assert len(stages) == options.stages
    if options.cache == "full":  # the runtime knows no bounded cache
        config = json.loads((out / "genai_config.json").read_text())
        pipeline = config["model"]["decoder"]["pipeline"]
        assert [next(iter(one)) for one in pipeline] == list(stages)


def test_a_stage_has_the_weights_of_its_layers(tmp_path: Path) -> None:
    out = exported("reduced/llama-3.2-1b", ExportOptions("ort-cpu", stages=3), tmp_path / "out")
    graphs = [
        onnx.load(str(out / f"{stage}.onnx"), load_external_data=False).graph
        for stage in read_manifest(out).stages
    ]
    layers = [
        {
            name.split(".")[2]
            for name in (one.name for one in graph.initializer)
            if ".layers." in name
        }
        for graph in graphs
    ]
    # a fused norm of the next layer adds what this one hands on
    assert layers == [{"0", "1"}, {"1", "2"}, {"2"}]


def test_a_wrong_stage_is_different(tmp_path: Path) -> None:
    out = exported("reduced/llama-3.2-1b", ExportOptions(stages=2), tmp_path / "out")
    file = out / "stage_1.onnx"
    model = onnx.load(str(file), load_external_data=False)
    (norm,) = (node for node in model.graph.node if "model.norm.weight" in node.input)
    (epsilon,) = (one for one in norm.attribute if one.name == "epsilon")
    epsilon.f *= 1.01
    onnx.save(model, str(file))
    report = verify_folder(out, ["torch"], steps=2)
    wrong = {row.case for row in report.rows if row.verdict == "different"}
    assert wrong and all(case.endswith("in stages") for case in wrong)


@pytest.mark.parametrize(
    ("name", "stages"), [("llama-3.2-1b", 4), ("llama-3.2-1b", 1), ("llama-4-scout", 2)]
)
def test_what_cannot_be_cut_is_refused(name: str, stages: int, tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        exported(f"reduced/{name}", ExportOptions(stages=stages), tmp_path / "out")
    assert caught.value.diagnostics[0].code == "LG724"
    assert not (tmp_path / "out").exists()
