"""Folders for ort-cuda, opened and called by the published CUDA provider over libraries that compute nothing.

Run in the environment `cuda` with its folder of such libraries in LD_LIBRARY_PATH: reads folders from stdin, one a
line, and answers each with a line of JSON. It imports nothing of llamagen.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

CALLS = ((1, 7, 0), (2, 7, 0), (1, 1, 7), (2, 1, 9), (1, 5, 7))
"""Rows, new tokens, tokens before: a prompt, a batch of them, tokens after them, a later prompt."""
TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
MEMORY = 8 << 30
BFLOAT16 = 16
"""TensorProto.BFLOAT16"""


def opened(file: Path, optimised: str = "", **provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if optimised:
        options.optimized_model_filepath = optimised
    providers = [("CUDAExecutionProvider", provider), "CPUExecutionProvider"]
    return ort.InferenceSession(str(file), options, providers=providers)


def placed(file: Path) -> dict[str, Any]:
    """How many nodes lie on which provider, and what is copied between them."""
    with tempfile.TemporaryDirectory() as place:
        optimised = Path(place) / "optimised.onnx"
        session = opened(file, str(optimised))
        nodes = onnx.load(str(optimised), load_external_data=False).graph.node
    on: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        on.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    copies = sum(node.op_type.startswith("Memcpy") for node in nodes)
    own = on.get("CUDAExecutionProvider", Counter())
    others = on.get("CPUExecutionProvider", Counter())
    found: dict[str, Any] = {"cuda": own.total(), "cpu": dict(others), "copies": copies}
    if any(node.op_type == "NonZero" for node in every(nodes)):
        found["not_called"] = "sizes in it are computed"
    return found


def every(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """And those of the graphs inside."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from every(attribute.g.node)


def called(session: ort.InferenceSession, rows: int, new: int, before: int) -> None:
    """Raises what the provider's checks of a call raise."""
    sizes = {
        "batch_size": rows,
        "sequence_length": new,
        "past_sequence_length": before,
        "past_buffer": before,
        "total_sequence_length": before + new,
    }
    values = {}
    for one in session.get_inputs():
        shape = [length(size, sizes) for size in one.shape]
        array = np.ones(shape, TYPES[one.type])
        if one.name == "position_ids":
            array[:] = np.arange(before, before + new)
        values[one.name] = value(array)
    session.run_with_ort_values([one.name for one in session.get_outputs()], values)


def length(size: str | int, sizes: dict[str, int]) -> int:
    """Of a dimension such as 7, `batch_size` or `40*images`: one image a row."""
    if isinstance(size, int):
        return size
    factor, star, name = size.rpartition("*")
    return (int(factor) if star else 1) * sizes.get(name, 1)


def value(array: Any) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def probed(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        found |= placed(file)
        session = opened(file)
        for call in () if "not_called" in found else CALLS:
            called(session, *call)
    except Exception as error:  # whatever the provider says is the answer
        return found | {"refused": first_line(error)}
    try:
        opened(file, enable_cuda_graph="1")
    except Exception as error:
        return found | {"no_cuda_graph": first_line(error)}
    return found


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


def main() -> None:
    # sizes that a kernel should have computed may be anything
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        folder = Path(line.strip())
        answer = {file.name: probed(file) for file in sorted(folder.glob("*.onnx"))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
