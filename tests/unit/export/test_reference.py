"""Weights without copies: the checkpoint's own files in the folder, the same logits, and what cannot be referenced."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llamagen.api import load, random_checkpoint
from llamagen.cli import main
from llamagen.diagnostics import LlamagenError
from llamagen.emit.manifest import read_manifest
from llamagen.emit.onnx.session import OpenOptions
from llamagen.emit.options import ExportOptions
from llamagen.runtime.session import Session
from llamagen.verify.folder import verify_folder
from tests.parity.models import SPECS
from tests.unit.export.checkpoints import REDUCED, ROUTES

DENSE = SPECS / "reduced" / "llama-3.1-8b.yaml"
IDS = [5, 17, 9, 3, 3, 21, 6, 8]


def stored(folder: Path, spec: Path = DENSE, dtype: str = "bfloat16") -> Path:
    random_checkpoint(spec, folder / "checkpoint", seed=3, dtype=dtype, shard_bytes=50_000)
    return folder / "checkpoint"


def exported(checkpoint: Path, out: Path, spec: Path = DENSE, **options: object) -> Path:
    chosen = ExportOptions(weights="reference", **options)  # type: ignore[arg-type]
    load(spec).export(out, chosen, checkpoint=checkpoint)
    return out


def logits(out: Path) -> np.ndarray:
    session = Session(out, OpenOptions(threads=1))
    return np.stack([session.step(IDS), session.step([9])])


def refused(checkpoint: Path, out: Path, **options: Any) -> tuple[str, str]:
    with pytest.raises(LlamagenError) as caught:
        exported(checkpoint, out, **options)
    assert not out.exists()
    (one,) = caught.value.diagnostics
    return one.code, f"{one.message} {one.help}"


@pytest.mark.parametrize(
    "spec", [DENSE, *(SPECS / "foreign" / f"{n}.yaml" for n in ("llama4_text", "gpt_neox", "gemma2"))],
    ids=lambda path: path.stem,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_logits_as_a_copy(spec: Path, dtype: str, tmp_path: Path) -> None:
    """Also with tied tables, biases, and experts that are cast when they are chosen."""
    checkpoint = stored(tmp_path, spec)
    by_reference = exported(checkpoint, tmp_path / "reference", spec, dtype=dtype)
    load(spec).export(tmp_path / "copy", ExportOptions(dtype=dtype), checkpoint=checkpoint)
    found, expected = logits(by_reference), logits(tmp_path / "copy")
    assert expected.std() > 0.1
    assert np.array_equal(found, expected)


def test_files_are_the_checkpoints_own(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    out = exported(checkpoint, tmp_path / "out")
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert len(shards) > 2
    assert not list(out.glob("*.data"))
    for shard in shards:
        assert shard.samefile(out / shard.name)
    manifest = read_manifest(out)
    assert manifest.weights.mode == "reference" and not manifest.weights.scanned
    record = manifest.files[shards[0].name]
    prefix = int.from_bytes(shards[0].read_bytes()[:8], "little") + 8
    header = hashlib.sha256(shards[0].read_bytes()[:prefix]).hexdigest()
    assert record.sha256 is None and record.header_sha256 == header
    assert record.size == shards[0].stat().st_size


def test_no_bytes_of_the_weights_are_in_the_model_and_each_is_there_once(tmp_path: Path) -> None:
    out = exported(stored(tmp_path), tmp_path / "out")
    model = onnx.load(str(out / "model.onnx"), load_external_data=False)
    places = [
        tuple(sorted((e.key, e.value) for e in tensor.external_data))
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert len(places) == len(set(places)) == len(load(DENSE).parameters)
    assert all(
        t.data_type == onnx.TensorProto.BFLOAT16 for t in model.graph.initializer if t.external_data
    )
    assert (out / "model.onnx").stat().st_size < 100_000


def test_it_is_verified_like_any_folder(tmp_path: Path) -> None:
    out = exported(stored(tmp_path), tmp_path / "out")
    report = verify_folder(out, ("torch", "reference", "transformers"), steps=2)
    assert report.passed, [row.cells() for row in report.rows]


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    one = exported(checkpoint, tmp_path / "one", scan=True)
    two = exported(checkpoint, tmp_path / "two", scan=True)
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """snapshots/REVISION/model.safetensors -> ../../blobs/HASH"""
    checkpoint = stored(tmp_path)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:064x}")
    out = exported(snapshot, tmp_path / "out")
    assert not any(file.is_symlink() for file in out.iterdir())
    first = next(iter(sorted(out.glob("*.safetensors"))))
    assert first.samefile((snapshot / first.name).resolve())
    assert logits(out).std() > 0.1


def test_a_scan_reads_hashes_and_refuses(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    out = exported(checkpoint, tmp_path / "out", scan=True)
    manifest = read_manifest(out)
    assert manifest.weights.scanned
    for file in checkpoint.glob("*.safetensors"):
        assert manifest.files[file.name].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    shard = max(checkpoint.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-2:] = b"\xc0\x7f"  # NaN
    shard.write_bytes(data)
    code, text = refused(checkpoint, tmp_path / "bad", scan=True)
    assert code == "LG620" and shard.name in text and "NaN" in text


def test_without_a_scan_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = stored(tmp_path)
    command = ["export", str(DENSE), "--checkpoint", str(checkpoint), "--weights", "reference"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "note[LG643]" in capsys.readouterr().err
    assert main([*command, "--scan", "--out", str(tmp_path / "b")]) == 0
    assert "LG643" not in capsys.readouterr().err


def test_a_narrowing_cast_wants_a_scan(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    code, text = refused(checkpoint, tmp_path / "out", dtype="float16")
    assert code == "LG642" and "--scan" in text
    out = exported(checkpoint, tmp_path / "out", dtype="float16", scan=True)
    assert verify_folder(out, ("reference",), steps=2).passed


def test_a_scan_looks_at_the_range_of_the_dtype(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path)
    shard = max(checkpoint.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-2:] = b"\x80\x47"  # 65536 in bfloat16
    shard.write_bytes(data)
    assert refused(checkpoint, tmp_path / "out", dtype="float16", scan=True)[0] == "LG621"
    exported(checkpoint, tmp_path / "out", dtype="float32", scan=True)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EXDEV, "another file system"), (errno.EPERM, "own"), (errno.EMLINK, "many links")],
)
def test_what_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    checkpoint = stored(tmp_path)

    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    code, text = refused(checkpoint, tmp_path / "out")
    assert code == "LG641" and words in text and "--weights copy" in text


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = stored(tmp_path)
    other = stored(tmp_path / "other", SPECS / "reduced" / "llama-1-7b.yaml")
    link = os.link

    def another(source: Path, target: Path) -> None:
        link(min(other.glob("*.safetensors")), target)

    monkeypatch.setattr(os, "link", another)
    assert refused(checkpoint, tmp_path / "out")[0] == "LG622"


def test_what_has_to_be_rearranged(tmp_path: Path) -> None:
    (model,) = (one for one in REDUCED if one.name == "llama-2-70b")
    ROUTES["meta_single"](model, tmp_path / "meta")
    code, text = refused(tmp_path / "meta", tmp_path / "out", spec=model.spec)
    assert code == "LG640" and "--weights copy" in text


def test_random_weights_are_in_no_file(tmp_path: Path) -> None:
    with pytest.raises(LlamagenError) as caught:
        load(DENSE).export(tmp_path / "out", ExportOptions(weights="reference"), random_weights=1)
    assert caught.value.diagnostics[0].code == "LG703"
    with pytest.raises(LlamagenError) as caught:
        load(DENSE).export(tmp_path / "out", ExportOptions(weights="referenced"), random_weights=1)
    assert "did you mean `reference`?" in str(caught.value.diagnostics[0].help)


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    checkpoint = tmp_path / os.fsdecode(b"\xff.safetensors")
    random_checkpoint(DENSE, tmp_path / "whole", seed=3)
    (tmp_path / "whole/model.safetensors").rename(checkpoint)
    code, words = refused(checkpoint, tmp_path / "out")
    assert code == "LG641" and "is not UTF-8" in words
