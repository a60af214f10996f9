"""Checkpoints that transformers wrote become exported folders: every weight at its role path, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import logging

from llamagen.api import load
from llamagen.verify.folder import verify_folder
from llamagen.verify.stored import stored_weights
from tests.parity.models import FOREIGN, SPECS, RandomModel
from tests.parity.peers import PEERS, peer_model

logging.set_verbosity_error()
logging.disable_progress_bar()

SAVED = [name for name in FOREIGN if not PEERS[name].zeroed]


def exported(name: str, folder: Path) -> tuple[RandomModel, Path]:
    model = RandomModel.named(f"foreign/{name}")
    peer = peer_model(model.resolved.spec, model.weight, list(model.parameters))
    peer.to(torch.float32).save_pretrained(folder / "checkpoint")
    spec = load(f"foreign/{name}", roots=(SPECS,))
    spec.export(folder / "onnx", checkpoint=folder / "checkpoint")
    return model, folder / "onnx"


@pytest.mark.parametrize("name", SAVED)
def test_weights_arrive(name: str, tmp_path: Path) -> None:
    model, folder = exported(name, tmp_path)
    stored = stored_weights(folder)
    for path in model.parameters:
        assert np.array_equal(stored.read(path), model.weight(path)), path


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "gemma3"])
def test_the_folder_passes_verification(name: str, tmp_path: Path) -> None:
    _, folder = exported(name, tmp_path)
    report = verify_folder(folder, ["torch", "reference"], steps=3)
    assert report.passed, [row.cells() for row in report.rows]


def test_transformers_reads_the_same_names(tmp_path: Path) -> None:
    _, folder = exported("qwen3", tmp_path)
    report = verify_folder(folder, ["transformers"], steps=3)
    assert report.passed, [row.cells() for row in report.rows]
