"""What an oracle of an outside witness is given: the folder's numbers and weights, and rows without padding.

Imported by oracles in environments that have no llamagen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from numpy.typing import NDArray

Ids = NDArray[np.int64]
OneRow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids [S] and their positions [S] -> logits [S, V]."""


def numbers(folder: str) -> dict[str, Any]:
    """Hyperparameters, by their names in the spec."""
    found: dict[str, Any] = yaml.safe_load((Path(folder) / "spec.yaml").read_text())
    return found["hyperparameters"]


def weights(folder: str) -> dict[str, torch.Tensor]:
    """By their names in a checkpoint of the Hub."""
    tensors = onnx.load(str(Path(folder) / "model.onnx")).graph.initializer
    return {
        one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy())
        for one in tensors
        if one.name.endswith((".weight", "_proj"))
    }


def by_rows(run: OneRow, ids: Ids, positions: Ids, mask: Ids) -> NDArray[np.float64]:
    """A text has no padding: each row by itself; zeros stand where padding was."""
    found: list[NDArray[np.float64]] = []
    for row, places, real in zip(ids, positions, mask > 0, strict=True):
        with torch.inference_mode():
            of_tokens = run(torch.from_numpy(row[real]), torch.from_numpy(places[real]))
        logits = np.zeros((len(row), of_tokens.shape[-1]))
        logits[real] = of_tokens.double().numpy()
        found.append(logits)
    return np.stack(found)
