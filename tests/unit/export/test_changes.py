"""A checkpoint that changes while it is exported gives no folder, whatever became of its bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.verify.witnesses import TorchWitness
from tests.parity.models import SPECS

SPEC = SPECS / "reduced/llama-2-70b.yaml"


def written_to(file: Path) -> None:
    """One bit, in place."""
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    found = file.stat()
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000))  # coarse clocks


def replaced(file: Path) -> None:
    """What a downloader does at the end: the same bytes under the same name, another file."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    other.replace(file)


def grown(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [written_to, replaced, grown, removed])
@pytest.mark.parametrize("shard_bytes", [None, 60_000])
def test_a_file_that_changes(
    change: Callable[[Path], None], shard_bytes: int | None, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    api.random_checkpoint(SPEC, folder, seed=1, shard_bytes=shard_bytes)
    first = min(folder.glob("*.safetensors"))
    changed: list[int] = []

    def progress(done: int, total: int) -> None:
        if not changed and done > total // 2:
            changed.append(done)
            change(first)

    with pytest.raises(LlamagenError, match=r"LG622.*was changed while it was read"):
        api.load(SPEC).export(tmp_path / "out", checkpoint=folder, progress=progress)
    assert changed and [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("change", [written_to, replaced, grown])
def test_a_checkpoint_that_changes_is_not_converted(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    api.random_checkpoint(SPEC, folder, seed=1)

    def progress(done: int, total: int) -> None:
        if done == total:
            change(folder / "model.safetensors")

    with pytest.raises(LlamagenError, match=r"LG622.*was changed while it was read"):
        api.convert(folder, SPEC, SPEC, tmp_path / "out", progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["model.onnx_data", "model.onnx", "spec.yaml"])
def test_a_folder_that_changes_is_not_verified(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last to look at it is the torch witness."""
    api.load(SPEC).export(tmp_path / "out", random_weights=1)
    built = TorchWitness.of_graph

    def change(*args: object) -> TorchWitness:
        replaced(tmp_path / "out" / name)
        return built(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchWitness, "of_graph", staticmethod(change))
    with pytest.raises(LlamagenError, match=rf"LG622.*{name}' was changed while it was read"):
        api.verify_folder(tmp_path / "out", ["torch"], steps=1)


@pytest.mark.parametrize("where", ["out", "checkpoint"])
def test_quality_of_what_changes_is_not_recorded(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.random_checkpoint(SPEC, tmp_path / "checkpoint", seed=1)
    api.load(SPEC).export(tmp_path / "out", checkpoint=tmp_path / "checkpoint")
    before = (tmp_path / "out" / "MANIFEST.json").read_bytes()
    built = TorchWitness.of_graph

    def change(*args: object) -> TorchWitness:
        found = built(*args)  # type: ignore[arg-type]
        replaced(
            tmp_path / where / ("model.safetensors" if where == "checkpoint" else "model.onnx_data")
        )
        return found

    monkeypatch.setattr(TorchWitness, "of_graph", staticmethod(change))
    with pytest.raises(LlamagenError, match=r"LG622.*was changed while it was read"):
        api.measure_quality(tmp_path / "out", tmp_path / "checkpoint")
    assert (tmp_path / "out" / "MANIFEST.json").read_bytes() == before


def test_a_file_that_stays(tmp_path: Path) -> None:
    """Links and other files of the folder do not matter."""
    folder = tmp_path / "checkpoint"
    api.random_checkpoint(SPEC, folder, seed=1)
    (folder / "inner").mkdir()
    for file in list(folder.glob("*.*")):
        (folder / file.name).symlink_to(file.rename(folder / "inner" / file.name))

    def progress(done: int, total: int) -> None:
        (folder / "notes.txt").write_text(f"{done}")

    api.load(SPEC).export(tmp_path / "out", checkpoint=folder, progress=progress)
    assert (tmp_path / "out" / "model.onnx").is_file()
