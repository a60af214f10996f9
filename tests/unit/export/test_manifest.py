"""MANIFEST.json: right about every file, the same for the same export, and refused when it is not one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llamagen.api import load
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import MANIFEST, FileRecord, Manifest, read_manifest, schema_text
from llamagen.emit.options import ExportOptions
from llamagen.resources import data_folder
from tests.parity.models import SPECS

SPEC = SPECS / "reduced" / "llama-3.1-8b.yaml"

IMAGES: dict[str, Any] = {
    "once": [],
    "steps": ["model"],
    "inputs": [],
    "beside": [],
    "hand_overs": {},
    "preprocessing": None,
}
QUALITY = {"inputs": "", "positions": 1, "kl_mean": 0.0, "kl_max": 0.0, "top1_agreement": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifest") / "out"
    load(SPEC).export(out, ExportOptions(dtype="float16"), random_weights=7)
    return out


def test_it_is_right_about_every_file(folder: Path) -> None:
    found = read_manifest(folder)
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}
    plain = {n: one.model_copy(update={"tensors": ()}) for n, one in found.files.items()}
    assert plain == {
        name: FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }
    data = files["model.onnx_data"]
    for tensor in found.files["model.onnx_data"].tensors:
        assert hashlib.sha256(data[: tensor.stop]).hexdigest().startswith(tensor.until)
    assert list(found.files) == sorted(found.files)


def test_it_says_what_the_folder_is(folder: Path) -> None:
    found = read_manifest(folder)
    model = load(SPEC)
    assert found.spec.id == model.id and found.spec.digest == model.resolved.digest
    assert (found.profile, found.dtype, found.io_dtype) == ("portable", "float16", "float16")
    assert found.weights.mode == "copy"
    assert found.weights.source.model_dump() == {"kind": "random", "seed": 7}
    (graph,) = found.graphs.values()
    assert (graph.file, graph.digest, graph.opset) == (
        "model.onnx",
        model.graph.digest,
        {"ai.onnx": 24},
    )


def test_two_exports_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    load(SPEC).export(tmp_path / "again", ExportOptions(dtype="float16"), random_weights=7)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_its_text_is_canonical_and_fits_the_shipped_schema(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    assert Manifest.model_validate_json(text).text() == text
    shipped = data_folder("spec") / "manifest.schema.json"
    assert shipped.read_text(encoding="utf-8") == schema_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"when": "2026"}, "when: Extra inputs"),
        ({"files": {"a": {"size": 3}}}, "files.a.sha256: Field required"),
        ({"files": {"a": {"size": 3, "sha256": None}}}, "hash of its content"),
        ({"files": {"a": {"size": 3, "sha256": "zz"}}}, "files.a.sha256"),
        (
            {"files": {"../a": {"size": 3, "sha256": "0" * 64}}},
            "'../a' is not a file of the folder",
        ),
        ({"files": {"/a": {"size": 3, "sha256": "0" * 64}}}, "'/a' is not a file of the folder"),
        ({"graphs": {"model": {"file": "../model.onnx", "digest": "", "opset": {}}}}, "not in"),
        ({"graphs": {"../model": {"file": "../model.onnx", "digest": "", "opset": {}}}}, "not in"),
        ({"images": {**IMAGES, "steps": ["../model"]}}, "no graph of the folder"),
        ({"images": {**IMAGES, "once": ["vision"]}}, "no graph of the folder"),
        ({"session": {"session.model_external_initializers_file_folder_path": "/"}}, "session"),
        ({"session": {"session.disable_prepacking": "x" * 10_000}}, "session"),
        ({"quality": {**QUALITY, "kl_mean": float("nan")}}, "quality.kl_mean"),
    ],
)
def test_another_file_of_that_name_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (tmp_path / MANIFEST).write_text(json.dumps({**document, **change}))
    with pytest.raises(LlamagenError) as caught:
        read_manifest(tmp_path)
    (one,) = caught.value.diagnostics
    assert one.code == "LG775" and reason in one.message


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        read_manifest(tmp_path)
    assert caught.value.diagnostics[0].code == "LG775"


def test_a_folder_of_the_other_kind_is_told_however_its_manifest_is_laid_out(
    tmp_path: Path,
) -> None:
    (tmp_path / MANIFEST).write_text('{"llamagen":"0","format":"transformers"}')
    with pytest.raises(LlamagenError, match="is a folder for transformers"):
        read_manifest(tmp_path)
