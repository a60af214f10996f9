"""Oracle for `llamagen verify --against`: OpenVINO, which reads the folder's own portable graph.

It is an authority for what ONNX's operators mean, and for no architecture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

Ids = NDArray[np.int64]

model: Any = None


def load(folder: str) -> None:
    global model
    graph = openvino.Core().read_model(Path(folder) / "model.onnx")
    model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def logits(
    input_ids: Ids, position_ids: Ids, attention_mask: Ids, past: object
) -> NDArray[np.float64]:
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": attention_mask,
    }
    for value in model.inputs:
        if value.any_name.startswith("past_key_values."):
            _, heads, _, size = value.partial_shape
            shape = (len(input_ids), heads.get_length(), 0, size.get_length())
            feeds[value.any_name] = np.zeros(shape, value.element_type.to_dtype())
    found: NDArray[np.float64] = model(feeds)["logits"].astype(np.float64)
    return found
