"""Keys and values in codes of 8 bits: what is written, what is proven of it, and where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from llamagen.api import load
from llamagen.diagnostics import LlamagenError
from llamagen.emit.calibrate import LEAST, WINDOW, Activations, calibrated, digest_of
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.ir.flatten import flatten
from llamagen.ir.reference import evaluate
from llamagen.runtime.generation import Runner
from llamagen.verify.folder import verify_folder
from llamagen.weights.tensors import Region
from tests.parity.models import SPECS, RandomModel
from tests.unit.export.test_calibrate import checkpoint

HEADS_OF_16 = SPECS / "reduced" / "llama-1-7b.yaml"
HEADS_OF_8 = SPECS / "reduced" / "llama-3.1-8b.yaml"
CODED = ExportOptions(profile="ort-cpu", cache_dtype="int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coded") / "out"
    load(HEADS_OF_16).export(out, CODED, random_weights=1)
    return out


def test_the_meaning_is_proven_and_the_rounding_has_a_bound(folder: Path) -> None:
    report = verify_folder(folder, ("reference",), steps=4)
    assert report.passed
    cases = {row.case for row in report.rows if row.verdict == "equal"}
    assert {"decode, cache in int8", "decode, float cache", "decode, exactly"} <= cases
    (scales,) = (row for row in report.rows if row.case == "scales of the cache")
    assert scales.verdict == "equal" and scales.difference is not None
    assert scales.difference.max_over_std < 1e-3
    (rounding,) = (r for r in report.rows if r.case == "decode, cache in int8")
    assert rounding.difference is not None and rounding.difference.rms_over_std > 1e-4


@pytest.mark.parametrize(
    ("factor", "layer"), [(0.5, ""), (4.0, ""), (2.0, ""), (4.0, ".0."), (0.6, ".1.key")]
)
def test_scales_of_another_size_are_seen(folder: Path, factor: float, layer: str) -> None:
    file = folder / "model.onnx"
    before = file.read_bytes()
    model = onnx.load_model_from_string(before)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and layer in tensor.name:
            other = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    try:
        file.write_bytes(model.SerializeToString())
        report = verify_folder(folder, ("reference",), steps=4)
    finally:
        file.write_bytes(before)
    different = {r.case for r in report.rows if r.verdict == "different"}
    assert "scales of the cache" in different
    assert different <= {"scales of the cache", "decode, cache in int8"}


def test_the_folder_says_it(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.coded_cache is not None and manifest.coded_cache.calibration is None
    assert manifest.io_dtype == "float32"
    assert "| caches | int8," in (folder / "README.md").read_text()
    assert "np.zeros" in (folder / "README.md").read_text()
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    cached = [
        v for v in (*model.graph.input, *model.graph.output) if ".key" in v.name or ".val" in v.name
    ]
    assert len(cached) == 2 * len(flatten(load(HEADS_OF_16).graph).slots)
    assert {v.type.tensor_type.elem_type for v in cached} == {TensorProto.INT8}
    assert len(list(Runner(folder).run([1, 2, 3], max_new_tokens=4))) == 4


def test_ranges_hold_at_every_position() -> None:
    """A pair of a key keeps its length wherever it is turned to; values are as they are."""
    model = RandomModel.named("reduced/llama-3.1-8b")
    ids = [int(i) for i in np.random.default_rng(0).integers(0, model.vocab_size, LEAST)]

    def part(path: str, region: Region) -> NDArray[np.float32]:
        return model.weight(path)[tuple(slice(*one) for one in region)]

    found = calibrated(model.graph, part, ids)
    assert isinstance(found, Activations)
    row = np.asarray(ids[:WINDOW])[None]
    present = evaluate(model.flat, model.weight, row).present
    assert present is not None
    for slot, kept in zip(model.flat.slots, present, strict=True):
        largest = np.abs(kept).max(axis=(0, 2))
        if slot.past.endswith("key"):
            first, second = np.split(kept, 2, axis=-1)
            largest = np.tile(np.hypot(first, second).max(axis=(0, 2)), 2)
        np.testing.assert_allclose(found.ranges[slot.past], largest, rtol=1e-3)


def test_scales_come_from_a_text(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoint", spec=HEADS_OF_16)
    text = tmp_path / "notes.txt"
    text.write_text("A b C d " * 200)
    quantize = QuantizeOptions(calibrate=text)
    options = ExportOptions(profile="ort-cpu", cache_dtype="int8", quantize=quantize)
    written = load(HEADS_OF_16).export(tmp_path / "out", options, checkpoint=source)
    assert "LG647" not in {note.code for note in written.notes}
    manifest = read_manifest(tmp_path / "out")
    assert manifest.coded_cache is not None and manifest.quantization is None
    assert manifest.coded_cache.calibration == digest_of(text.read_text())


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (HEADS_OF_16, {"profile": "portable"}, "operators of portable"),
        (HEADS_OF_16, {"profile": "ort-cuda", "dtype": "float16"}, "operators of ort-cuda"),
        (HEADS_OF_16, {"runtime": "1.31"}, "onnxruntime 1.31 has no kernel"),
        (HEADS_OF_16, {"cache_dtype": "int4"}, "'int4'; known: int8"),
        (SPECS / "foreign" / "mpt.yaml", {}, "is not GroupQueryAttention"),
    ],
)
def test_what_cannot_be(spec: Path, options: dict[str, str], words: str, tmp_path: Path) -> None:
    chosen = {"profile": "ort-cpu", "cache_dtype": "int8", **options}
    with pytest.raises(LlamagenError, match=words) as caught:
        load(spec).export(tmp_path / "out", ExportOptions(**chosen), random_weights=1)  # type: ignore[arg-type]
    assert caught.value.diagnostics[0].code == "LG726"
    assert not (tmp_path / "out").exists()


def test_a_trained_model_is_not_guessed_at(tmp_path: Path) -> None:
    """Random ids make other keys of it than a text."""
    source = checkpoint(tmp_path / "checkpoint", spec=HEADS_OF_16)
    (source / "tokenizer.json").unlink()
    with pytest.raises(LlamagenError, match=r"without a tokenizer\.json") as caught:
        load(HEADS_OF_16).export(tmp_path / "out", CODED, checkpoint=source)
    assert caught.value.diagnostics[0].code == "LG726"
