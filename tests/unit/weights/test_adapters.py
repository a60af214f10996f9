"""A folder with an adapter is refused by whoever reads its weights: without it the model is another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llamagen import api
from llamagen.diagnostics import LlamagenError
from llamagen.emit.options import ExportOptions
from llamagen.weights.checkpoint import Checkpoint
from tests.parity.models import SPECS

SPEC = SPECS / "reduced" / "llama-3.2-1b.yaml"
ADAPTERS = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "adapter_model.bin",
    "adapter_model-00001-of-00002.safetensors",
    "adapter_model.safetensors.index.json",
    "adapters.safetensors",
    "Adapter_Config.json",
    "adapter.safetensors",
    "pytorch_lora_weights.safetensors",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "model"
    api.random_checkpoint(SPEC, folder)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "model")


def refused(error: LlamagenError, name: str) -> None:
    (finding,) = error.diagnostics
    assert finding.code == "LG623" and name in finding.message
    assert "--adapter" in (finding.help or "")


@pytest.mark.parametrize("name", ADAPTERS)
def test_no_export_leaves_an_adapter_out(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).write_bytes(b"")
    for weights in ("copy", "reference"):
        with pytest.raises(LlamagenError) as caught:
            api.load(SPEC).export(
                tmp_path / "out", ExportOptions(weights=weights), checkpoint=folder
            )
        refused(caught.value, name)
    assert not (tmp_path / "out").exists()


def test_every_reader_of_weights_refuses(folder: Path, tmp_path: Path) -> None:
    (folder / ADAPTERS[0]).write_bytes(b"")
    for read in (
        lambda: Checkpoint.open(folder),
        lambda: api.convert(folder, SPEC, SPEC, tmp_path / "out"),
        lambda: api.check_checkpoint(folder, str(SPEC)),
    ):
        with pytest.raises(LlamagenError) as caught:
            read()
        refused(caught.value, ADAPTERS[0])


def test_an_adapter_alone_is_refused_and_so_is_a_link_to_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / ADAPTERS[0]).symlink_to("gone")
    with pytest.raises(LlamagenError) as caught:
        Checkpoint.open(folder)
    refused(caught.value, ADAPTERS[0])


@pytest.mark.parametrize("name", ADAPTERS[:2])
def test_a_folder_with_an_adapter_is_not_run(name: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.load(SPEC).export(out, checkpoint=folder)
    (out / name).write_bytes(b"{}")
    with pytest.raises(LlamagenError) as caught:
        api.run(out, (1, 2), max_new_tokens=2)
    refused(caught.value, name)


def test_a_file_that_is_named_itself_and_other_names_are_fine(folder: Path) -> None:
    for name in (
        "my_adapter_notes.md",
        "adapter.md",
        "adapter_modelling.txt",
        "flora-7b.safetensors",
    ):
        (folder / name).write_text("")
    assert Checkpoint.open(folder).tensors
    (folder / ADAPTERS[0]).write_bytes(b"")
    assert Checkpoint.open(folder / "model.safetensors").tensors
