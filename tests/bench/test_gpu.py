"""bench.gpu without a GPU: it says so, and its logic runs on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import gpu
from bench.gpu_runners import Module, Onnx
from llamagen import api
from llamagen.emit.options import ExportOptions

SPEC = """spec: 1
id: bench/tiny
extends: llama/3.2/1b
hyperparameters:
  {vocab_size: 320, hidden_size: 64, num_layers: 2, num_heads: 8, num_kv_heads: 2, head_dim: 8, intermediate_size: 96}
invariants: {swiglu_width: null}
tokenizer: {bos_id: 256, eos_ids: [257], pad_id: null, special_tokens: null}
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "tiny.yaml"
    path.write_text(SPEC)
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--work", str(tmp_path / "work")]) == gpu.UNAVAILABLE
    out, err = capsys.readouterr()
    assert err == "PyTorch finds no CUDA device here, so nothing was measured\n"
    assert out == ""
    assert not (tmp_path / "work").exists()


def test_the_whole_run_on_a_cpu(spec: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = ["--device", "cpu", "--spec", str(spec), "--work", str(tmp_path / "work")]
    sizes = ["--past", "9", "--steps", "2", "--rounds", "1", "--results", str(results)]
    assert gpu.main([*command, *sizes, "--variants", "bfloat16,int4"]) == 0
    row, quantised = json.loads(results.read_text())
    assert quantised["passed"] and quantised["rms_over_std"]["module"] > 1e-4  # float16
    assert row["passed"]
    assert (row["device"], row["variant"]) == ("CPU", "bfloat16")
    assert set(row["tokens_per_s"]) == {"onnxruntime", "module", "transformers"}
    assert row["rms_over_std"]["module"] > 1e-3  # bfloat16 was computed in, not only stored
    gpu.save(results, {**row, "date": "later"})
    gpu.save(results, {**row, "variant": "int4"})
    kept = json.loads(results.read_text())
    assert [(r["variant"], r["date"]) for r in kept] == [
        ("bfloat16", "later"),
        ("int4", row["date"]),
    ]


@pytest.mark.parametrize("profile", ["portable", "ort-cpu"])
def test_a_wrong_graph_fails_the_check(spec: Path, profile: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "other"
    api.load(spec).export(folder, ExportOptions(profile=profile), random_weights=3)
    right = gpu.check(folder, "float32", "cpu", steps=2)
    assert right.passed
    assert right.module == 0.0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SPEC.replace("head_dim: 8,", "head_dim: 8, rope: {factor: 4.0},"))
    api.load(wrong).export(other, ExportOptions(profile=profile), random_weights=3)
    shutil.copy(other / "model.onnx", folder / "model.onnx")
    assert not gpu.check(folder, "float32", "cpu", steps=2).passed


def test_runners_agree_beyond_the_first_buffer(spec: Path, tmp_path: Path) -> None:
    """The cache of a fused model moves to a larger buffer behind 256 tokens."""
    api.load(spec).export(tmp_path / "out", ExportOptions(profile="ort-cpu"), random_weights=3)
    runners = [Onnx(tmp_path / "out", "cpu"), Module.of_folder(tmp_path / "out", "float32", "cpu")]
    ids = np.random.default_rng(2).integers(0, 256, (1, 250))
    for length in (250, 260):
        new = ids if length == 250 else ids[:, :10]
        first, second = (r.step(new, np.ones((1, length), np.int64)) for r in runners)
        assert np.abs(first - second).max() <= 2e-5 * second.std()
