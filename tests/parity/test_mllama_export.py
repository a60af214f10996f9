"""A folder of Llama 3.2 Vision: graphs beside each other over one file of weights, and what they compute."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import onnxruntime as ort
import pytest

from llamagen import api
from llamagen.ir.build_graphs import all_parameters
from llamagen.spec.registry import Registry
from llamagen.spec.resolved_text import resolved_text
from llamagen.verify.numerics import difference, measured_tolerance
from llamagen.verify.witnesses import OnnxWitness
from tests.parity.mllama import WIDE, shrunk
from tests.parity.mllama_pieces import OnnxRun, ReferenceRun, stories
from tests.parity.models import RandomModel

SEED = 7


class FolderRun(OnnxRun):
    folder: Path

    @cached_property
    def sessions(self) -> dict[str, OnnxWitness]:
        return {
            name: OnnxWitness(ort.InferenceSession(str(self.folder / f"{name}.onnx")))
            for name in self.model.graphs
        }


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


def test_a_folder_computes_text_with_images(model: RandomModel, folder: Path) -> None:
    run = FolderRun(model)
    run.folder = folder
    case = next(s for s in stories(12) if s.name == "a batch")
    reference = case.logits(ReferenceRun(model))
    rounding = difference(case.logits(ReferenceRun(model, "float32")), reference)
    found = difference(case.logits(run), reference)
    assert found.within(measured_tolerance("float32", rounding)), found


def test_weights_are_stored_once(model: RandomModel, folder: Path) -> None:
    count = sum(p.count for p in all_parameters(model.graphs).values())
    padding = 64 * len(model.all_parameters) * 64
    assert 4 * count <= (folder / "model.onnx.data").stat().st_size <= 4 * count + padding
    assert {p.name for p in folder.glob("*.onnx")} == {f"{name}.onnx" for name in model.graphs}


def test_the_text_model_of_the_folder_verifies(folder: Path) -> None:
    report = api.verify_folder(folder, ("reference", "torch"), steps=4)
    assert report.passed, report


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
    from llamagen.ir.build_graphs import build_all

    graphs = build_all(Registry().load("llama/3.2/90b-vision"))
    emitted = {name: emit_onnx(graph, dtype="bfloat16") for name, graph in graphs.items()}
    stored = {i.name: i.shape for m in emitted.values() for i in m.initializers}
    assert len(stored) == 1494
    encoder = emitted["vision_encoder"].model.graph
    assert [o.name for o in encoder.outputs][-1] == "cross_key_values.19.value"
