"""Oracle for `llamagen verify --against`: the graph of the folder by onnx's own reference implementation, in float32.

It tells nothing of the spec; it tells whether ONNX Runtime does with the graph what ONNX says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.field import given

graph: Any = None
pasts: dict[str, NDArray[np.float32]] = {}


def load(folder: str) -> None:
    global graph
    model = onnx.load(str(Path(folder) / "model.onnx"))
    graph = ReferenceEvaluator(model)
    for one in model.graph.input:
        if one.name.startswith("past_key_values."):
            dims = one.type.tensor_type.shape.dim
            pasts[one.name] = np.zeros((1, dims[1].dim_value, 0, dims[3].dim_value), np.float32)


def one_row(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    row = {
        "input_ids": ids[None].numpy(),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": positions[None].numpy(),
    }
    feeds = {name: value for name, value in {**row, **pasts}.items() if name in graph.input_names}
    return torch.from_numpy(graph.run(["logits"], feeds)[0][0])


def logits(
    input_ids: given.Ids, position_ids: given.Ids, attention_mask: given.Ids, past: object
) -> NDArray[np.float64]:
    return given.by_rows(one_row, input_ids, position_ids, attention_mask)
