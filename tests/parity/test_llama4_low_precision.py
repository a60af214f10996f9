"""Llama 4 in two bytes: whole folders verify, and a folder of another model does not.

A token whose router is undecided may choose another expert in a low precision, in every implementation: `verify` lets
the witnesses compute with ONNX Runtime's experts and judges its choices apart. An epsilon does not show.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from llamagen import api, verify_folder
from llamagen.emit.manifest import read_manifest
from llamagen.emit.options import ExportOptions
from llamagen.spec.fmt import resolved_text
from llamagen.verify.report import VerifyReport
from tests.parity.llama4 import shrunk
from tests.parity.models import RandomModel

SLOW = pytest.mark.slow
SEED = 7


def exported(model: RandomModel, folder: Path, dtype: str) -> Path:
    spec, out = folder / "spec.yaml", folder / "out"
    folder.mkdir(parents=True, exist_ok=True)
    spec.write_text(resolved_text(model.resolved), encoding="utf-8")
    api.load(spec).export(out, ExportOptions(dtype=dtype), random_weights=SEED)
    return out


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama/4/scout", "bfloat16"),
        pytest.param("llama/4/maverick", "float16", marks=SLOW),
        pytest.param("llama/4/scout", "float16", marks=SLOW),
        pytest.param("llama/4/maverick", "bfloat16", marks=SLOW),
        pytest.param("llama/guard/4-12b", "bfloat16", marks=SLOW),
        pytest.param("llama/guard/4-12b", "float16", marks=SLOW),
    ],
)
def test_a_whole_model_verifies(name: str, dtype: str, tmp_path: Path) -> None:
    """Text and images, prefill and decode, padded and not."""
    out = exported(shrunk(name), tmp_path, dtype)
    assert read_manifest(out).dtype == dtype
    report = verify_folder(out, ("torch",), steps=4)
    assert report.passed, [row.cells() for row in report.rows]
    assert sum("image" in row.case for row in report.rows) >= 3


MISTAKES = {
    "another layout of rope": ("layout: interleaved", "layout: half"),
    "no temperature": ("attention_temperature_scale: 0.1", "attention_temperature_scale: 1.0e-6"),
    "a chunk of six": ("attention_chunk_size: 5", "attention_chunk_size: 6"),
    "no QK norm": ("qk_norm: true", "qk_norm: false"),
    "the score on the expert's output": ("scale='input'", "scale='output'"),
    "softmax of the chosen": ("sigmoid(float32(score))", "softmax(float32(score))"),
    "positions missing in every third layer": ("every: 4", "every: 3"),
}
QUICK = {("no temperature", "float16"), ("the score on the expert's output", "bfloat16")}


def disguised(right: RandomModel, change: tuple[str, str], folder: Path, dtype: str) -> Path:
    """A folder of the changed model that says it is ``right``: the same weights, spec and digest."""
    text = resolved_text(right.resolved)
    assert change[0] in text
    out = exported(RandomModel.of_text(text.replace(*change)), folder, dtype)
    (out / "spec.yaml").write_text(text, encoding="utf-8")
    for file in out.glob("*.onnx"):
        model = onnx.load(str(file), load_external_data=False)
        for entry in model.metadata_props:
            if entry.key == "llamagen.spec_digest":
                entry.value = right.graph.digest
        file.write_bytes(model.SerializeToString())
    return out


def wrong_cases(report: VerifyReport) -> set[str]:
    return {row.case for row in report.rows if row.verdict == "different"}


@pytest.mark.parametrize(
    ("mistake", "dtype"),
    [
        pytest.param(mistake, dtype, marks=() if (mistake, dtype) in QUICK else SLOW)
        for mistake in MISTAKES
        for dtype in ("bfloat16", "float16")
    ],
)
def test_another_model_is_caught(mistake: str, dtype: str, tmp_path: Path) -> None:
    out = disguised(shrunk("llama/4/scout"), MISTAKES[mistake], tmp_path, dtype)
    found = wrong_cases(verify_folder(out, ("torch",), steps=4))
    assert {"prefill", "decode"} <= found, found


@SLOW
def test_an_epsilon_is_not(tmp_path: Path) -> None:
    """What two bytes cannot show: float32 is there for that."""
    change = ("norm_eps: 1.0e-5", "norm_eps: 1.1e-5")
    right = shrunk("llama/4/scout")
    low = disguised(right, change, tmp_path / "low", "bfloat16")
    high = disguised(right, change, tmp_path / "high", "float32")
    assert not wrong_cases(verify_folder(low, ("torch",), steps=1))
    assert wrong_cases(verify_folder(high, ("torch",), steps=1))
