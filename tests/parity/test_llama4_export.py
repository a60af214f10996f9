"""A folder of a model with images: graphs beside each other over one file of weights, and what they compute."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import onnxruntime as ort
import pytest

from llamagen import api
from llamagen.ir.build_graphs import all_parameters
from llamagen.spec.resolved_text import resolved_text
from llamagen.verify.numerics import difference, measured_tolerance
from llamagen.verify.witnesses import OnnxWitness
from tests.parity.llama4 import shrunk
from tests.parity.llama4_pieces import OnnxRun, ReferenceRun, picture
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
    return shrunk("llama/4/scout")


def exported(model: RandomModel, folder: Path, *, by_checkpoint: bool) -> Path:
    spec, out = folder / "spec.yaml", folder / "out"
    spec.write_text(resolved_text(model.resolved), encoding="utf-8")
    if not by_checkpoint:
        api.load(spec).export(out, random_weights=SEED)
        return out
    checkpoint = folder / "checkpoint"
    api.random_checkpoint(spec, checkpoint, seed=SEED, dtype="float32")
    api.load(spec).export(out, checkpoint=checkpoint)
    return out


@pytest.mark.parametrize("by_checkpoint", [False, True])
def test_a_folder_computes_text_with_images(
    model: RandomModel, tmp_path: Path, by_checkpoint: bool
) -> None:
    run = FolderRun(model)
    run.folder = exported(model, tmp_path, by_checkpoint=by_checkpoint)
    case = picture(60, tokens=9, side=24, padded=True)
    reference = case.logits(ReferenceRun(model))
    rounding = difference(case.logits(ReferenceRun(model, "float32")), reference)
    found = difference(case.logits(run), reference)
    assert found.within(measured_tolerance("float32", rounding)), found


def test_weights_are_stored_once(model: RandomModel, tmp_path: Path) -> None:
    out = exported(model, tmp_path, by_checkpoint=False)
    count = sum(p.count for p in all_parameters(model.graphs).values())
    padding = 64 * len(model.all_parameters) * 64
    assert 4 * count <= (out / "model.onnx.data").stat().st_size <= 4 * count + padding
    assert {p.name for p in out.glob("*.onnx")} == {f"{name}.onnx" for name in model.graphs}


def test_the_text_model_of_the_folder_verifies(model: RandomModel, tmp_path: Path) -> None:
    out = exported(model, tmp_path, by_checkpoint=False)
    report = api.verify_folder(out, ("reference", "torch"), steps=4)
    assert report.passed, report
