"""The main job with an FP8 checkpoint: its products, in every form of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llamagen.api import check_checkpoint, load, random_checkpoint
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.table import config_files
from llamagen.emit.manifest import CheckpointSource, read_manifest
from llamagen.emit.options import ExportOptions, QuantizeOptions
from llamagen.ir.elaborate import build_all
from llamagen.ir.graph import all_parameters
from llamagen.verify.folder import verify_folder
from llamagen.verify.stored import stored_weights
from llamagen.weights.checkpoint import Checkpoint
from llamagen.weights.random import RandomTensor, random_values, write_random_checkpoint
from tests.parity.models import SPECS
from tests.unit.weights.files import save

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"
EXPERTS = SPECS / "foreign" / "llama4_text.yaml"


def stored(folder: Path, spec: Path = DENSE) -> Path:
    random_checkpoint(spec, folder / "fp8", seed=1, dtype="float8", shard_bytes=40_000)
    return folder / "fp8"


@pytest.mark.parametrize("spec", [DENSE, EXPERTS], ids=lambda path: path.stem)
def test_an_export_is_proven_and_near_the_weights(spec: Path, tmp_path: Path) -> None:
    """Three bits of mantissa: an error of up to 1/16, 2.6 % of the spread for normal numbers."""
    checkpoint = stored(tmp_path, spec)
    found = check_checkpoint(checkpoint, spec).findings
    assert {one.severity for one in found} == {"note"}
    written = load(spec).export(tmp_path / "out", checkpoint=checkpoint)
    assert [note.code for note in written.notes] == ["LG645"]
    assert verify_folder(tmp_path / "out", ("reference",), steps=2).passed
    weights = stored_weights(tmp_path / "out")
    quantised = 0
    for path, parameter in load(spec).parameters.items():
        true = random_values(1, path, parameter.shape, parameter.kind)
        error = np.sqrt(
            np.square(weights.read(path).astype("f4") - true).mean() / np.square(true).mean()
        )
        projection = len(parameter.shape) > 1 and "embed" not in path and "lm_head" not in path
        assert (0.015 < error < 0.03) if projection else error < 2**-8, path
        quantised += projection
    assert quantised > 10


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_a_head_stays_as_it_is(prefix: str, tmp_path: Path) -> None:
    """Under the prefix of models that read images too."""
    head = RandomTensor(f"{prefix}lm_head.weight", (16, 8), "matrix")
    linear = head._replace(name=f"{prefix}model.layers.0.self_attn.q_proj.weight")
    write_random_checkpoint(tmp_path / "out", [head, linear], 0, "F8_E4M3")
    dtypes = [tensor.dtype for tensor in Checkpoint.open(tmp_path / "out").tensors.values()]
    assert dtypes == ["BF16", "F8_E4M3"]


def apart(spec: Path, folder: Path, lost: str | None = None) -> tuple[Path, dict[str, np.ndarray]]:
    """Meta's FP8 Maverick: each expert by itself, float8 beside a bfloat16 scale a row; and what it all stands for."""
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    resolved = load(spec).resolved
    for path, p in all_parameters(build_all(resolved)).items():
        made = random_values(1, path, p.shape, p.kind)
        if ".experts." not in path:
            tensors[path] = made.astype(ml_dtypes.bfloat16)
            expected[path] = tensors[path].astype(np.float32)
            continue
        name, _, kind = path.rpartition(".")
        halves = np.split(made, 2, axis=2) if kind == "gate_up_proj" else [made]
        names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        stands_for = [np.empty_like(half) for half in halves]
        for part, half, whole in zip(names, halves, stands_for, strict=True):
            for expert, matrix in enumerate(half):
                linear = matrix.T
                scale = (np.abs(linear).max(1, keepdims=True) / 448).astype(ml_dtypes.bfloat16)
                codes = (linear / scale.astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)
                tensors[f"{name}.{expert}.{part}.weight"] = codes
                tensors[f"{name}.{expert}.{part}.weight_scale"] = scale
                for row in range(len(linear)):  # by the definition, one output at a time
                    factor = np.float32(scale[row, 0])
                    whole[expert, :, row] = codes[row].astype(np.float32) * factor
        expected[path] = np.concatenate(stands_for, axis=2)
    folder.mkdir()
    kept = {n: t for n, t in tensors.items() if lost is None or not n.endswith(lost)}
    save(folder / "model.safetensors", kept)
    config = json.loads(config_files(resolved)["config.json"])
    how = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    return folder, expected


def test_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    spec = SPECS / "reduced" / "llama-4-maverick.yaml"
    checkpoint, expected = apart(spec, tmp_path / "fp8")
    written = load(spec).export(tmp_path / "out", checkpoint=checkpoint)
    assert [note.code for note in written.notes] == ["LG645"]
    source = read_manifest(tmp_path / "out").weights.source
    assert isinstance(source, CheckpointSource) and source.layout == "hub-llama4-experts"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    stored_here = stored_weights(tmp_path / "out")
    for graph in ("vision_encoder", "embedding", "decoder"):
        stored_here = stored_here.joined(stored_weights(tmp_path / "out", graph))
    assert set(stored_here.places) == set(expected)
    for path, values in expected.items():
        assert np.array_equal(stored_here.read(path), values), path


def test_experts_that_are_stored_one_by_one_quantised(tmp_path: Path) -> None:
    """int8 in blocks is finer than float8: its error alone is small."""
    spec = SPECS / "reduced" / "llama-4-maverick.yaml"
    checkpoint, expected = apart(spec, tmp_path / "fp8")
    quantize = QuantizeOptions("int8", 16)
    load(spec).export(tmp_path / "out", ExportOptions(quantize=quantize), checkpoint=checkpoint)
    found = stored_weights(tmp_path / "out")
    for path in (p for p in expected if ".experts." in p):
        error = np.abs(found.read(path) - expected[path]).max()
        assert 0 < error < expected[path].max() / 100, path


@pytest.mark.parametrize("lost", ["experts.3.up_proj.weight", "experts.2.gate_proj.weight_scale"])
def test_an_expert_that_is_not_whole_is_refused(lost: str, tmp_path: Path) -> None:
    spec = SPECS / "reduced" / "llama-4-maverick.yaml"
    checkpoint, _ = apart(spec, tmp_path / "fp8", lost)
    with pytest.raises(LlamagenError) as caught:
        load(spec).export(tmp_path / "out", checkpoint=checkpoint)
    assert any(lost in one.message for one in caught.value.diagnostics)


def test_the_configuration_says_nothing_that_is_no_longer_true(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    assert "quantization_config" in json.loads((checkpoint / "config.json").read_text())
    load(DENSE).export(tmp_path / "out", checkpoint=checkpoint)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((checkpoint / "config.json").read_text())
    assert found.pop("transformers.js_config")["use_external_data_format"] == {"model.onnx": 1}
    assert found == {k: v for k, v in before.items() if k != "quantization_config"}
    assert verify_folder(tmp_path / "out", ("transformers",), steps=2).passed


def test_it_can_be_quantised_again(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    load(DENSE).export(
        tmp_path / "out", ExportOptions(quantize=QuantizeOptions("int8")), checkpoint=checkpoint
    )
    assert verify_folder(tmp_path / "out", ("reference",), steps=2).passed


def test_it_cannot_be_referenced(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    with pytest.raises(LlamagenError) as caught:
        load(DENSE).export(
            tmp_path / "out", ExportOptions(weights="reference"), checkpoint=checkpoint
        )
    (one,) = caught.value.diagnostics
    assert one.code == "LG640" and "float8" in one.message
