"""A folder of Llama 3.2 Vision: graphs beside each other over one file of weights, and what they compute."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest

from llamagen import api, verify_folder
from llamagen.emit.options import ExportOptions
from llamagen.ir.graph import all_parameters
from llamagen.spec.fmt import resolved_text
from llamagen.spec.registry import Registry
from llamagen.verify.report import EXACTLY
from tests.parity.mllama import WIDE, shrunk
from tests.parity.models import RandomModel

SEED = 7
CASES = (
    *("prefill", "decode", "left padding", "right padding"),
    *("cut anywhere", "rows exchanged", "far apart", "rows that wait", "rows cut anywhere"),
    "around 64",
    "image prefill",
    "images decode",
    "images padded batch",
)


@pytest.fixture(scope="module")
def model() -> RandomModel:
    return shrunk(WIDE)


@pytest.fixture(scope="module")
def folder(model: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from a checkpoint with the Hub's names."""
    place = tmp_path_factory.mktemp("mllama")
    spec, checkpoint, out = place / "spec.yaml", place / "checkpoint", place / "out"
    spec.write_text(resolved_text(model.resolved), encoding="utf-8")
    api.random_checkpoint(spec, checkpoint, seed=SEED, dtype="float32")
    api.load(spec).export(out, checkpoint=checkpoint)
    return out


def test_a_folder_verifies_with_images(folder: Path) -> None:
    witnesses = ("reference", "torch", "transformers")
    report = verify_folder(folder, witnesses, steps=4)
    assert report.passed, report
    found = [(r.witness, r.case) for r in report.rows if not r.case.startswith("table ")]
    exactly = [("spec", f"{case}{EXACTLY}") for case in CASES]
    assert sorted(found) == sorted(
        [*exactly, *((witness, case) for witness in witnesses for case in CASES)]
    )


def test_transformers_that_cannot_build_the_model_is_a_finding(
    folder: Path, tmp_path: Path
) -> None:
    import shutil

    out = shutil.copytree(folder, tmp_path / "out")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["pad_token_id"] = 10**6
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    report = verify_folder(out, ["transformers"], steps=1)
    rows = [row for row in report.rows if row.witness == "transformers"]
    assert {(row.case, row.verdict, row.note[:5]) for row in rows} == {
        ("all", "not compared", "LG774")
    }
    assert not report.passed


def test_weights_are_stored_once(model: RandomModel, folder: Path) -> None:
    count = sum(p.count for p in all_parameters(model.graphs).values())
    padding = 64 * len(model.all_parameters) * 64
    assert 4 * count <= (folder / "model.onnx_data").stat().st_size <= 4 * count + padding
    assert {p.name for p in folder.glob("*.onnx")} == {f"{name}.onnx" for name in model.graphs}


def test_keys_and_values_cross_under_one_name(folder: Path) -> None:
    """What the encoder writes is what the decoder reads, name for name and shape for shape."""
    written = ort.InferenceSession(str(folder / "vision_encoder.onnx")).get_outputs()
    read = ort.InferenceSession(str(folder / "decoder.onnx")).get_inputs()
    crossing = {i.name: i.shape for i in read if i.name.startswith("cross_key_values.")}
    assert crossing == {o.name: o.shape for o in written}
    assert list(crossing)[:2] == ["cross_key_values.0.key", "cross_key_values.0.value"]
    assert len(crossing) == 2 * 3
    text = ort.InferenceSession(str(folder / "model.onnx")).get_inputs()
    assert not {i.name for i in text} & {*crossing, "cross_attention_mask"}


def test_full_size_graphs_are_emitted_without_weights() -> None:
    from llamagen.emit.onnx.emit import emit_onnx
    from llamagen.ir.elaborate import build_all

    graphs = build_all(Registry().load("llama/3.2/90b-vision"))
    emitted = {
        name: emit_onnx(graph, ExportOptions(dtype="bfloat16")) for name, graph in graphs.items()
    }
    stored = {i.name: i.shape for m in emitted.values() for i in m.initializers}
    assert len(stored) == 1494
    encoder = emitted["vision_encoder"].model.graph
    assert [o.name for o in encoder.outputs][-1] == "cross_key_values.19.value"
