"""The main job with an FP8 checkpoint: its products, in every form of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llamagen.api import check_checkpoint, load, random_checkpoint
from llamagen.diagnostics import LlamagenError
from llamagen.emit.quantize_options import QuantizeOptions
from llamagen.verify.folder import verify_folder
from llamagen.verify.stored import stored_weights
from llamagen.weights.random import random_values
from tests.parity.models import SPECS

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
        error = np.sqrt(np.square(weights.read(path) - true).mean() / np.square(true).mean())
        projection = len(parameter.shape) > 1 and "embed" not in path and "lm_head" not in path
        assert (0.015 < error < 0.03) if projection else error < 2**-8, path
        quantised += projection
    assert quantised > 10


def test_the_configuration_says_nothing_that_is_no_longer_true(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    assert "quantization_config" in json.loads((checkpoint / "config.json").read_text())
    load(DENSE).export(tmp_path / "out", checkpoint=checkpoint)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((checkpoint / "config.json").read_text())
    assert found == {k: v for k, v in before.items() if k != "quantization_config"}
    assert verify_folder(tmp_path / "out", ("transformers",), steps=2).passed


def test_it_can_be_quantised_again(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    load(DENSE).export(tmp_path / "out", checkpoint=checkpoint, quantize=QuantizeOptions("int8"))
    assert verify_folder(tmp_path / "out", ("reference",), steps=2).passed


def test_it_cannot_be_referenced(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    with pytest.raises(LlamagenError) as caught:
        load(DENSE).export(tmp_path / "out", checkpoint=checkpoint, weights="reference")
    (one,) = caught.value.diagnostics
    assert one.code == "LG640" and "float8" in one.message
