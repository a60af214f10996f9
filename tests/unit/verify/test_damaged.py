"""Folders that somebody edited: a finding with its code, and the folder stays what it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from llamagen.api import load, measure_quality
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.runtime.session import Session
from llamagen.verify.folder import verify_folder
from llamagen.verify.limits import Difference, Tolerance
from llamagen.verify.report import TOO_WIDE, Facts, Row, VerifyReport, document, html_text
from llamagen.verify.stored import Place

TINY = Path(__file__).resolve().parents[2] / "cases/common/tiny.yaml"
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "sound"
    load(TINY).export(folder, random_weights=1)
    return folder


def filled(value: float) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "model.onnx_data"
        file.write_bytes(np.full(file.stat().st_size // 4, value, np.float32).tobytes())

    return edit


def external(key: str, value: str) -> Edit:
    """In the place of the first weight."""

    def change(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.data_location == 1)
        (entry,) = (e for e in weight.external_data if e.key == key)
        entry.value = value

    return graph(change)


def graph(change: Callable[[onnx.ModelProto], None]) -> Edit:
    def edit(folder: Path) -> None:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return edit


def of_no_type(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.data_type = 99


def of_no_shape(model: onnx.ModelProto) -> None:
    (cache,) = (i for i in model.graph.input if i.name == "past_key_values.0.key")
    cache.type.tensor_type.ClearField("shape")


def of_letters(folder: Path) -> None:
    (folder / "spec.yaml").write_bytes(b"\xff")


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (filled(0.0), "LG777"),
        (filled(float("nan")), "LG777"),
        (filled(3e38), "LG777"),
        (external("offset", "abc"), "LG773"),
        (external("offset", "9" * 5000), "LG773"),
        (external("offset", "-4096"), "LG773"),
        (external("location", "../../../etc/passwd"), "LG773"),
        (graph(of_no_type), "LG773"),
        (graph(of_no_shape), "LG713"),
        (of_letters, "LG770"),
    ],
)
def test_it_is_not_verified(edit: Edit, code: str, sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "edited")
    edit(folder)
    with pytest.raises(LlamagenError) as caught:
        verify_folder(folder, ["reference"], steps=1)
    assert [one.code for one in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (filled(float("nan")), "LG778"),
        (graph(of_no_shape), "LG713"),
        (of_letters, "LG770"),
        (lambda folder: (folder / "spec.yaml").unlink(), "LG770"),
    ],
)
def test_its_quality_is_not_recorded(edit: Edit, code: str, sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "edited")
    edit(folder)
    before = (folder / "MANIFEST.json").read_bytes()
    with pytest.raises(LlamagenError) as caught:
        measure_quality(folder)
    assert [one.code for one in caught.value.diagnostics] == [code]
    assert (folder / "MANIFEST.json").read_bytes() == before


def test_a_cache_without_a_shape_is_not_run(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "edited")
    graph(of_no_shape)(folder)
    with pytest.raises(LlamagenError, match=r"past_key_values\.0\.key"):
        Session(folder).step([1])


def test_configurations_are_not_nested_for_ever(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(sound, tmp_path / "edited")
    (folder / "generation_config.json").write_text("[" * 100_000)
    assert main(["run", str(folder), "--ids", "1"]) == 3
    assert "LG765" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(sound, folder)
    with pytest.raises(LlamagenError, match="is not UTF-8") as caught:
        verify_folder(folder, ["reference"], steps=1)
    assert caught.value.diagnostics[0].code == "LG713"


def test_a_file_that_shrank_between_two_reads(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(12))
    with pytest.raises(LlamagenError) as caught:
        Place(tmp_path / "data", 0, (4,), np.dtype(np.float32)).read()
    assert caught.value.diagnostics[0].code == "LG622"


def test_a_bound_that_wrong_models_are_within_proves_nothing() -> None:
    near = Difference(max_abs=0.01, rms=0.01, std=1.0, count=10, variation=0.0)
    wide = Row("torch", "prefill", near, Tolerance(1.0, 0.21, "measured"))
    assert wide.verdict == "skipped" and TOO_WIDE in wide.cells()[4]
    assert Row("torch", "prefill", near, Tolerance(1.0, 0.2, "measured")).verdict == "equal"
    facts = Facts("0" * 64, 1, "float32", "portable", (), 0, (), ())
    told = document(VerifyReport("a/b", (wide,), facts))
    assert not told.passed and told.comparisons[0].note == TOO_WIDE
    equal = replace(wide, tolerance=Tolerance(1.0, 0.2, "measured"))
    page = html_text(document(VerifyReport("a/b", (wide, wide, equal), facts)))
    assert "The comparison is within its tolerance. 2 more were skipped." in page
    far = Difference(max_abs=1.0, rms=0.3, std=1.0, count=10, variation=0.0)
    assert Row("torch", "x", far, Tolerance(1.0, 0.21, "measured")).verdict == "different"


def test_nan_is_within_no_bound() -> None:
    """Of the maximum and of the rms alone."""
    bound = Tolerance(1e-5, 1.5e-6)
    nan = float("nan")
    for most, rms in ((nan, 0.0), (0.0, nan), (nan, nan)):
        assert not Difference(most, rms, 1.0, 10, 0.0).within(bound)
