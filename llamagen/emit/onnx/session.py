"""Opening an ONNX model in ONNX Runtime, with its refusals turned into findings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamagen.diagnostics import LlamagenError

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}

V = TypeVar("V")


def open_session(
    model: Path | bytes,
    threads: int = 0,
    provider: str = CPU,
    data_folder: Path | None = None,
) -> ort.InferenceSession:
    """A session of ``model`` (a file, or bytes); ``threads`` 0 lets ONNX Runtime choose.

    External data of a model given as bytes is in ``data_folder``.

    Raises LG711 when ``provider`` is not in this installation, LG712 when it lacks an operator of the model, LG713
    when the model cannot be loaded.
    """
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider not in available:
        raise LlamagenError.of(
            "LG711",
            f"this ONNX Runtime has no {provider}; it has {', '.join(available)}",
            help="install a build of onnxruntime that has it, or use the CPU",
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its findings are raised below; a library prints nothing
    if data_folder is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(data_folder))
    source = str(model) if isinstance(model, Path) else model
    what = str(model) if isinstance(model, Path) else "the model"
    try:
        return ort.InferenceSession(source, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise _refusal(what, provider, str(error)) from error


def empty_cache(session: ort.InferenceSession, batch: int) -> dict[str, NDArray[np.generic]]:
    """Input name -> keys or values of no token, [batch, K, 0, H]."""
    return {
        value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), _TYPES[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }


def as_input(value: NDArray[np.generic], kind: str) -> NDArray[np.generic]:
    """An array in the type that an input wants (``tensor(float16)``), contiguous."""
    found: NDArray[np.generic] = np.ascontiguousarray(value, dtype=_TYPES[kind])
    return found


def as_past(outputs: Mapping[str, V]) -> dict[str, V]:
    """The caches among the outputs of a step, under the names of the next step's inputs."""
    return {
        name.replace("present.", "past_key_values.", 1): value
        for name, value in outputs.items()
        if name.startswith("present.")
    }


def _refusal(what: str, provider: str, message: str) -> LlamagenError:
    reason = " ".join(message.split())
    missing = re.search(r"implementation for (\w+)\(\d+\) node|kernel for (\w+)\(", reason)
    if "NOT_IMPLEMENTED" in reason and missing:
        return LlamagenError.of(
            "LG712",
            f"{provider} has no {missing[1] or missing[2]} for the types that {what} uses",
            help="export with the portable profile, which every provider runs",
        )
    short = re.sub(r"/onnxruntime_src/\S+ ", "", re.sub(r"^\[ONNXRuntimeError\] : ", "", reason))
    return LlamagenError.of(
        "LG713",
        f"ONNX Runtime cannot load {what}: {short[:400]}",
        help="are all data files beside model.onnx, whole and unchanged?",
    )
