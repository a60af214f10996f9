"""Who runs what at which bits, and how many bytes one decoded token reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bench.builders import BUILDERS
from bench.checkpoint import parameter_counts
from bench.environments import environment

if TYPE_CHECKING:
    import onnx

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Contender:
    """``builder`` made the model; none runs the checkpoint itself. ``engine`` is a module of bench.engines."""

    bits: str
    engine: str
    builder: str | None
    environment: str | None = None
    options: tuple[str, ...] = ()
    ours: bool = False

    def model(self, work: Path) -> Path:
        if self.builder is None:
            return work / "checkpoint"
        return work / slug(self.builder) / BUILDERS[self.builder].model


CONTENDERS: Mapping[str, Contender] = {
    "llamagen": Contender("f32", "llamagen", "llamagen ort-cpu f32", ours=True),
    "llamagen in genai": Contender("f32", "genai", "llamagen ort-cpu f32", "genai", ours=True),
    "llamagen by reference": Contender(
        "f32", "llamagen", "llamagen ort-cpu f32 by reference", ours=True
    ),
    "llamagen portable": Contender("f32", "llamagen", "llamagen portable f32", ours=True),
    "llamagen portable in genai": Contender(
        "f32", "genai", "llamagen portable f32", "genai", ours=True
    ),
    "genai builder in genai": Contender("f32", "genai", "genai f32", "genai"),
    "genai builder in onnxruntime": Contender("f32", "ort", "genai f32"),
    "mobius": Contender("f32", "ort", "mobius f32"),
    "mobius cpu": Contender("f32", "ort", "mobius f32 cpu"),
    "transformers exporter": Contender("f32", "ort", "transformers exporter f32"),
    "transformers exporter fused": Contender("f32", "ort", "transformers exporter f32 fused"),
    "optimum": Contender("f32", "ort", "optimum f32"),
    "transformers eager": Contender("f32", "transformers", None, options=("float32",)),
    "llama.cpp f32": Contender("f32", "llamacpp", "llama.cpp f32", "llama.cpp"),
    "genai builder int4 in genai": Contender("int4", "genai", "genai int4", "genai"),
    "genai builder int4 in onnxruntime": Contender("int4", "ort", "genai int4"),
    "llamagen int4 block 32": Contender("int4", "llamagen", "llamagen int4 block 32", ours=True),
    "llamagen int4": Contender("int4", "llamagen", "llamagen int4", ours=True),
    "llamagen int4 in genai": Contender(
        "int4", "genai", "llamagen int4 block 32", "genai", ours=True
    ),
    "llamagen int4 block 64": Contender("int4", "llamagen", "llamagen int4 block 64", ours=True),
    "llamagen int4 block 128": Contender("int4", "llamagen", "llamagen int4 block 128", ours=True),
    "llamagen int8": Contender("int8", "llamagen", "llamagen int8 block 32", ours=True),
    "llamagen w8a8": Contender("int8", "llamagen", "llamagen w8a8", ours=True),
    "llama.cpp q4_0": Contender("int4", "llamacpp", "llama.cpp q4_0", "llama.cpp"),
    "llama.cpp q8_0": Contender("int8", "llamacpp", "llama.cpp q8_0", "llama.cpp"),
}


def slug(name: str) -> str:
    """A name as a folder."""
    return name.replace(" ", "-").replace(",", "")


ROWS: Mapping[str, tuple[int, ...]] = {
    "Gather": (0,),
    "GatherBlockQuantized": (0, 2, 3),
    "GroupQueryAttention": (7, 8),
    "RotaryEmbedding": (1, 2),
}
"""Operator -> inputs of which it reads rows only: embeddings and rotary tables."""


class Running:
    """A contender's process; use it as a context."""

    def __init__(self, contender: Contender, work: Path, threads: int) -> None:
        python = (
            sys.executable
            if contender.environment is None
            else str(environment(contender.environment))
        )
        module = f"bench.engines.{contender.engine}"
        arguments = [str(contender.model(work).resolve()), str(threads), *contender.options]
        self.errors = (work / "engine.err").open("w")
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.opened = self._answer()

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.errors.close()

    def ask(self, **request: object) -> dict[str, object]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def seconds(self, **request: object) -> float:
        found = self.ask(**request)["seconds"]
        assert isinstance(found, float)
        return found

    def _answer(self) -> dict[str, object]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # peers print remarks
                answer: dict[str, object] = json.loads(line)
                return answer
        code = self.process.wait()
        raise RuntimeError(f"engine ended with {code}; its messages are in {self.errors.name}")


def bytes_per_token(contender: Contender, work: Path) -> int:
    """Bytes of weights that one decoded token reads: everything but a table from which only rows are gathered."""
    if contender.builder is None:
        total, embedding = parameter_counts(work / "checkpoint")
        tied = json.loads((work / "checkpoint" / "config.json").read_text())["tie_word_embeddings"]
        size = {"float32": 4, "bfloat16": 2}[contender.options[0]]
        return size * (total if tied else total - embedding)
    model = contender.model(work)
    if model.suffix == ".gguf":
        return model.stat().st_size
    return onnx_bytes(model / "model.onnx")


def onnx_bytes(model: Path) -> int:
    """Bytes of an ONNX model's weights that one decoded token reads."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    stored = {tensor.name: _size(tensor) for tensor in graph.initializer}
    read = {
        name
        for node in graph.node
        for i, name in enumerate(node.input)
        if i not in ROWS.get(node.op_type, ())
    }
    return sum(size for name, size in stored.items() if name in read)


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes in memory, where 16-bit weights that the CPU cannot compute with are widened at load."""
    import onnx

    elements = prod(tensor.dims)
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return 4 * elements
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (elements + 1) // 2
    return elements * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
