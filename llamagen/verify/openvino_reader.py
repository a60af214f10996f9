"""An oracle of this house: OpenVINO, which reads the text graph of the folder by itself. Run by ``oracle_process.py``.

It is an authority for what ONNX's operators mean, and for no architecture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Past = dict[str, openvino.Tensor]

model: Any = None


def load(file: str) -> None:
    """Of the graph. Errors are OpenVINO's last line: what stands before it are places in its own source."""
    global model
    try:
        graph = openvino.Core().read_model(file)
        model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"OpenVINO {openvino.__version__}: {lines[-1].lstrip('- ')}") from None


def logits(
    input_ids: Ids, position_ids: Ids, attention_mask: Ids, past: Past | None
) -> tuple[NDArray[np.float64], Past]:
    feeds: dict[str, Any] = dict(past or {})
    given = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": attention_mask,
    }
    for value in model.inputs:
        name = value.any_name
        if name in given:
            feeds[name] = given[name]
        elif past is None:  # a cache of no tokens
            _, heads, _, size = value.partial_shape
            shape = [len(input_ids), heads.get_length(), 0, size.get_length()]
            feeds[name] = openvino.Tensor(value.element_type, shape)
    request = model.create_infer_request()
    request.infer(feeds)
    made = {name: request.get_tensor(value) for value in model.outputs for name in value.names}
    found: NDArray[np.float64] = made["logits"].data.astype(np.float64)
    # values of the graph may be outputs under a name more
    kept = {name: value for name, value in made.items() if name.startswith("present.")}
    return found, {f"past_key_values.{name[len('present.') :]}": kept[name] for name in kept}
